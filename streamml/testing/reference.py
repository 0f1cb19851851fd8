"""The oracle: what a script must give, by dicts and lists and one row after another.

It uses no code of the runtime, the stores or the operators. An operator's reference is a class registered by
`reference(Operator)`; it holds plain data by key in `self.state`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamml.contract import Operator
from streamml.errors import UnsupportedError
from streamml.pipeline import Pipeline
from streamml.records import Record, as_dict
from streamml.testing.case import Case, Expected, Row
from streamml.testing.script import Advance, Idle, ProcessingTime, Script, ScriptEvent
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["REFERENCES", "Moment", "Reference", "answer", "reference"]

PIPELINE = "script"
"""Name of the pipeline that `run` makes of operators; the first part of ids."""

REFERENCES: dict[type[Operator], type[Reference]] = {}
"""The reference of each operator class; a subclass without one of its own uses that of its base."""


def reference(operator: type[Operator]) -> Callable[[type[Reference]], type[Reference]]:
    """Register a class as the reference of an operator class."""

    def register(cls: type[Reference]) -> type[Reference]:
        REFERENCES[operator] = cls
        return cls

    return register


@dataclass
class Moment:
    """When something happens: the event-time watermark and the wall clock."""

    watermark: int
    now: int


class Reference:
    """One operator of a chain.

    Order of calls for each row: `on_timer` for each timer that its watermark has reached, `on_row`, and `on_timer` for
    what the row itself set for a time that has passed.

    Attributes:
        op: the operator's configuration.
        state: plain data by key; taken back when `on_row` or `on_timer` raises.
        timers: pending event-time timers (time, key, name); `clock_timers` those of the wall clock.
    """

    def __init__(self, op: Any, pipeline: str) -> None:
        self.op = op
        self.pipeline = pipeline
        self.state: dict[Any, Any] = {}
        self.timers: set[tuple[int, Any, str]] = set()
        self.clock_timers: set[tuple[int, Any, str]] = set()
        self.moment = Moment(MIN_TIME, 0)
        self._rows: list[Record] = []
        self._sides: list[tuple[str, dict[str, Any]]] = []

    def on_row(self, row: Record) -> None:
        """Handle a row: call `emit`, `side`, `late`, change `state` and `timers`; raise to reject it."""
        raise NotImplementedError

    def on_timer(self, time: int, key: Any, name: str) -> None:
        """Handle a timer."""

    def emit(self, row: Record) -> None:
        """Send a row on."""
        self._rows.append(row)

    def side(self, name: str, row: Record, **detail: Any) -> None:
        """Send a row to a side output."""
        envelope = {"id": row.id, "key": row.key, "timestamp": row.timestamp, "operator": self.op.name}
        self._sides.append((name, {**envelope, **detail}))

    def late(self, row: Record, allowed: int) -> None:
        """Send a row to `late`."""
        watermark = self.moment.watermark
        self.side("late", row, late_by_ms=watermark - row.timestamp, watermark=watermark, allowed_lateness_ms=allowed)

    def take(self) -> tuple[list[Record], list[tuple[str, dict[str, Any]]]]:
        """Return what was sent since the last call."""
        rows, sides = self._rows, self._sides
        self._rows, self._sides = [], []
        return rows, sides

    def attempt(self, subject: Record, call: Callable[[], None]) -> None:
        """Do something, and take all of it back and reject the subject if it raises."""
        saved = copy.deepcopy(self.state), set(self.timers), set(self.clock_timers)
        try:
            call()
        except Exception as exc:
            self.state, self.timers, self.clock_timers = saved
            self.take()
            self.side("rejected", subject, error=type(exc).__name__)


class _Chain:
    """The operators, run row by row."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.steps = [_find(op)(op, PIPELINE) for op in operators]
        self.main: list[Row] = []
        self.sides: dict[str, list[dict[str, Any]]] = {}

    def push(self, row: Record, moment: Moment, start: int = 0) -> None:
        """Send a row through the steps from `start` on."""
        if start == len(self.steps):
            self.main.append(Row(row.key, row.timestamp, copy.deepcopy(as_dict(row)), row.id))
            return
        step = self.steps[start]
        self._fire(start, step, moment.watermark, moment.now)
        step.moment = moment
        step.attempt(row, lambda: step.on_row(row))
        self._settle(start, step)
        self._fire(start, step, moment.watermark, moment.now)  # a timer that it set for a time that has passed

    def pass_time(self, moment: Moment) -> None:
        """Let every step see the watermark."""
        for number, step in enumerate(self.steps):
            self._fire(number, step, moment.watermark, moment.now)

    def pass_clock(self, moment: Moment) -> None:
        """Fire the timers of the wall clock."""
        for number, step in enumerate(self.steps):
            for timer in sorted((t for t in step.clock_timers if t[0] <= moment.now), key=_in_order):
                step.clock_timers.discard(timer)
                step.moment = moment
                self._ring(number, step, timer)

    def _fire(self, number: int, step: Reference, watermark: int, now: int) -> None:
        while step.timers and min(step.timers, key=lambda t: t[0])[0] <= watermark:
            timer = min(step.timers, key=_in_order)
            step.timers.discard(timer)
            step.moment = Moment(max(timer[0] - 1, step.moment.watermark), now)
            self._ring(number, step, timer)

    def _ring(self, number: int, step: Reference, timer: tuple[int, Any, str]) -> None:
        time, key, name = timer
        stub = Record(None, key=key, timestamp=time, id=f"timer/{name}@{time}")
        step.attempt(stub, lambda: step.on_timer(*timer))
        self._settle(number, step)

    def _settle(self, number: int, step: Reference) -> None:
        rows, sides = step.take()
        moment = step.moment
        for name, record in sides:
            self.sides.setdefault(name, []).append(record)
        for row in rows:
            self.push(row, moment, number + 1)


