"""`Session`: aggregates of the session that an event belongs to, as of the event."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from streamml.contract import Context
from streamml.operators.aggregates import Aggregate
from streamml.operators.aggregation import Aggregation
from streamml.operators.annotator import Annotator
from streamml.operators.rows import checked_rows, columns, kept
from streamml.operators.windows import positive_millis
from streamml.records import Batch, Record
from streamml.state import ObjectState
from streamml.times import MAX_TIME, MIN_TIME, Duration

__all__ = ["Session"]

_NONE: list[Any] = [MAX_TIME, MIN_TIME, None]


class Session(Annotator):
    """Add aggregates of the key's current session as of each event, the event itself included.

    Events of a key that are less than `gap` apart belong to one session. An event that closes the gap between two
    sessions merges them. An event sees what arrived before it in its session. One that is older than the watermark
    less `allowed_lateness` goes to `late`; one whose input is not a finite number goes to `rejected`.

    Args:
        gap: silence that ends a session.
        fields: aggregates by the name of the field to add, such as `{"n": count(), "idle_ms": since_last()}`.
        allowed_lateness: how far behind the watermark an event may be and still be counted.

    >>> from streamml.operators import count, since_last
    >>> from streamml.testing import event, run
    >>> visits = Session(gap="30m", fields={"n": count(), "idle_ms": since_last()})
    >>> [(e.n, e.idle_ms) for e in run([visits], [event("k", t="0s"), event("k", t="10m"), event("k", t="1h")]).main]
    [(1, -1.0), (2, 600000.0), (1, -1.0)]
    """

    gap: Duration = "30m"
    fields: Mapping[str, Aggregate] = dataclasses.field(default_factory=dict)
    allowed_lateness: Duration = 0

    sessions = ObjectState["Sessions"](
        new=lambda op: Sessions,
        to_wire=lambda op: _wire(op.aggregation),
        from_wire=lambda op: (
            lambda w: Sessions([[start, last, op.aggregation.from_wire(accs)] for start, last, accs in w])
        ),
        written=lambda op: Sessions.last,
        signature=lambda op: f"sessions {op.gap} {op.aggregation.signature}",
        ttl=lambda op: op.gap + op.allowed_lateness,
    )

    def validate(self) -> None:
        """Refuse a gap of zero."""
        positive_millis(self.gap, f"Session(name={self.name!r}, gap=)")
        object.__setattr__(self, "aggregation", Aggregation(self.fields))

    def on_event(self, event: Record, ctx: Context) -> None:
        """Count the event and emit it with the results."""
        if event.timestamp < ctx.watermark - self.allowed_lateness:
            ctx.late(event, ctx.watermark, self.allowed_lateness)
            return
        row = tuple(event[name] for name in self.aggregation.inputs)
        self.aggregation.check(row)
        horizon = ctx.watermark - self.allowed_lateness - self.gap
        results = self.sessions.get().step(self.aggregation, self.gap, row, event.timestamp, horizon)
        ctx.emit(event.with_fields(**dict(zip(self.aggregation.names, results, strict=True))))

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Do the same by columns."""
        aggregation, slot, gap, lateness = self.aggregation, self.sessions.slot, self.gap, self.allowed_lateness
        bad, rows = checked_rows(batch, aggregation)
        step = aggregation.step
        results: list[tuple[Any, ...]] = []
        lost: list[int] = []
        number = -1
        for row, time, watermark, entry in zip(rows, batch.times, batch.watermarks, batch.entries or (), strict=True):
            number += 1
            if time < watermark - lateness or number in bad:
                self._lose(batch.record(number), watermark, lateness, bad.get(number), ctx)
                lost.append(number)
                continue
            cell: Sessions | None = entry.cells[slot]
            if cell is None:
                cell = entry.cells[slot] = Sessions()
            newest = cell.newest
            if newest[0] <= time < newest[1] + gap:  # the common case of `Sessions.step`, without the call
                if time > newest[1]:
                    newest[1] = time
                results.append(step(newest[2], row, time, newest[0], newest[1]))
            else:
                results.append(cell.step(aggregation, gap, row, time, watermark - lateness - gap))
        return kept(batch, lost).with_fields(columns(aggregation, results))


def _wire(aggregation: Aggregation) -> Callable[[Sessions], list[Any]]:
    """Return the function from sessions to msgpack-able data."""
    if aggregation.plain:
        return attrgetter("open")
    to_wire = aggregation.to_wire
    return lambda sessions: [[start, last, to_wire(accs)] for start, last, accs in sessions.open]


class Sessions:
    """The sessions of one key that an event to come may still join.

    [start, last event, accumulators], in order of time.
    """

    __slots__ = ("newest", "open")

    def __init__(self, sessions: list[list[Any]] | None = None) -> None:
        self.open: list[list[Any]] = sessions if sessions is not None else []
        self.newest: list[Any] = self.open[-1] if self.open else _NONE

    def step(self, aggregation: Aggregation, gap: int, row: Sequence[Any], time: int, horizon: int) -> tuple[Any, ...]:
        """Add an event (its checked row) to its session and return the results as of it.

        Args:
            aggregation: what is kept of a session.
            gap: silence that ends a session, ms.
            row: the event's inputs.
            time: the event's time, ms.
            horizon: sessions whose last event is at or before it can get no event any more.
        """
        newest = self.newest
        if newest[0] <= time < newest[1] + gap:
            if time > newest[1]:
                newest[1] = time
            return aggregation.step(newest[2], row, time, newest[0], newest[1])
        if not self.open:
            self.newest = [time, time, aggregation.new()]
            self.open = [self.newest]
            return aggregation.step(self.newest[2], row, time, time, time)
        before = [s for s in self.open if s[1] > horizon and s[1] + gap <= time]
        after = [s for s in self.open if s[1] > horizon and s[0] >= time + gap]
        joined = [s for s in self.open if s[1] > horizon and s[1] + gap > time and s[0] < time + gap]
        if joined:
            accs = joined[0][2]
            for other in joined[1:]:
                accs = aggregation.merge(accs, other[2])
            session = [min(joined[0][0], time), max(joined[-1][1], time), accs]
        else:
            session = [time, time, aggregation.new()]
        self.open = [*before, session, *after]
        self.newest = self.open[-1]
        return aggregation.step(session[2], row, time, session[0], session[1])

    def last(self) -> int:
        """Return the time of the last event."""
        return self.open[-1][1] if self.open else MIN_TIME
