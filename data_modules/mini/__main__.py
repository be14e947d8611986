"""``dataseg mini --out mini_suite``: make the mini suite, unless it is there already."""

import argparse
from pathlib import Path

from data_modules.mini.suite import MiniSpec, ensure


def main() -> None:
    parser = argparse.ArgumentParser(prog="dataseg mini", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mini_suite"), help="folder to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=MiniSpec.seed)
    parser.add_argument("--size", type=int, default=MiniSpec.size, help="shorter side, pixels (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        root = ensure(arguments.out, MiniSpec(seed=arguments.seed, size=arguments.size))
    except ValueError as error:
        parser.error(str(error))
    print(f"mini suite: {root}")


if __name__ == "__main__":
    main()
