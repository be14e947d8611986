import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_tools

from dataseg.io import rle
from dataseg.io.rle import encode_masks


def pycocotools_rles(masks):
    return [mask_tools.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(0, 9), st.integers(1, 20), st.integers(1, 20)),
    fill=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    blocks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_pycocotools(size, fill, blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(size, generator=generator) < fill
    if blocks:
        masks = masks.repeat_interleave(3, 1).repeat_interleave(5, 2)
    assert encode_masks(masks) == pycocotools_rles(masks)
    assert encode_masks(masks.transpose(1, 2)) == pycocotools_rles(masks.transpose(1, 2))  # not contiguous


def test_many_chunks_and_other_devices(monkeypatch):
    masks = torch.rand(7, 30, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = pycocotools_rles(masks)
    monkeypatch.setattr(rle, "CHUNK_BYTES", 2600)
    assert encode_masks(masks) == expected
    monkeypatch.setattr(rle, "_changes_on_cpu", rle._changes_on_gpu)  # the same code runs on a GPU
    assert encode_masks(masks) == expected


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"bool \[K, H, W\], got torch.float32 \[2, 3\]"):
        encode_masks(torch.zeros(2, 3))
