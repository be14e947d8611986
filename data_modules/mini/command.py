"""Make the mini suite, unless it is there already.

``dataseg mini --out mini_suite``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_modules.mini.suite import DEFAULT_ROOT, MiniSpec, ensure


def main(args: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="dataseg mini", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_ROOT, help="folder to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=MiniSpec.seed)
    parser.add_argument("--size", type=int, default=MiniSpec.size, help="shorter side, pixels (default: %(default)s)")
    options = parser.parse_args(args)
    print(f"mini suite: {ensure(options.out, MiniSpec(seed=options.seed, size=options.size))}")
    return 0
