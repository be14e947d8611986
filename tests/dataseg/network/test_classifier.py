import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dataseg.network import LinearClassifier, PerVocabularyClassifier, TextClassifier, classifier_for
from dataseg.structures import ClassEmbeddings, UserError


def embeddings(names_per_class, dim=12):
    index = torch.repeat_interleave(torch.arange(len(names_per_class)), torch.tensor(names_per_class))
    return ClassEmbeddings(functional.normalize(torch.randn(len(index), dim), dim=1), index)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 1000))
def test_equals_cosine_over_temperature_best_of_synonyms(names_per_class, seed):
    torch.manual_seed(seed)
    classes = embeddings(names_per_class)
    classifier = TextClassifier(8, 12)
    queries = torch.randn(2, 3, 8)
    logits = classifier(queries, classes)
    assert logits.shape == (2, 3, len(names_per_class) + 1)
    embedded = classifier.projection(queries)
    for c in range(len(names_per_class)):
        of_class = classes.vectors[classes.class_index == c]
        cosines = torch.stack([functional.cosine_similarity(embedded, v, dim=-1) for v in of_class])
        torch.testing.assert_close(logits[..., c], cosines.amax(0) / 0.07, rtol=1e-4, atol=1e-4)
    background = functional.cosine_similarity(embedded, classifier.background, dim=-1) / 0.07
    torch.testing.assert_close(logits[..., -1], background, rtol=1e-4, atol=1e-4)


def test_background_is_shared_by_vocabularies():
    classifier = TextClassifier(8, 12)
    queries = torch.randn(1, 4, 8)
    one, other = classifier(queries, embeddings([1, 2])), classifier(queries, embeddings([1] * 9))
    torch.testing.assert_close(one[..., -1], other[..., -1])
    assert sum(p.numel() for p in classifier.parameters()) == 8 * 12 + 12 + 12 + 1, "nothing depends on a vocabulary"


def test_scale_is_learnt_and_bounded():
    classifier = TextClassifier(8, 12)
    torch.testing.assert_close(classifier.scale, torch.tensor([1 / 0.07]))
    classifier(torch.randn(1, 2, 8), embeddings([1, 1])).sum().backward()
    assert classifier.log_scale.grad.abs() > 0
    with torch.no_grad():
        classifier.log_scale.fill_(math.log(1e6))
    torch.testing.assert_close(classifier.scale, torch.tensor([100.0]))
    classifier.log_scale.grad = None
    classifier.scale.sum().backward()
    assert classifier.log_scale.grad > 0, "it can come back"
    assert classifier(torch.randn(5, 2, 8), embeddings([1, 3])).abs().max() <= 100.01


def test_only_the_best_synonym_learns():
    classes = ClassEmbeddings(torch.eye(3).requires_grad_(), torch.tensor([0, 0, 1]))
    classifier = TextClassifier(3, 3)
    with torch.no_grad():
        classifier.projection.weight.copy_(torch.eye(3))
        classifier.projection.bias.zero_()
    classifier(torch.tensor([[0.9, 0.1, 0.0]]), classes)[..., 0].sum().backward()
    assert classes.vectors.grad[0].any()
    assert not classes.vectors.grad[1].any()


@pytest.mark.parametrize("names", [[1, 1, 1], [2, 1]])
def test_float32_under_autocast(names):
    classifier, classes, queries = TextClassifier(8, 12), embeddings(names), torch.randn(2, 4, 8)
    expected = classifier(queries, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(queries, classes)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def test_width_of_text_embeddings_is_checked():
    with pytest.raises(ValueError, match=r"width 12 .* have 5"):
        TextClassifier(8, 12)(torch.randn(1, 2, 8), embeddings([1, 1], dim=5))


def test_linear_classifier_serves_its_own_number_of_classes():
    classifier = LinearClassifier(8, 3)
    assert classifier(torch.randn(2, 5, 8), embeddings([2, 1, 1])).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="knows 3 classes, but the vocabulary has 2"):
        classifier(torch.randn(2, 5, 8), embeddings([1, 1]))


# ------------------------------------------------------------------------------- vectors of each vocabulary


def named(name, count, dim=12):
    return ClassEmbeddings(torch.full((count, dim), torch.nan), torch.arange(count), count, name)


