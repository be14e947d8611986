"""One command: every verb is listed, and all of them end in the same exit statuses."""

import errno
import subprocess
import sys
import warnings
from multiprocessing import resource_sharer

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dataseg.cli import merge_shards
from dataseg.cli.__main__ import VERBS, main
from dataseg.cli.errors import exit_status
from dataseg.structures import UserError


def test_help_lists_every_verb_without_torch():
    program = "import sys; from dataseg.cli.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in shown.splitlines()[2:]]
    assert [verb for verb, _ in lines] == list(VERBS)
    assert all(text[0].isupper() and text.endswith(".") and len(text) < 105 for _, text in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of that kind")
def test_help_may_be_cut_short():
    with subprocess.Popen([sys.executable, "-m", "dataseg.cli"], stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_an_unknown_verb_is_named(capsys):
    assert main(["trian"]) == 2
    assert "there is no verb 'trian'" in capsys.readouterr().err


def wrapped() -> ValueError:
    """As jsonargparse wraps the errors of what it builds."""
    error = ValueError("Parser key ...")
    error.__cause__ = UserError("what to do")
    return error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("what to do"), 1, "error: what to do"),
        (wrapped(), 1, "error: what to do"),
        (UserError("Caught UserError in a worker.\nTraceback ...\nUserError: what to do"), 1, "error: what to do"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 1, "error: the disk is full (/full): make room."),
        (
            MisconfigurationException("no such\n  strategy"),
            1,
            "error: Lightning refuses the trainer's settings: no such s",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/its"), 1, "Permission denied: '/its'"),
        (OSError(errno.EROFS, "Read-only file system", "/its"), 1, "error: /its cannot be written to"),
        (MemoryError("Caught MemoryError in a worker.\nTraceback ...\nMemoryError"), 1, "memory ran out"),
        (
            RuntimeError("Caught _ArrayMemoryError in a worker.\nTraceback ...\nUnable to allocate 9 GiB"),
            1,
            "allocate 9",
        ),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), 1, "lower data.num_workers"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), 1, "a loading process was killed"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_one_rule_for_all_verbs(monkeypatch, capsys, error, status, words):
    def fail(arguments):
        raise error

    monkeypatch.setattr(merge_shards, "main", fail)
    assert main(["merge-shards"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_tensor_that_breaks_off_while_it_is_received_is_a_killed_loading_process(capsys):
    def receive() -> int:
        with open(__file__) as file:
            sent = resource_sharer.DupFd(file.fileno())
        resource_sharer.stop()
        return sent.detach()

    assert exit_status(receive) == 1
    assert "a loading process was killed" in capsys.readouterr().err


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch):
    def fail(arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(merge_shards, "main", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["merge-shards"])


def test_arguments_that_cannot_be_understood():
    with pytest.raises(SystemExit) as stop:
        main(["merge-shards", "--nix"])
    assert stop.value.code == 2


def test_warnings_to_the_user_are_one_line(monkeypatch):
    monkeypatch.setattr(merge_shards, "main", lambda arguments: 0)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert main(["merge-shards"]) == 0
    assert warnings.formatwarning("what to know", UserWarning, "file.py", 3) == "warning: what to know\n"
    assert "file.py:3" in warnings.formatwarning("old name", DeprecationWarning, "file.py", 3)


def test_a_killed_loading_process_is_told_in_a_line_even_where_nothing_can_be_raised(capsys, monkeypatch):
    class Late:
        def __init__(self, message):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    def verb() -> int:
        Late("DataLoader worker (pid 7) is killed by signal: Killed. ")
        _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)  # interrupted while it was made
        Late("another mistake")
        return 0

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    assert exit_status(verb) == 0
    told, _, other = capsys.readouterr().err.partition("Exception ignored")
    assert told == "warning: DataLoader worker (pid 7) is killed by signal: Killed. \n"
    assert "RuntimeError: another mistake" in other
    assert "AttributeError" not in other
