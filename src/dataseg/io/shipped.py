"""Files that come with the project, ``conf/`` and ``data_modules/vocabularies/``, found from any working directory.

``src/dataseg/conf`` links to the folder at the top, and the wheel holds the files themselves: `CONF` is right in both.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dataseg.structures import UserError

_PACKAGE = Path(__file__).resolve().parents[1]

CONF = _PACKAGE / "conf"

TOP_LEVEL = ("data_modules", "callbacks")
"""Packages beside ``dataseg``. They keep these names, which stand in YAML files, checkpoints and exported models."""


def find(path: Path | str) -> Path:
    """A file or folder, or the one that the project ships under this name, such as ``conf/exp/mini_all.yaml``.

    Args:
        path: what is there goes first; ``~`` is the home directory.

    Returns:
        ``path`` itself if there is neither.
    """
    path = Path(path).expanduser()
    if not path.exists() and path.parts[0] in ("conf", *TOP_LEVEL):
        root = _PACKAGE if path.parts[0] == "conf" else _own(path.parts[0]).parent
        return root / path if (root / path).exists() else path
    return path


def require_own_packages() -> None:
    """Refuse to go on with another project's package of a name that is ours.

    Raises:
        UserError: one of `TOP_LEVEL` would be imported from elsewhere.
    """
    for name in TOP_LEVEL:
        spec, own = find_spec(name), _own(name)
        found = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()] if spec else []
        if own not in found:
            raise UserError(
                f"Python imports {name!r} from {found[0] if found else 'nowhere'}, not from {own}, where dataseg's is:"
                " another project has a package of this name. Run from another folder, or install dataseg in an"
                " environment of its own (pipx, uv tool, venv)"
            )


def _own(name: str) -> Path:
    beside = _PACKAGE.parent / name  # installed; in a checkout dataseg lies in src/
    return beside if beside.is_dir() else _PACKAGE.parents[1] / name