def _in_order(timer: tuple[int, Any, str]) -> tuple[int, str, str]:
    return timer[0], repr(timer[1]), timer[2]


def _find(op: Operator) -> type[Reference]:
    for base in type(op).__mro__:
        if base in REFERENCES:
            return REFERENCES[base]
    msg = f"no reference for {type(op).__name__}; write one and register it with @reference({type(op).__name__})"
    raise UnsupportedError(msg)


def answer(case: Case) -> Expected:
    """Return what a script must give.

    Raises:
        UnsupportedError: an operator has no reference, or the case lets the pipeline move the watermark.

    >>> from streamml.operators import Dedupe
    >>> from streamml.testing import event
    >>> answer(Case("twice", [Dedupe("n")], [event("k", n=1), event("k", n=1)])).main
    [row('k', '0s', id='script/e0', n=1)]
    """
    import streamml.testing.reference_operators
    import streamml.testing.reference_windows  # noqa: F401

    if case.watermarks != "script":
        msg = f"case {case.name!r}: the reference follows watermarks of the script only"
        raise UnsupportedError(msg)
    if isinstance(case.operators, Pipeline):
        msg = f"case {case.name!r}: the reference takes a list of operators; write by hand what a pipeline must give"
        raise UnsupportedError(msg)
    script = Script(case.script)
    chain = _Chain(case.operators)
    keyed = any(op.keyed for op in case.operators)
    tagged = len(script.sources) > 1
    watermark, now = MIN_TIME, 0
    for step in script:
        match step:
            case ScriptEvent(key, t, id, source, fields):
                row = Record(copy.deepcopy(fields), timestamp=t, id=f"{PIPELINE}/{id}", tag=source if tagged else "")
                if keyed and not _usable(key):
                    record = {"id": row.id, "key": None, "timestamp": t, "operator": "key_by.stage1"}
                    chain.sides.setdefault("rejected", []).append(record)
                    continue
                row.key = key if keyed else None
                chain.push(row, Moment(watermark, now))
            case Advance(to):
                watermark = to
                chain.pass_time(Moment(watermark, now))
            case ProcessingTime(to):
                now = to
                chain.pass_clock(Moment(watermark, now))
            case Idle(duration):
                now += duration
                chain.pass_clock(Moment(watermark, now))
    if case.end:
        chain.pass_time(Moment(MAX_TIME, now))
    return Expected(chain.main, chain.sides)


def _usable(key: Any) -> bool:
    parts = key if isinstance(key, tuple) and key else (key,)
    return all(type(part) in (str, int, bytes) for part in parts)
