"""Where things made once are kept: annotation indexes, unpacked inner archives, text vectors."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DATASEG_CACHE"


def cache_folder(kind: str = "") -> Path:
    """``$DATASEG_CACHE/{kind}``, else ``dataseg/{kind}`` in the user's cache folder; it may not exist yet.

    Never a place inside the datasets: those are often read-only and shared.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser() / kind
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "dataseg" / kind


def use_cache(folder: Path | str) -> None:
    """Keep everything below ``folder`` from now on; in loading processes started later too."""
    os.environ[VARIABLE] = str(Path(folder).expanduser().absolute())
