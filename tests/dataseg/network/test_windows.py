import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.network.backbones.windows import crop, cut_windows, join_windows, pad_to_windows


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), side=st.integers(1, 4))
def test_windows_round_trip(batch, height, width, side):
    x = torch.arange(batch * height * width * 2.0).reshape(batch, height, width, 2)
    padded = pad_to_windows(x, side)
    rows, columns = -(-height // side), -(-width // side)
    assert padded.shape == (batch, rows * side, columns * side, 2)
    assert padded.sum() == x.sum()
    windows = cut_windows(padded, side)
    assert windows.shape == (batch * rows * columns, side * side, 2)
    assert torch.equal(windows[0].unflatten(0, (side, side)), padded[0, :side, :side])
    assert torch.equal(windows[-1].unflatten(0, (side, side)), padded[-1, -side:, -side:])
    joined = join_windows(windows, side, tuple(padded.shape[:3]))
    assert torch.equal(joined, padded)
    assert torch.equal(crop(joined, height, width), x)
