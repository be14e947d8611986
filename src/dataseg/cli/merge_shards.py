"""Make one file of a sharded checkpoint: ``dataseg merge-shards FOLDER FILE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dataseg.checkpoint.consolidate import consolidate
from dataseg.structures import UserError


def main(args: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 if the folder cannot be read."""
    parser = argparse.ArgumentParser(description="make one file of a sharded checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(args)
    try:
        torch.save(consolidate(options.folder), options.file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
