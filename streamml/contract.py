"""The operator contract: what an operator is, and the context through which it sees the stream.

An operator is a frozen configuration. For a stage the runtime makes a running copy of it, on which the declared
states are handles on the current key's state. It never learns which engine hosts it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, dataclass_transform

from streamml.errors import PlanError, RecordError
from streamml.records import Batch, Record, as_dict
from streamml.state.descriptors import ObjectState, State
from streamml.state.table import STAGE_KEY, Entry, StateTable
from streamml.state.timers import Timer, TimerQueue
from streamml.times import Duration, to_millis

__all__ = ["Context", "KeyedOperator", "Opening", "Operator", "Timer"]


@dataclasses.dataclass(frozen=True)
class Opening:
    """What an operator gets when a stage opens.

    Attributes:
        pipeline: name of the pipeline.
        models: folders that are searched for model bundles.
        metrics: the job's metrics (`streamml.observability.Metrics`), or None.
        worker: what tells this worker from others of the job; empty where there is one.
    """

    pipeline: str = "pipeline"
    models: tuple[str, ...] = ()
    metrics: Any = None
    worker: str = ""


@dataclass_transform(frozen_default=True, kw_only_default=False)
@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """Base of all operators. A subclass is a frozen dataclass: annotate its options in the class body.

    Order of calls, on a running copy, by one worker at a time:

    1. `open(opening)`, once: load what is needed.
    2. for each micro-batch, in order of arrival: `on_batch(batch, ctx)` once if the class defines it, else
       `on_event(event, ctx)` for each row. Timers that the watermark has reached fire before the first row that
       arrived after it.
    3. `on_timer(timer, ctx)` for each timer that is due, in order of time. Only operators that define it set timers.
    4. `close()`, once.

    `on_batch` must give what the loop of `on_event` gives. A row whose `on_event` raises goes to the side output
    `rejected`; what it emitted and wrote through handles is taken back.

    Attributes:
        name: unique in the pipeline; part of record ids and of the identity of stored state.
        sides: names of the side outputs that it may emit to, beside `rejected`.
    """

    sides: ClassVar[tuple[str, ...]] = ()
    keyed: ClassVar[bool] = False
    rejects_rows: ClassVar[bool] = False
    """True promises that `on_batch` rejects poison rows itself and changes no state before it could raise."""

    name: str = dataclasses.field(default="", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, eq=False)(cls)

    def __post_init__(self) -> None:
        for field in _durations(type(self)):
            value = getattr(self, field)
            if value is not None:
                where = f"{type(self).__name__}({field}=)"
                try:
                    object.__setattr__(self, field, to_millis(value, where=where))
                except ValueError as exc:
                    raise PlanError(str(exc)) from exc
        if not self.name:
            object.__setattr__(self, "name", self.default_name())
        if not re.fullmatch(r"[A-Za-z0-9_.\-]+", self.name):
            msg = f"{type(self).__name__}(name=): wanted letters, digits, '_', '-' and '.', got {self.name!r}"
            raise PlanError(msg)
        self.validate()

    def default_name(self) -> str:
        """Return the name that it has when the user gives none: the class's name in lower case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def validate(self) -> None:
        """Refuse options that make no sense (raise `PlanError`)."""

    def reads(self) -> Iterable[str]:
        """Return the fields that an event must have; checked when the pipeline is built."""
        return ()

    def adds(self) -> Iterable[str]:
        """Return the derived fields that it adds."""
        return ()

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str] | None:
        """Return the fields of what it emits, given those of what it gets; None means unknown."""
        return None if known is None else known | frozenset(self.adds())

    def open(self, opening: Opening) -> None:
        """Load what is needed before the first event."""

    def close(self) -> None:
        """Release it."""

    def models(self) -> tuple[str, ...]:
        """Return the models that it scores with now, as `name:version`; shown to the person who runs the job."""
        return ()

    def on_event(self, event: Record, ctx: Context) -> None:
        """Handle one event."""
        msg = f"{type(self).__name__} defines neither on_event nor on_batch"
        raise NotImplementedError(msg)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Handle the rows of a batch at once; return what is emitted. Optional."""
        raise NotImplementedError

    def on_timer(self, timer: Timer, ctx: Context) -> None:
        """Handle a timer. Optional."""
        raise NotImplementedError

    def earliest_timer(self, watermark: int, earliest: int) -> int:
        """Return the earliest time of a timer that `on_batch` may set for events from time `earliest` on.

        Only for operators with both `on_batch` and `on_timer`.

        The runtime cuts batches there, so that a timer fires before the first row that arrived after it was due.
        """
        return watermark + 1

    @classmethod
    def defines(cls, hook: str) -> bool:
        """Return whether a subclass defines this hook."""
        return getattr(cls, hook) is not getattr(Operator, hook)

    @classmethod
    def states(cls) -> dict[str, State[Any]]:
        """Return the declared states by attribute name, base classes first."""
        found: dict[str, State[Any]] = {}
        for base in reversed(cls.__mro__):
            found.update({name: value for name, value in vars(base).items() if isinstance(value, State)})
        return found

    def bound_states(self) -> dict[str, State[Any]]:
        """Return the declared states with what they take from this configuration."""
        return {
            name: state.for_operator(self) if isinstance(state, ObjectState) else state
            for name, state in type(self).states().items()
        }

    def running(self, handles: Mapping[str, Any]) -> Self:
        """Return the copy that runs: its states are handles."""
        clone = copy.copy(self)
        for name, handle in handles.items():
            object.__setattr__(clone, name, handle)
        return clone


class KeyedOperator(Operator):
    """Base of operators that need a key: because of state, timers, or order within a key.

    >>> from streamml.state import ListState
    >>> class VelocityRule(KeyedOperator):
    ...     '''Flags a key that sends more than `limit` events within `period`.'''
    ...     limit: int = 5
    ...     period: Duration = "1m"
    ...     seen = ListState(int, ttl=lambda op: op.period)
    ...     def adds(self):
    ...         return ["burst"]
    ...     def on_event(self, event, ctx):
    ...         self.seen.append(event.timestamp)
    ...         recent = [t for t in self.seen if t > event.timestamp - self.period]
    ...         ctx.emit(event.with_fields(burst=len(recent) > self.limit))
    >>> VelocityRule(limit=2)
    VelocityRule(name='velocity_rule', limit=2, period=60000)
    """

    keyed: ClassVar[bool] = True


def _durations(cls: type) -> tuple[str, ...]:
    cached: tuple[str, ...] | None = cls.__dict__.get("__streamml_durations__")
    if cached is None:
        cached = tuple(
            f.name
            for f in dataclasses.fields(cls)
            if (isinstance(f.type, str) and re.search(r"\bDuration\b", f.type)) or _is_duration(f.type)
        )
        cls.__streamml_durations__ = cached  # type: ignore[attr-defined]
    return cached


def _is_duration(kind: Any) -> bool:
    return kind is Duration or any(_is_duration(part) for part in typing.get_args(kind))


class Context:
    """What an operator sees of the moment, and where it puts what it has to say.

    Attributes:
        key: the current key.
        timestamp: event time of the current event, or the time of the timer.
        watermark: no event older than this is expected any more.
        now: processing time in milliseconds, from the engine's clock.
    """

    __slots__ = (
        "_operator",
        "_processing_timers",
        "_reject",
        "_sides",
        "_table",
        "_timers",
        "emitted",
        "entry",
        "event",
        "key",
        "now",
        "pending_sides",
        "timestamp",
        "undo",
        "watermark",
    )

    def __init__(
        self,
        operator: Operator,
        timers: TimerQueue | None,
        processing_timers: TimerQueue | None,
        reject: Callable[[Record, BaseException, str], None],
        table: StateTable | None = None,
    ) -> None:
        self._operator = operator
        self._sides = frozenset((*operator.sides, "rejected"))
        self._timers = timers
        self._processing_timers = processing_timers
        self._reject = reject
        self._table = table
        self.entry: Entry = None  # type: ignore[assignment]
        self.event: Record | None = None
        self.key: Any = None
        self.timestamp = 0
        self.watermark = 0
        self.now = 0
        self.undo: list[Callable[[], Any]] = []
        self.emitted: list[Record] = []
        self.pending_sides: list[tuple[str, dict[str, Any]]] = []

    @property
    def stage_entry(self) -> Entry:
        """The entry of what this operator keeps for the whole stage (`scope="stage"`); pass it to `set_timer` there."""
        if self._table is None:
            msg = f"operator {self._operator.name!r}: there is no state in a stage without a key"
            raise PlanError(msg)
        return self._table.entries([(STAGE_KEY, self._operator.name)])[0]

    def emit(self, event: Record) -> None:
        """Send an event on to the next operator. Its key must be the current one."""
        if not isinstance(event, Record):
            msg = (
                f"operator {self._operator.name!r}: emit wants a Record (event.with_fields(...), event.with_value(...) "
                f"or Record(...)), got {type(event).__name__}"
            )
            raise TypeError(msg)
        if event.key != self.key:
            msg = (
                f"operator {self._operator.name!r}: emitted an event of key {event.key!r} while handling "
                f"key {self.key!r}; "
                f"change the key with key_by, after the operator"
            )
            raise ValueError(msg)
        self.emitted.append(event)

    def result(self, id: str, timestamp: int, fields: dict[str, Any]) -> Record:
        """Build a record of the current key that no single event carries, such as a window's result."""
        return Record(None, key=self.key, timestamp=timestamp, id=id, fields=fields)

    def side(self, name: str, event: Record | Mapping[str, Any] | None = None, **detail: Any) -> None:
        """Send something to a side output: an event (with details), or just details.

        Raises:
            PlanError: the operator does not declare this side output in `sides`.
        """
        if name not in self._sides:
            where = f"operator {self._operator.name!r}, ctx.side"
            raise PlanError.unknown(where, "declared side output", name, self._sides)
        subject = event if isinstance(event, Record) else self.event
        record: dict[str, Any] = {
            "id": subject.id if subject is not None else "",
            "key": self.key if subject is None else subject.key,
            "timestamp": self.timestamp if subject is None else subject.timestamp,
            "operator": self._operator.name,
            **detail,
        }
        if isinstance(event, Record):
            record["event"] = as_dict(event)
        elif event is not None:
            record.update(event)
        self.pending_sides.append((name, record))

    def late(self, event: Record, watermark: int, allowed: int = 0) -> None:
        """Send an event that came too late to the side output `late`, with how late it was."""
        self.side(
            "late", event, late_by_ms=watermark - event.timestamp, watermark=watermark, allowed_lateness_ms=allowed
        )

    def reject(self, event: Record, error: BaseException | str, **detail: Any) -> None:
        """Send one bad event to the side output `rejected`; for `on_batch`, where `on_event` would raise."""
        exc = error if isinstance(error, BaseException) else RecordError(error)
        self._reject(event, exc, self._operator.name)
        if detail:
            self.pending_sides[-1][1].update(detail)

    def set_timer(self, time: int, name: str = "", *, entry: Entry | None = None) -> None:
        """Ask for `on_timer` at an event time for the current key; one of the same time and name is kept once.

        In `on_batch` there is no current key: pass the row's `entry`.
        """
        queue = self._need(self._timers)
        entry = entry or self.entry
        if queue.set(time, entry.key, entry.key_bytes, name):
            self.undo.append(lambda: queue.delete(time, entry.key_bytes, name))

    def delete_timer(self, time: int, name: str = "", *, entry: Entry | None = None) -> None:
        """Take a timer of the current key back; nothing happens when there is none."""
        queue = self._need(self._timers)
        entry = entry or self.entry
        if queue.delete(time, entry.key_bytes, name):
            self.undo.append(lambda: queue.set(time, entry.key, entry.key_bytes, name))

    def set_processing_timer(self, time: int, name: str = "") -> None:
        """Ask for `on_timer` once the engine's clock has reached this time. Not reproducible in a replay."""
        queue = self._need(self._processing_timers)
        entry = self.entry
        if queue.set(time, entry.key, entry.key_bytes, name):
            self.undo.append(lambda: queue.delete(time, entry.key_bytes, name))

    def _need(self, queue: TimerQueue | None) -> TimerQueue:
        if queue is None:
            msg = (
                f"operator {self._operator.name!r} sets a timer but is no KeyedOperator with on_timer; define on_timer"
            )
            raise PlanError(msg)
        return queue

    def at(self, entry: Entry | None, event: Record | None, key: Any, timestamp: int, watermark: int) -> None:
        """Move to the next event or timer; called by the runtime."""
        self.entry = entry  # type: ignore[assignment]
        self.event = event
        self.key = key
        self.timestamp = timestamp
        self.watermark = watermark

    def roll_back(self) -> None:
        """Take back what the current event did; called by the runtime."""
        for step in reversed(self.undo):
            step()
        self.undo.clear()
        self.emitted.clear()
        self.pending_sides.clear()
