"""Every error that streamml raises on purpose: one root, each child also the fitting builtin.

A message says where, what was wanted, what came, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self

__all__ = [
    "CheckpointError",
    "ConnectorError",
    "ModelError",
    "ModelMemoryError",
    "PlanError",
    "RecordError",
    "StateError",
    "StreamMLError",
    "UnsupportedError",
    "suggest",
]


class StreamMLError(Exception):
    """Root of all errors of this library."""


class PlanError(StreamMLError, ValueError):
    """Raised while a pipeline is built: a field, an operator, a side output or an option does not fit."""

    @classmethod
    def unknown(cls, where: str, what: str, name: str, known: Iterable[str]) -> Self:
        """Build the error for a name that nothing defines, with the nearest known names."""
        return cls(f"{where}: there is no {what} {name!r}. {suggest(name, known)}")


class RecordError(StreamMLError, ValueError):
    """Raised for one bad record. The runtime sends the record to the `rejected` side output and goes on."""


class StateError(StreamMLError, RuntimeError):
    """Raised when stored state can't be read or does not fit the pipeline.

    What to do: the message names the option or the command; state is never deleted by the library.
    """


class CheckpointError(StateError):
    """Raised when a checkpoint can't be written or none of the stored ones can be used.

    What to do: free the disk, or name an older checkpoint; the message lists what was found.
    """


class ConnectorError(StreamMLError, RuntimeError):
    """Raised when a source or a sink can't be opened, read or written; the message names its address."""


class ModelError(StreamMLError, RuntimeError):
    """Raised when a model bundle can't be loaded, fails its check, or does not fit its inputs."""


class ModelMemoryError(ModelError):
    """Raised when a batch needs more memory than there is; the same rows in smaller batches may fit."""


class UnsupportedError(StreamMLError, NotImplementedError):
    """Raised when an engine can't do what the pipeline asks; says which engines can."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the hint that follows an unknown name.

    >>> suggest("amuont", ["amount", "card_id"])
    "Did you mean 'amount'? Known: amount, card_id."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}Known: {', '.join(names) or '(none)'}."
