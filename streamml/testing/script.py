"""The script of a test: events, watermarks, the wall clock and faults, as plain data that is checked at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from streamml.errors import PlanError
from streamml.times import MIN_TIME, format_duration, to_millis

__all__ = [
    "Advance",
    "Checkpoint",
    "Crash",
    "Idle",
    "ProcessingTime",
    "Rescale",
    "Restart",
    "Script",
    "ScriptEvent",
    "Step",
    "advance",
    "checkpoint",
    "crash",
    "event",
    "idle",
    "processing_time",
    "rescale",
    "restart",
]

Time = int | str | timedelta
_NEWEST = 253_402_300_799_999  # year 9999, in ms
_OLDEST = -62_135_596_800_000  # year 1


def _text(millis: int) -> str:
    return repr(format_duration(millis)) if millis >= 0 else str(millis)


@dataclass(frozen=True, repr=False)
class Step:
    """Base of what a script is made of."""

    def __repr__(self) -> str:
        name = "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).strip("_")
        return f"{name}()"


@dataclass(frozen=True, repr=False)
class ScriptEvent(Step):
    """An event arrives. Built by `event`."""

    key: Any
    t: int
    id: str | None = None
    source: str = "main"
    fields: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [repr(self.key), f"t={_text(self.t)}"]
        parts += [] if self.id is None else [f"id={self.id!r}"]
        parts += [] if self.source == "main" else [f"source={self.source!r}"]
        parts += [f"{name}={value!r}" for name, value in self.fields.items()]
        return f"event({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class Advance(Step):
    """The event-time watermark moves on. Built by `advance`."""

    to: int

    def __repr__(self) -> str:
        return f"advance({_text(self.to)})"


@dataclass(frozen=True, repr=False)
class ProcessingTime(Step):
    """The wall clock moves on. Built by `processing_time`."""

    to: int

    def __repr__(self) -> str:
        return f"processing_time({_text(self.to)})"


@dataclass(frozen=True, repr=False)
class Idle(Step):
    """Nothing comes for a while. Built by `idle`."""

    duration: int

    def __repr__(self) -> str:
        return f"idle({_text(self.duration)})"


@dataclass(frozen=True, repr=False)
class Checkpoint(Step):
    """A checkpoint is taken. Built by `checkpoint`."""


@dataclass(frozen=True, repr=False)
class Crash(Step):
    """The engine is killed and started again. Built by `crash`."""


@dataclass(frozen=True, repr=False)
class Restart(Step):
    """The engine is stopped in good order and started again. Built by `restart`."""


@dataclass(frozen=True, repr=False)
class Rescale(Step):
    """The engine is stopped and started again with other parallelism. Built by `rescale`."""

    workers: int

    def __repr__(self) -> str:
        return f"rescale({self.workers})"


def event(key: Any, t: Time = 0, id: str | None = None, source: str = "main", **fields: Any) -> ScriptEvent:
    """An event arrives.

    Args:
        key: what the pipeline is keyed by; None is an event without a key, which a keyed pipeline rejects.
        t: event time since the epoch 0, as a duration or in milliseconds.
        id: its id; by default `e0`, `e1` and so on by its place among the script's events.
        source: tag of the source that it comes from.
        fields: the fields of its value, a dict.

    >>> event("k", t="1500ms", n=1)
    event('k', t='1500ms', n=1)
    """  # noqa: D401
    return ScriptEvent(key, _time(t, "event, t="), id, source, fields)


def advance(to: Time) -> Advance:
    """The watermark moves to this event time: nothing older is expected any more. It must not fall.

    >>> advance("10s")
    advance('10s')
    """  # noqa: D401
    return Advance(_time(to, "advance"))


def processing_time(to: Time) -> ProcessingTime:
    """The wall clock, 0 at the start of a script, moves to this time. It must not fall."""  # noqa: D401
    return ProcessingTime(_time(to, "processing_time"))


def idle(duration: Time) -> Idle:
    """Nothing comes for this long: the wall clock moves on by it, processing-time timers fire."""
    return Idle(_time(duration, "idle"))


def checkpoint() -> Checkpoint:
    """Take a checkpoint here; what the sinks got so far is committed."""
    return Checkpoint()


def crash() -> Crash:
    """Kill the engine here and start it again from the last checkpoint; what came after that is read once more."""
    return Crash()


def restart() -> Restart:
    """Stop the engine in good order (with a checkpoint) and start it again."""
    return Restart()


def rescale(workers: int) -> Rescale:
    """Stop the engine in good order and start it again with another number of workers."""
    return Rescale(workers)


def _time(value: Time, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        millis = value
    else:
        try:
            millis = to_millis(value, where=where)
        except ValueError as exc:
            raise PlanError(str(exc)) from exc
    if not _OLDEST <= millis <= _NEWEST:
        msg = f"{where}: wanted a time between the years 1 and 9999 in milliseconds since 0, got {millis}"
        raise PlanError(msg)
    return millis


class Script:
    """The steps of a test, checked, with the ids of events filled in.

    Args:
        steps: what happens, in order.

    Raises:
        PlanError: a step is no step, or a watermark or the wall clock falls.

    >>> Script([event("a", t="1s"), advance("5s"), event("a", t="7s")])[2].id
    'e1'
    >>> Script([advance("5s"), advance("2s")])
    Traceback (most recent call last):
    ...
    streamml.errors.PlanError: script, step 1: the watermark must not fall; it stands at 5s, got advance('2s')
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps: list[Step] = []
        self.watermarks: list[int] = []
        """For each step, and for the end, the watermark in force before it."""
        self.clocks: list[int] = []
        """For each step, and for the end, the wall clock before it."""
        self.offsets: list[int] = []
        """For each step how many events of its source came before it; only events have a source."""
        counts: Counter[str] = Counter()
        watermark, clock, events = MIN_TIME, 0, 0
        for number, step in enumerate(steps):
            self.watermarks.append(watermark)
            self.clocks.append(clock)
            self.offsets.append(counts[step.source] if isinstance(step, ScriptEvent) else 0)
            match step:
                case ScriptEvent():
                    counts[step.source] += 1
                    step = _with_id(step, events, number)
                    events += 1
                case Advance(to):
                    watermark = _rise(number, "the watermark", watermark, to, step)
                case ProcessingTime(to):
                    clock = _rise(number, "the wall clock", clock, to, step)
                case Idle(duration):
                    clock = _rise(number, "the wall clock", clock, clock + duration, step)
                case Rescale(workers) if workers < 1:
                    msg = f"script, step {number}: rescale wants at least 1 worker, got {workers}"
                    raise PlanError(msg)
                case Step():
                    pass
                case _:
                    hint = f"Did you forget to call {step.__name__}?" if callable(step) else "Write event(...)."
                    msg = (
                        f"script, step {number}: wanted event(...), advance(...), crash() and so on, "
                        f"got {step!r}. {hint}"
                    )
                    raise PlanError(msg)
            self.steps.append(step)
        self.watermarks.append(watermark)
        self.clocks.append(clock)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> Step:
        return self.steps[number]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __repr__(self) -> str:
        return "[" + ", ".join(map(repr, self.steps)) + "]"

    def has(self, *kinds: type[Step]) -> bool:
        """Return whether some step is of one of these kinds."""
        return any(isinstance(step, kinds) for step in self.steps)

    @property
    def events(self) -> list[ScriptEvent]:
        """The events in order of arrival."""
        return [step for step in self.steps if isinstance(step, ScriptEvent)]

    @property
    def sources(self) -> tuple[str, ...]:
        """Tags of the sources, in order of their first event."""
        return tuple(dict.fromkeys(step.source for step in self.events)) or ("main",)


def _with_id(step: ScriptEvent, events: int, number: int) -> ScriptEvent:
    if not isinstance(step.source, str) or not step.source:
        msg = f"script, step {number}: source= wants the tag of a source, got {step.source!r}"
        raise PlanError(msg)
    return step if step.id is not None else ScriptEvent(step.key, step.t, f"e{events}", step.source, step.fields)


def _rise(number: int, what: str, before: int, to: int, step: Step) -> int:
    if to < before:
        at = format_duration(before) if before >= 0 else str(before)
        msg = f"script, step {number}: {what} must not fall; it stands at {at}, got {step!r}"
        raise PlanError(msg)
    return to
