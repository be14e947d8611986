import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "fixed", derandomize=True
)  # the same examples each time; others: --hypothesis-profile=default
settings.load_profile("fixed")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
torch.set_num_threads(1)  # tests run side by side

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Small real samples in the official layouts; they are not part of the project."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real samples at {path}")
    return path
