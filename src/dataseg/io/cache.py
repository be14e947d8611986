"""Where things made once are kept: annotation indexes, unpacked inner archives, text vectors."""

from __future__ import annotations

import os
import stat
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


def foreign(path: Path, source: Path) -> str | None:
    """Who else could have made something in a shared cache, for messages; None if it can be trusted.

    Trusted are this user, root, the owner of the cache, and the owner of what it was made from, as long as nobody else
    may write to it.

    Args:
        path: in the cache; what lies in it, if it is a folder, is looked at too.
        source: file that it was made from.
    """
    trusted = {os.getuid(), 0, cache_folder().stat().st_uid, source.stat().st_uid}
    for entry in (path, *(path.iterdir() if path.is_dir() else ())):
        status = entry.lstat()
        if status.st_uid not in trusted:
            return f"{entry} belongs to user {status.st_uid}"
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{entry} can be written to by others"
    return None
