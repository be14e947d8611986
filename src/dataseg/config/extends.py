"""Configuration files by name, and ``extends``: a file that says only what differs from another one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dataseg.config.renamed import refuse_old_names
from dataseg.io.shipped import CONF, find
from dataseg.structures import UserError

KEY = "extends"

_FILE_OF_CONF = re.compile(r"(?<![^\s=:,'\"{\[])conf/[^\s,'\"}\]]+\.yaml")
"""Also within a value: ``--data.val={coco: conf/data/coco_val.yaml}``."""


def expand(args: Sequence[str]) -> list[str]:
    """Put the files of an experiment's name, and the file that each ``--config`` extends, ahead of it.

    Args:
        args: of the command line; ``--config FILE``, ``--config=FILE`` and likewise ``--exp`` are looked at. ``--exp``
            stands for files, see `named`, unless a ``--config`` comes before it: then it is only a name. Files of
            ``conf/`` in any argument are found as `dataseg.io.shipped.find` does.

    Raises:
        UserError: a file that is missing, is no YAML, or extends itself; or a setting that has another name today.
    """
    expanded: list[str] = []
    words = (_FILE_OF_CONF.sub(lambda path: str(find(path[0])), word) for word in args)
    for word in words:
        if word in ("--config", "--exp"):
            word = f"{word}={next(words, '')}"
        name, _, value = word.partition("=")
        if name.startswith("--data."):
            refuse_old_names({name.removeprefix("--data.").removeprefix("init_args.").rstrip("+"): value}, word)
        heads = [Path(value)] if name == "--config" else []
        if name == "--exp" and not any(other.startswith("--config=") for other in expanded):
            heads = named(value)
        files = [path for head in heads for path in lineage(head)]
        expanded += [f"--config={path}" for path in files]
        if name != "--config":
            expanded.append(word)
        if len(files) > 1:
            expanded.append(f"--{KEY}=null")  # done: the configuration that is printed or saved stands alone
    return expanded


def named(experiment: str) -> list[Path]:
    """Files of an experiment and its overlays: ``mini_all+ema`` is ``conf/exp/mini_all.yaml``, ``conf/with/ema.yaml``.

    Those of the working directory go before those that the project ships, see `dataseg.io.shipped.find`.
    """
    name, *overlays = experiment.split("+")
    return [Path(f"conf/exp/{name}.yaml"), *(Path(f"conf/with/{overlay}.yaml") for overlay in overlays)]


def lineage(path: Path) -> list[Path]:
    """The files that ``path`` builds on, the most general first, itself last; errors as `expand`."""
    found = [find(path)]
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
        folders = [path.parent, _shipped_folder(path)]
        others = ", ".join(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")}))
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
    if parent is None:
        return None
    shipped = _shipped_folder(path) / parent  # as if the file lay among the project's own
    return shipped if shipped.exists() and not (path.parent / parent).exists() else path.parent / parent


def _shipped_folder(path: Path) -> Path:
    folder = CONF / path.parent.name
    return folder if folder.is_dir() else CONF
