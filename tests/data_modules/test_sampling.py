from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.co_training import active_ratios
from data_modules.sampling import blocks, dataset_of, position_at, sample_of, tempered
from dataseg.structures import UserError

RATIOS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([1, 2, 4, 0.5, 0.25, 1.5]), min_size=1)


def test_ratios_are_read_as_decimals():
    assert blocks({"ade": 1, "coco": 4, "o365": 4}) == {"ade": 1, "coco": 4, "o365": 4}
    assert blocks({"b": 0.1, "a": 0.3}) == {"a": 3, "b": 1}
    assert blocks({"a": 10, "b": 5}) == {"a": 2, "b": 1}


@pytest.mark.parametrize("ratios", [{}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": 1, "b": 0.00001}])
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match="ratio"):
        blocks(ratios)


def test_tempered_ratios():
    ratios = {"ade": 1, "coco": 4, "o365": 9}
    assert tempered(ratios, 1) == ratios
    assert tempered({"a": 0.123456, "b": 7}, 1) == {"a": 0.123456, "b": 7}
    assert blocks(tempered({"a": 0.3, "b": 7.77}, 0)) == {"a": 1, "b": 1}
    assert blocks(tempered(ratios, 0.5)) == {"ade": 1, "coco": 2, "o365": 3}
    assert tempered({"a": 2, "b": 4}, 0.5) == {"a": 1, "b": 1.41}
    sizes = {"ade": 20210, "coco": 118287, "o365": 1742289}  # out of proportion themselves
    assert active_ratios(dict.fromkeys(sizes), sizes, 0.5) == {"ade": 1, "coco": 2.42, "o365": 9.28}
    with pytest.raises(UserError, match="must be a positive number, got -1"):
        active_ratios({"a": None, "b": None}, {"a": -1, "b": -2}, 0.5)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ratio_exponent"):
            tempered(ratios, wrong)
    with pytest.raises(ValueError, match="too large"):
        tempered(ratios, 1e6)


@given(RATIOS, st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_tempered_ratios_always_come_out_even(ratios, exponent):
    found = tempered(ratios, exponent)
    wanted = {name: (ratio / min(ratios.values())) ** exponent for name, ratio in ratios.items()}
    assert {name: ratio / min(found.values()) for name, ratio in found.items()} == pytest.approx(wanted, abs=0.006)
    assert sum(blocks(found).values()) < 10_000


@given(RATIOS, st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_quotas_are_exact_in_every_block_and_positions_count_up(ratios, seed, block):
    quotas = blocks(ratios)
    length = sum(quotas.values())
    steps = [dataset_of(seed, step, ratios) for step in range(block * length, (block + 1) * length)]
    assert Counter(name for name, _ in steps) == quotas
    for name, quota in quotas.items():
        assert [p for n, p in steps if n == name] == list(range(block * quota, (block + 1) * quota))
    for offset, (name, position) in enumerate(steps):
        assert position_at(seed, block * length + offset, ratios, name) == position


@given(st.integers(0, 2**40), st.integers(1, 60), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_every_epoch_visits_every_image_once(seed, n, epoch):
    visited = [sample_of(seed, "coco", p, n) for p in range(epoch * n, (epoch + 1) * n)]
    assert sorted(index for index, _ in visited) == list(range(n))
    assert len({s for _, s in visited}) == n
    assert all(0 <= s < 2**63 for _, s in visited)


def test_order_depends_on_seed_data_set_and_epoch_but_not_on_the_order_of_names():
    def epoch(seed, name, start):
        return [sample_of(seed, name, p, 100)[0] for p in range(start, start + 100)]

    orders = [epoch(0, "a", 0), epoch(1, "a", 0), epoch(0, "b", 0), epoch(0, "a", 100)]
    assert len({tuple(o) for o in orders}) == 4
    one = [dataset_of(3, s, {"a": 1, "b": 2}) for s in range(30)]
    assert one == [dataset_of(3, s, {"b": 2, "a": 1}) for s in range(30)]


def test_golden_values():
    """Any change here changes every run: say so in the changelog."""
    ratios = {"ade": 1, "coco": 4, "o365": 4}
    assert [dataset_of(0, s, ratios)[0][0] for s in range(18)] == list(GOLDEN_STEPS)
    assert [sample_of(0, "coco", p, 1000) for p in (0, 1, 999, 1000)] == GOLDEN_SAMPLES


GOLDEN_STEPS = "oacoococcooacococc"
GOLDEN_SAMPLES = [
    (850, 2053470769633682522),
    (382, 6353755789619418746),
    (106, 2661313625896182947),
    (601, 1793900533499147506),
]


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no image"):
        sample_of(0, "coco", 0, 0)
