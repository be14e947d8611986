"""Locks between processes, also of several machines that share a file system.

filelock's leases: a file that only one process can make, that names machine and process, and that is touched while it
is held. NFS needs no lock service for that. The lock of a process that has died is taken over: on its own machine at
once, elsewhere when the file was not touched for `LEASE`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from dataseg.structures import UserError

log = logging.getLogger(__name__)

LEASE = 150.0
"""Seconds after which a lock that is not touched may be taken over; NFS shows times of change up to a minute late."""

BEAT = 2.0
"""Seconds between touches."""

_AT_ONCE = 0.2
"""Seconds in which a free lock, or that of a dead process on this machine, is had."""


@contextmanager
def alone(path: Path, task: str) -> Iterator[None]:
    """Hold a lock for as long as the block takes; wait while another process has it.

    Args:
        path: the lock's file, in a folder that is there.
        task: what the lock is for, for the message that another process is at it.

    Raises:
        OSError: the folder cannot be written to.
    """
    lease = _lease(path)
    try:
        lease.acquire(timeout=_AT_ONCE)
    except Timeout:
        log.warning("%s: waiting for %s", task, _holder(lease))
        lease.acquire()
    try:
        yield
    finally:
        lease.release()


@contextmanager
def reserved(path: Path, what: str, remedy: str) -> Iterator[SoftFileLease]:
    """Hold a lock for as long as the block takes; refuse if another process has it and is alive.

    Args:
        path, what, remedy: the lock's file; what it stands for and what to do, for the message.

    Yields:
        The lease; its ``compromise`` is set if it is lost: another process may then have it.

    Raises:
        UserError: it is held; names the machine and the process.
        OSError: the folder cannot be written to.
    """
    lease = _lease(path)
    touched = None
    while not lease.is_locked:
        try:
            lease.acquire(timeout=_AT_ONCE if touched is None else 1.5 * BEAT)
        except Timeout:
            before, touched = touched, _touched(path)
            if before is None:
                log.warning("%s is held by %s: looking whether it is alive", what, _holder(lease))
            elif touched not in (None, before):
                raise UserError(f"{what} is in use by {_holder(lease)}: {remedy}") from None
    try:
        yield lease
    finally:
        lease.release()


def _lease(path: Path) -> SoftFileLease:
    with suppress(FileNotFoundError):
        found = path.stat()
        if not found.st_size and time.time() - found.st_mtime > LEASE:
            path.unlink()  # names nobody: version 0.1 left its locks behind like that
    return SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=BEAT, thread_local=False)


def _holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
