"""The exit status of every verb, and what the user is told when one cannot go on.

0: done. 1: the verb's own "no" (a run failed, an image could not be read, data have errors), or an error that the user
can mend, told in one line. 2: arguments that cannot be understood. 130: Ctrl-C. Anything else is a mistake of the
program and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable

from dataseg.structures import UserError
from dataseg.structures.errors import causes, loading_process_died

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = re.compile(r"MemoryError|allocate memory|[Oo]ut of memory|not enough memory")
_PLACES = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What the system says of a folder or file named in the arguments that cannot be written."""


def exit_status(verb: Callable[[], int]) -> int:
    """Run a verb and return the status to exit with; an error that the user can mend goes to stderr."""
    sys.unraisablehook = _tell_ignored
    try:
        return verb()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1


def _tell_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """PyTorch's signal handler tells of a loading process that was killed, wherever the program is just then.

    If that is where Python can raise nothing, the next sample that is missed ends the run. If it is where the loading
    processes are being started, the run has ended, and PyTorch's clearing up misses what was not made yet.
    """
    error = ignored.exc_value
    if error is not None and loading_process_died(error):
        print(f"warning: {error}", file=sys.stderr)
    elif not (isinstance(error, AttributeError) and type(error.obj).__name__ == "_MultiProcessingDataLoaderIter"):
        sys.__unraisablehook__(ignored)


def message_of(error: BaseException) -> str | None:
    """What the user is told; None for an error that is not the user's to mend.

    A `UserError` counts wherever an error goes back to one, as jsonargparse's do.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}: make room. Checkpoints are whole: a run goes on with RESUME=auto"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which not every verb imports
        return f"Lightning refuses the trainer's settings: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename} cannot be written to: its file system is read-only. Take another folder"
    if (short := next(filter(_is_out_of_memory, causes(error)), None)) is not None or loading_process_died(error):
        what = str(short or error).strip().rpartition("\n")[2][:200]  # of a loading process, without its traceback
        return (
            f"memory ran out, or a loading process was killed ({what}): lower data.num_workers, data.prefetch_factor or"
            " data.batch_size. Checkpoints are whole: a run goes on with RESUME=auto"
        )
    cause = next((e for e in causes(error) if isinstance(e, UserError)), None)
    if cause is not None:  # from a loading process it comes with that process's traceback before it
        return str(cause).rpartition("UserError: ")[2].strip()
    return str(error) if isinstance(error, (*_PLACES, ArgumentError)) else None


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's errors of its own memory are RuntimeErrors, as are most that it passes on from a loading process."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