def test_learnt_classes_take_the_place_of_text():
    classifier, queries = PerVocabularyClassifier(TextClassifier(8, 12), {"a": 4, "b": 2}, ()), torch.randn(2, 3, 8)
    logits = classifier(queries, named("a", 4))
    embedded, own = classifier.projection(queries), classifier.class_vectors["a"].weight
    expected = functional.cosine_similarity(embedded[..., None, :], own, dim=-1) / 0.07
    torch.testing.assert_close(logits[..., :-1], expected, rtol=1e-4, atol=1e-4)
    two_names = ClassEmbeddings(torch.randn(3, 12), torch.tensor([0, 0, 1]), 2, "b")
    assert classifier(queries, two_names).shape == (2, 3, 3), "one vector a class, whatever the number of its names"
    for unknown in (named("c", 4), named("a", 5), named("", 4)):
        with pytest.raises(UserError, match=r"cannot be classified.*a \(4 classes\), b \(2 classes\)"):
            classifier(queries, unknown)


def test_separate_backgrounds_start_alike_and_differ_once_learnt():
    shared = TextClassifier(8, 12)
    separate = PerVocabularyClassifier(shared, {}, ["a", "b"])
    assert "background" not in separate.state_dict()
    queries, a, b = torch.randn(2, 3, 8), *(embeddings([1, 1]) for _ in "ab")
    a.vocabulary, b.vocabulary = "a", "b"
    for classes in (a, b, embeddings([1, 1])):
        assert torch.equal(separate(queries, classes)[..., -1], shared(queries, classes)[..., -1])
    separate(queries, a)[..., -1].sum().backward()
    assert separate.backgrounds["a"].grad.abs().sum() > 0
    assert not separate.backgrounds["b"].grad.any()
    with torch.no_grad():
        separate.backgrounds["a"] += 1
    assert not torch.equal(separate(queries, a)[..., -1], separate(queries, b)[..., -1])


def test_every_step_has_the_same_parameters():
    classifier = PerVocabularyClassifier(TextClassifier(8, 12), {"a": 4, "b": 2}, ["a", "b"])
    classifier(torch.randn(1, 2, 8), named("b", 2)).sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    assert not classifier.class_vectors["a"].weight.grad.any()
    assert classifier.class_vectors["b"].weight.grad.any()


def test_state_of_other_vocabularies():
    def make(**vocabularies):
        return PerVocabularyClassifier(TextClassifier(8, 12), vocabularies, vocabularies)

    trained, here = make(a=4, b=2), make(b=2, c=3)
    state = {f"net.{name}": value for name, value in trained.state_dict().items()}
    assert here.align(state, "net.") == ["c"]
    start = here.class_vectors["c"].weight.clone()
    here.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    assert torch.equal(here.class_vectors["b"].weight, trained.class_vectors["b"].weight)
    assert torch.equal(here.class_vectors["c"].weight, start)
    classifier_for(TextClassifier(8, 12), trained.state_dict()).load_state_dict(trained.state_dict())
    plain = TextClassifier(8, 12)
    assert classifier_for(plain, plain.state_dict()) is plain
    backgrounds = PerVocabularyClassifier(TextClassifier(8, 12), {}, ["b", "c"])
    for other in (plain, backgrounds):
        text = {f"net.{name}": value for name, value in other.state_dict().items()}
        assert here.align(text, "net.") == []
        with pytest.raises(RuntimeError, match="class_vectors"):
            here.load_state_dict({name.removeprefix("net."): value for name, value in text.items()})
    assert here.align(text, "net.", to_train=True) == ["b", "c"]
    here.load_state_dict({name.removeprefix("net."): value for name, value in text.items()})


def test_centred_vectors():
    text, classes, queries = TextClassifier(8, 12), embeddings([1, 2, 1]), torch.randn(2, 4, 8)
    others = embeddings([1] * 5).vectors
    text.center_on(torch.cat([classes.vectors, others]))
    mean = torch.cat([classes.vectors, others]).mean(0)
    plain = TextClassifier(8, 12)
    plain.load_state_dict({name: value for name, value in text.state_dict().items() if name != "center"})
    centered = ClassEmbeddings(functional.normalize(classes.vectors - mean, dim=1), classes.class_index)
    torch.testing.assert_close(text(queries, classes), plain(queries, centered))
    found = classifier_for(TextClassifier(8, 12), text.state_dict())
    found.load_state_dict(text.state_dict())
    assert torch.equal(found(queries, classes), text(queries, classes))
    learnt = PerVocabularyClassifier(text, {"a": 4}, ())
    state = {f"net.{name}": value for name, value in text.state_dict().items()}
    assert learnt.align(state, "net.", to_train=True) == ["a"]
    learnt.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
