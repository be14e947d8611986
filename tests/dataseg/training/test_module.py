"""What the module makes of datasets' vocabularies, before any training."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch.strategies import FSDPStrategy

from dataseg.checkpoint.load import load_run
from dataseg.losses import Criterion
from dataseg.structures import ClassEmbeddings, ClassSpec, DatasetSpec, UserError, Vocabulary
from dataseg.training.module import CoTrainedSegmenter


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
        classes = module.classes(name)
        assert classes.num_classes == len(expected)
        assert classes.vectors.equal(Text()(expected).vectors)
    assert len(module.class_embeddings) == 2


@pytest.mark.parametrize("option", [{"classifier": "learnt"}, {"background": "separate"}])
def test_what_is_learnt_by_name_needs_names_of_its_own(option):
    for first, second in (("mine", "mine"), ("mine", "my v1.2"), ("mine", "train")):
        with pytest.raises(UserError, match="rename them"):
            make({"a": vocabulary(first, "dog"), "b": vocabulary(second, "cat")}, **option)
    make({"a": vocabulary("mine", "dog"), "b": vocabulary("yours", "cat")}, **option)


@pytest.mark.parametrize(
    ("trained", "option"),
    [({}, {}), ({"classifier": "learnt"}, {"classifier": "learnt"}), ({}, {"classifier": "learnt"})],
)
def test_weights_of_a_run_are_started_from(tmp_path, trained, option, caplog):
    caplog.set_level("INFO")
    before = make({"a": vocabulary("mine", "dog")}, **trained)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": before.state_dict(), "vocabularies": {}, "global_step": 3}, path)
    after = make({"a": vocabulary("mine", "dog"), "b": vocabulary("yours", "cat")}, weights=path, **option)
    state = after.network.state_dict()
    assert all(state[name].equal(value) for name, value in before.network.state_dict().items())
    new = set() if not option else {"yours"} if trained else {"mine", "yours"}
    assert set(state) - set(before.network.state_dict()) == {f"classifier.class_vectors.{v}.weight" for v in new}
    assert ("start anew: " + ", ".join(sorted(new)) in caplog.text) == bool(new)
    with pytest.raises(UserError, match=r"last\.ckpt: its tensors do not fit the configured network: \d+ "):
        load_run(tiny.network(hidden_dim=64), path)
    with pytest.raises(UserError, match=r"published weights: .*last\.ckpt has none"):
        make({"a": vocabulary("mine", "dog")}, weights=path, classifier="linear")


def test_any_name_will_do_for_text():
    make({"a": vocabulary("my v1.2", "dog"), "b": vocabulary("train", "cat"), "c": vocabulary("items", "car")})


def test_fsdp1_is_refused():
    module = make({"a": vocabulary("mine", "dog")})
    module._trainer = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true")
    with pytest.raises(UserError, match="take STRATEGY=fsdp"):
        module.configure_model()
