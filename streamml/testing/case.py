"""A case of the conformance suite: operators, a script, and the answer."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamml.contract import Operator
from streamml.pipeline import Pipeline
from streamml.testing.script import Crash, Idle, ProcessingTime, Rescale, Restart, Script, Step
from streamml.times import Duration, format_duration, to_millis

__all__ = ["Capability", "Case", "Expected", "Row", "row"]


class Capability(enum.Enum):
    """What an engine may be able to do beyond running a script."""

    CRASH = "killed and restored in the middle of a script"
    RESTART = "stopped in good order and started again"
    RESCALE = "started again with other parallelism"
    PROCESSING_TIME = "a wall clock that a script sets"
    ORDER_WITHIN_KEY = "keeps the order within a key"
    OPEN_END = "a script that leaves the input open"
    STATE = "shows the state of a key"


@dataclass(frozen=True)
class Row:
    """One expected record of the main output; built by `row`."""

    key: Any
    timestamp: int
    fields: Mapping[str, Any]
    id: str | None = None

    def __repr__(self) -> str:
        time = repr(format_duration(self.timestamp)) if self.timestamp >= 0 else str(self.timestamp)
        parts = [repr(self.key), time]
        parts += [] if self.id is None else [f"id={self.id!r}"]
        parts += [f"{name}={value!r}" for name, value in self.fields.items()]
        return f"row({', '.join(parts)})"


def row(key: Any, t: Duration, id: str | None = None, **fields: Any) -> Row:
    """Say what one record of the main output must be: its key, event time, all its fields, and its id (None: any).

    >>> row("k", "1s", n=2)
    row('k', '1s', n=2)
    """
    return Row(key, t if isinstance(t, int) else to_millis(t, where="row, t"), fields, id)


@dataclass(frozen=True)
class Expected:
    """The answer to a script.

    Attributes:
        main: the main output; the order counts within a key, not across keys.
        sides: side outputs by name, each record by some of its fields (`key` is one); one that is not named must be
            empty.
    """

    main: Sequence[Row] = ()
    sides: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A script with its answer.

    Attributes:
        name: short and unique.
        operators: a chain under the script's keys, or a pipeline.
        script: what happens.
        expected: the answer; None where a reference gives it.
        end: whether the input ends after the script, which closes everything that is open.
        watermarks: `script` (only `advance` moves the watermark) or `pipeline` (events and idleness move it, as in
            production).
    """

    name: str
    operators: Sequence[Operator] | Pipeline
    script: Sequence[Step]
    expected: Expected | None = None
    end: bool = True
    watermarks: str = "script"

    def __str__(self) -> str:
        operators = self.operators if isinstance(self.operators, Pipeline) else list(self.operators)
        steps = "".join(f"        {step!r},\n" for step in self.script)
        more = "" if self.end else "    end=False,\n"
        more += "" if self.watermarks == "script" else f"    watermarks={self.watermarks!r},\n"
        answer = f"    {self.expected!r},\n" if self.expected is not None else ""
        return f"Case(\n    {self.name!r},\n    {operators!r},\n    [\n{steps}    ],\n{answer}{more})"

    @property
    def needs(self) -> frozenset[Capability]:
        """What an engine must be able to do to run it."""
        script = Script(self.script)
        found = {
            Capability.CRASH: script.has(Crash),
            Capability.RESTART: script.has(Restart),
            Capability.RESCALE: script.has(Rescale),
            Capability.PROCESSING_TIME: script.has(ProcessingTime, Idle),
            Capability.OPEN_END: not self.end,
        }
        return frozenset(need for need, there in found.items() if there)
