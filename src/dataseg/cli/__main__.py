"""The console command: ``dataseg <verb> ...`` or ``python -m dataseg.cli <verb> ...``.

Verbs that compute with a network and a data module (fit, validate) are LightningCLI's; each other verb is a module with
a ``main`` of its own, imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "ablation": "dataseg.cli.ablation",
    "data-check": "data_modules.inspection.check",
    "data-stats": "data_modules.inspection.stats",
    "own-data": "data_modules.inspection.own_data",
    "embed": "dataseg.cli.embed",
    "export": "dataseg.cli.export",
    "merge-shards": "dataseg.cli.merge_shards",
    "mini": "data_modules.mini.__main__",
    "predict": "dataseg.cli.predict",
    "replay": "dataseg.cli.replay",
    "report": "dataseg.cli.report",
    "score": "dataseg.cli.score",
}
"""Module of each verb. By name: this package imports no data module."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in VERBS:
        return int(importlib.import_module(VERBS[verb]).main(rest) or 0)
    from dataseg.cli.co_training import main as run

    if verb in ("-h", "--help"):
        print(f"verbs: fit, validate (below), {', '.join(sorted(VERBS))}\n")
    run([verb, *rest])
    return 0


if __name__ == "__main__":
    sys.exit(main())
