"""Requests to stop: SIGTERM and SIGUSR1, as clusters send them, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Preempted(SystemExit):
    """The run was asked to stop and can be resumed; ends the process with exit status 0."""


class StopSignals:
    """Notes a signal; the run acts on it between steps.

    Lightning's own handler sends to other ranks from within, amid other transfers.

    Attributes:
        received: number of the newest signal; None = this process was not asked to stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupt: Any = None  # what Ctrl-C did before

    def listen(self) -> None:
        """Take the signals over from whoever has them; in the main thread, the only one that may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                before = signal.signal(number, self._note)
                if number == signal.SIGINT and before != self._note:
                    self._interrupt = before

    def restore_interrupt(self) -> None:
        """Let Ctrl-C do what it did before."""
        if self._interrupt is not None:
            signal.signal(signal.SIGINT, self._interrupt)
            self._interrupt = None

    @property
    def sender(self) -> str:
        """Who asked to stop, for people."""
        return "another rank" if self.received is None else signal.Signals(self.received).name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == number:  # Ctrl-C once more: at once
            raise KeyboardInterrupt
        self.received = number
