"""``extends``: a configuration file that says only what differs from another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dataseg.config.renamed import refuse_old_names
from dataseg.structures import UserError

KEY = "extends"


def expand(args: Sequence[str]) -> list[str]:
    """Put the file that each ``--config`` extends ahead of it, and what that one extends ahead of that.

    Args:
        args: of the command line; ``--config FILE`` and ``--config=FILE`` are looked at.

    Raises:
        UserError: a file that is missing, is no YAML, or extends itself; or a setting that has another name today.
    """
    expanded: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--config":
            word = f"--config={next(words, '')}"
        name, _, value = word.partition("=")
        if name.startswith("--data."):
            refuse_old_names({name.removeprefix("--data.").removeprefix("init_args.").rstrip("+"): value}, word)
        files = lineage(Path(value)) if name == "--config" else []
        expanded += [f"--config={path}" for path in files] or [word]
        if len(files) > 1:
            expanded.append(f"--{KEY}=null")  # done: the configuration that is printed or saved stands alone
    return expanded


def lineage(path: Path) -> list[Path]:
    """The files that ``path`` builds on, the most general first, itself last; errors as `expand`."""
    found = [path]
    while True:
        parent = _parent(found[0])
        if parent is None:
            return found
        if any(parent.samefile(other) for other in found if other.exists() and parent.exists()):
            raise UserError(f"{path}: extends itself, by way of {', '.join(str(p) for p in found)}")
        found.insert(0, parent)


def _parent(path: Path) -> Path | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        others = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        choices = f"; {path.parent} has {others}" if others else ""
        raise UserError(f"{path}: no such configuration file{choices}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        return None
    data = content.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("init_args"), Mapping):
        refuse_old_names(data["init_args"], str(path))
    parent = content.get(KEY)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{path}: {KEY} must be the path of one file, got {parent!r}")
    return None if parent is None else path.parent / parent
