"""A small campaign of injected faults; the large one is ``python tests/faults.py --count 1000``."""

import pytest
from faults import KINDS, campaign


@pytest.mark.slow
def test_every_fault_ends_as_promised(tmp_path):
    kinds = [kind for kind in KINDS if kind != "full disk while checkpointing"]  # needs a file system of its own
    result = campaign(2 * len(KINDS), seed=7, work=tmp_path, small=None, resumed_share=0.5)
    assert not result.broken
    assert all(result.runs[kind] == 2 for kind in kinds)
