"""Exit codes, and how an error becomes one."""

from __future__ import annotations

import enum

from streamml.errors import (
    ConnectorError,
    ModelError,
    PlanError,
    RecordError,
    StateError,
    StreamMLError,
    UnsupportedError,
)

__all__ = ["CODES_HELP", "ExitCode", "exit_code", "reader_has_gone"]


class ExitCode(enum.IntEnum):
    """What the process says at its end."""

    DONE = 0
    """Finished, or stopped cleanly by SIGTERM or Ctrl-C."""
    UNEXPECTED = 1
    """Something that nobody foresaw: an error in a job's code, or in streamml."""
    USAGE = 2
    """Wrong usage, or a plan that can't work."""
    CONNECTOR = 3
    """An input or output can't be opened, read or written."""
    STATE = 4
    """State or a checkpoint can't be used or written."""
    MODEL = 5
    """A model can't be loaded, or does not fit."""
    INTERRUPTED = 130
    """Broken off by a second Ctrl-C; state and output are those of the last checkpoint."""


_OF_ERROR: tuple[tuple[type[StreamMLError], ExitCode], ...] = (
    (PlanError, ExitCode.USAGE),
    (UnsupportedError, ExitCode.USAGE),
    (RecordError, ExitCode.USAGE),
    (ConnectorError, ExitCode.CONNECTOR),
    (StateError, ExitCode.STATE),
    (ModelError, ExitCode.MODEL),
)

CODES_HELP = (
    "Exit codes: 0 finished or stopped cleanly, 1 unexpected error, 2 wrong usage or plan, 3 input or output, "
    "4 state or checkpoint, 5 model, 130 broken off by a second Ctrl-C."
)


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code of an error.

    >>> exit_code(PlanError("no key")).value, exit_code(KeyError("x")).value
    (2, 1)
    """
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return ExitCode.CONNECTOR
    return next((code for kind, code in _OF_ERROR if isinstance(error, kind)), ExitCode.UNEXPECTED)


def reader_has_gone(error: BaseException) -> bool:
    """Return whether an error only says that the reader of our output has closed its end, as `head` does.

    >>> reader_has_gone(BrokenPipeError()), reader_has_gone(ConnectorError("no such file"))
    (True, False)
    """
    return isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError)
