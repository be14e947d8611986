"""What the module makes of data sets' vocabularies, before any training."""

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812

from dataseg.losses import Criterion
from dataseg.module import CoTrainedSegmenter
from dataseg.structures import ClassEmbeddings, ClassSpec, DatasetSpec, UserError, Vocabulary


class Text:
    """A vector for each vocabulary's digest, so that they can be told apart."""

    provenance = "none"

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        generator = torch.Generator().manual_seed(int(vocabulary.digest, 16) % 2**31)
        count = len(vocabulary)
        vectors = F.normalize(torch.randn(count, tiny.OPTIONS["text_dim"], generator=generator))
        return ClassEmbeddings(vectors, torch.arange(count), count, vocabulary.name)


def vocabulary(name: str, *classes: str) -> Vocabulary:
    return Vocabulary(name, tuple(ClassSpec(i, c, True, (c,), (i, 0, 0)) for i, c in enumerate(classes)))


def make(vocabularies: dict[str, Vocabulary], **options) -> CoTrainedSegmenter:
    specs = {name: DatasetSpec(v) for name, v in vocabularies.items()}
    return CoTrainedSegmenter(tiny.network(), Criterion(), Text(), specs, **options)


def test_vocabularies_of_one_name_keep_their_own_vectors():
    own = {"a": vocabulary("mine", "dog"), "b": vocabulary("mine", "cat", "car"), "c": vocabulary("mine", "dog")}
    module = make(own)
    for name, expected in own.items():
        classes = module._classes(name)
        assert classes.num_classes == len(expected)
        assert classes.vectors.equal(Text()(expected).vectors)
    assert len(module.class_embeddings) == 2


@pytest.mark.parametrize("option", [{"classifier": "learnt"}, {"background": "separate"}])
def test_what_is_learnt_by_name_needs_names_of_its_own(option):
    for first, second in (("mine", "mine"), ("mine", "my v1.2"), ("mine", "train")):
        with pytest.raises(UserError, match="rename them"):
            make({"a": vocabulary(first, "dog"), "b": vocabulary(second, "cat")}, **option)
    make({"a": vocabulary("mine", "dog"), "b": vocabulary("yours", "cat")}, **option)


def test_any_name_will_do_for_text():
    make({"a": vocabulary("my v1.2", "dog"), "b": vocabulary("train", "cat"), "c": vocabulary("items", "car")})
