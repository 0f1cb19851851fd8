"""Signals: the first one asks the run to end, a second Ctrl-C breaks it off."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from streamml.cli.exits import ExitCode

__all__ = ["Stop", "stop_on_signals"]

_SHOW_CURSOR = b"\x1b[?25h\n"


class Stop:
    """Whether the run was asked to end.

    Attributes:
        signal: name of the signal that asked, None before.
    """

    def __init__(self) -> None:
        self.signal: str | None = None


@contextmanager
def stop_on_signals(ask: Callable[[], None]) -> Iterator[Stop]:
    """While the block runs, SIGTERM and SIGINT call `ask`; a SIGINT after that ends the process with code 130.

    The process then ends at once, as in a crash: what the next start finds is the last checkpoint. After the block of a
    run that was asked to end, signals are ignored.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            if number == signal.SIGINT:
                if os.isatty(2):
                    os.write(2, _SHOW_CURSOR)
                os._exit(ExitCode.INTERRUPTED)
            return
        stop.signal = signal.Signals(number).name
        ask()

    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():  # what was stopped is about to end, and well
            signal.signal(number, handler if stop.signal is None else signal.SIG_IGN)
