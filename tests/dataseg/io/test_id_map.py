"""Maps as runs: equal to NumPy's own run of every pixel, whatever the map."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dataseg.io.id_map import Runs

maps = arrays.arrays(
    st.sampled_from([np.uint8, np.int16, np.uint32]),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
    elements=st.integers(0, 2),
)


@given(maps)
def test_runs_say_all_of_a_map_and_no_neighbours_are_equal(values):
    runs = Runs.of(values)
    assert (runs.filled(runs.values) == values).all()
    assert runs.filled(runs.values).dtype == values.dtype
    assert runs.lengths.sum() == values.size
    assert (runs.lengths > 0).all()
    assert (runs.values[1:] != runs.values[:-1]).all()


@given(maps)
def test_counts_and_tables_by_run_equal_those_by_pixel(values):
    runs = Runs.of(values)
    counts = np.bincount(runs.values.astype(np.int64), weights=runs.lengths, minlength=3)
    assert (counts == np.bincount(values.ravel().astype(np.int64), minlength=3)).all()
    table = np.array([5, -1, 300], dtype=np.int16)
    moved = runs.filled(table[runs.values])
    assert (moved == table[values]).all()
    assert moved.shape == values.shape
    assert moved.flags.c_contiguous


def test_an_empty_map_has_no_runs():
    runs = Runs.of(np.zeros((0, 4), dtype=np.uint8))
    assert len(runs.values) == len(runs.lengths) == 0
    assert runs.filled(runs.values).shape == (0, 4)
