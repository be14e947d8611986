"""Make one file of a sharded checkpoint.

``dataseg merge-shards FOLDER FILE``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from dataseg.checkpoint.consolidate import consolidate


def main(args: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="dataseg merge-shards", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(args)
    torch.save(consolidate(options.folder), options.file)
    return 0
