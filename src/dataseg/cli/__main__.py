"""The console command: ``dataseg <verb> ...`` or ``python -m dataseg.cli <verb> ...``."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

VERBS = {
    "fit": "dataseg.cli.co_training",
    "eval": "dataseg.cli.co_training",
    "plan": "dataseg.cli.plan",
    "ablation": "dataseg.cli.ablation",
    "report": "dataseg.cli.report",
    "export": "dataseg.cli.export",
    "predict": "dataseg.cli.predict",
    "score": "dataseg.cli.score",
    "embed": "dataseg.cli.embed",
    "merge-shards": "dataseg.cli.merge_shards",
    "replay": "dataseg.cli.replay",
    "data-check": "data_modules.inspection.check",
    "data-stats": "data_modules.inspection.stats",
    "demo": "data_modules.inspection.demo",
    "own-data": "data_modules.inspection.own_data",
    "mini": "data_modules.mini.command",
}
"""Module of each verb, whose ``main`` takes the arguments. By name: this package imports no data module."""

_SUBCOMMANDS = {"fit": "fit", "eval": "validate"}
"""Verbs that are sub-commands of one command line, and what Lightning calls them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status, see `dataseg.cli.errors`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    given, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if {"-h", "--help"} & {given, *rest} and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dataseg --help | head` ends as other commands do
    verb = "eval" if given == "validate" else given
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    from dataseg.cli.errors import exit_status  # not at the top: help needs no torch
    from dataseg.io.shipped import require_own_packages

    warnings.formatwarning = _format_warning  # type: ignore[assignment]  # it needs the message alone
    subcommand = [_SUBCOMMANDS[verb]] if verb in _SUBCOMMANDS else []

    def run() -> int:
        require_own_packages()
        module = importlib.import_module(VERBS[verb])
        warnings.formatwarning = _format_warning  # not earlier: Lightning sets its own when it is imported
        status: int = module.main([*subcommand, *rest])
        return status

    return exit_status(run)


_format = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What is said to the user in one line; what is said to programmers with the line of code that it is about."""
    if issubclass(category, UserWarning):
        return f"warning: {message}\n"
    return _format(message, category, filename, lineno, line)


def usage() -> str:
    """All verbs, each with the first line of its module's docstring; the modules are not imported."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {_first_line(module)}" for verb, module in VERBS.items()]
    return "\n".join(["usage: dataseg <verb> ...    (dataseg <verb> --help tells more)", "", *lines])


def _first_line(module: str) -> str:
    package, *parts = module.split(".")
    (folder, *_) = getattr(find_spec(package), "submodule_search_locations")  # noqa: B009
    source = Path(folder, *parts).with_suffix(".py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
