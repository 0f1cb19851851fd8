"""`Window`: one result for each key and window, corrected when late events come."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamml.contract import Context, KeyedOperator, Opening, Timer
from streamml.errors import PlanError
from streamml.operators.aggregates import Aggregate
from streamml.operators.aggregation import Aggregation
from streamml.operators.rows import checked_rows
from streamml.operators.window_state import Firing, WindowPlan, Windows
from streamml.operators.windows import SessionWindow, SlidingWindow, TumblingWindow, positive_millis
from streamml.records import Batch, Record
from streamml.state import ObjectState
from streamml.times import MAX_TIME, Duration, to_millis

__all__ = ["Window"]

_ENVELOPE = ("window_start", "window_end", "revision", "replaces", "retracted", "early")


class Window(KeyedOperator):
    """Emit one result for each key and window, when the watermark reaches the window's end.

    A result has the aggregates and

    - `window_start`, `window_end`: the window, ms; the result's timestamp is `window_end - 1`.
    - `revision`: 0 for the first result of its id, one more for each that replaces it.
    - `replaces`: the revision that it replaces, None for the first.
    - `early`: True if the window was still open.
    - `retracted`: True if the result of this id is taken back; then the aggregates are None. Only sessions do that.

    So a consumer that upserts by id, and deletes what is retracted, ends up with what the windows hold. A window
    without events has no result.

    An event within the allowed lateness whose window has ended corrects the result at once. It is late, and goes to
    `late`, only when all its windows ended `allowed_lateness` ago or more; else it counts in those that did not. For a
    session that is judged by what the event would be alone, `[time, time + gap)`, so what is late depends only on the
    event's time and the watermark. An event whose input is not a finite number goes to `rejected`.

    The id is `pipeline/operator/key/start-end`; for a session, whose end moves, `pipeline/operator/key/start`, and no
    two sessions get the same one. An event that makes a session begin earlier, or joins two, makes a session with the
    earliest start; results that were emitted under other starts are retracted at once. If a session that has ended
    grows past the watermark, its correction comes when it ends again (or with the next early result).

    What replaces or takes back a result is also reported on the side output `corrections`: the result's `id`, `key`,
    `timestamp`, `window_start`, `window_end`, `revision`, `replaces`, the `reason` (`late event`; `early`: it replaces
    an early result; `merged`), and for `merged` the id of the session that has the events now as `merged_into`.

    Args:
        window: `tumbling(size)`, `sliding(size, slide)` or `session(gap)`.
        fields: aggregates by the name of their result, such as `{"n": count(), "mean": mean("amount")}`.
        allowed_lateness: how long after its end a window may be corrected; so long its state is kept.
        early: emit what an open window holds at each multiple of this time within it, if that has changed.

    >>> from streamml.operators import count, tumbling
    >>> from streamml.testing import advance, event, run
    >>> per_minute = Window(tumbling("1m"), {"n": count()}, allowed_lateness="1m")
    >>> script = [event("k", t="10s"), event("k", t="20s"), advance("60s"), event("k", t="30s"), advance("2m")]
    >>> result = run([per_minute], script)
    >>> [(r.n, r.window_start, r.window_end, r.revision, r.replaces) for r in result.main]
    [(2, 0, 60000, 0, None), (3, 0, 60000, 1, 0)]
    >>> [(c["revision"], c["reason"]) for c in result.side("corrections")]
    [(1, 'late event')]
    """

    sides = ("corrections", "late")
    rejects_rows = True

    window: TumblingWindow | SlidingWindow | SessionWindow
    fields: Mapping[str, Aggregate]
    allowed_lateness: Duration = 0
    early: Duration | None = None

    windows = ObjectState[Windows](
        new=lambda op: op.plan.new,
        to_wire=lambda op: op.plan.to_wire,
        from_wire=lambda op: op.plan.from_wire,
        written=lambda op: op.plan.last_end,
        signature=lambda op: f"windows {op.window} {op.aggregation.signature}",
        ttl=lambda op: op.allowed_lateness,
    )

    def validate(self) -> None:
        """Refuse other windows, an interval of zero, and names that the result needs itself."""
        where = f"Window(name={self.name!r}"
        if not isinstance(self.window, TumblingWindow | SlidingWindow | SessionWindow):
            msg = f"{where}, window=): wanted tumbling(size), sliding(size, slide) or session(gap), got {self.window!r}"
            raise PlanError(msg)
        early = None if self.early is None else positive_millis(self.early, f"{where}, early=)")
        aggregation = Aggregation(self.fields)
        if taken := sorted(set(_ENVELOPE) & set(aggregation.names)):
            msg = f"{where}, fields=): {', '.join(taken)} is what the result says of its window. Choose another name."
            raise PlanError(msg)
        object.__setattr__(self, "aggregation", aggregation)
        object.__setattr__(self, "plan", WindowPlan(aggregation, self.window, to_millis(self.allowed_lateness), early))

    def reads(self) -> tuple[str, ...]:
        """Return the inputs of the aggregates."""
        return self.aggregation.inputs

    def adds(self) -> tuple[str, ...]:
        """Return the fields of a result."""
        return (*self.aggregation.names, *_ENVELOPE)

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str]:
        """Return the fields of a result; nothing of the events is left."""
        return frozenset(self.adds())

    def open(self, opening: Opening) -> None:
        """Learn the name of the pipeline, which is part of the ids."""
        object.__setattr__(self, "prefix", f"{opening.pipeline}/{self.name}/")

    def on_event(self, event: Record, ctx: Context) -> None:
        """Count the event in its windows; emit the corrections that it makes."""
        time, watermark = event.timestamp, ctx.watermark
        if self.plan.gone(time, watermark):
            ctx.late(event, watermark, self.plan.lateness)
            return
        row = tuple(event[name] for name in self.aggregation.inputs)
        self.aggregation.check(row)
        windows = self.windows.get()
        firings = windows.add(self.plan, row, time, watermark)
        if firings is not None:
            for record in self._records(firings, event.key, ctx):
                ctx.emit(record)
            self._arm(windows, watermark, ctx, ctx.entry)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Do the same by columns."""
        plan, slot, keep, slide, new = self.plan, self.windows.slot, self.plan.keep, self.plan.slide, self.plan.new
        bad, rows = checked_rows(batch, self.aggregation)
        records: list[Record] = []
        watermarks: list[int] = []
        entries: list[Any] = []
        columns = zip(rows, batch.times, batch.watermarks, batch.entries or (), strict=True)
        for number, (row, time, watermark, entry) in enumerate(columns):
            if time - time % slide + keep <= watermark:
                ctx.late(batch.record(number), watermark, plan.lateness)
            elif number in bad:
                ctx.reject(batch.record(number), bad[number])
            else:
                cells = entry.cells
                windows: Windows | None = cells[slot]
                if windows is None:
                    windows = cells[slot] = new()
                firings = windows.add(plan, row, time, watermark)
                if firings is not None:
                    made = self._records(firings, entry.key, ctx) if firings else ()
                    records += made
                    watermarks += [watermark] * len(made)
                    entries += [entry] * len(made)
                    self._arm(windows, watermark, ctx, entry)
        return Batch.of(records, watermarks, batch.watermark, entries)

    def on_timer(self, timer: Timer, ctx: Context) -> None:
        """Emit the results that are due, and drop what can't change any more."""
        windows = self.windows.get()
        windows.timer = MAX_TIME
        for record in self._records(windows.fire(self.plan, timer.time), timer.key, ctx):
            ctx.emit(record)
        if windows:
            self._arm(windows, timer.time, ctx, ctx.entry)
        else:
            self.windows.clear()

    def earliest_timer(self, watermark: int, earliest: int) -> int:
        """Return a time before which no event from time `earliest` on makes anything due."""
        return self.plan.earliest_timer(watermark, earliest)

    def _arm(self, windows: Windows, now: int, ctx: Context, entry: Any) -> None:
        """Have the key's one timer fire when something is due, or before: a growing session leaves it where it is."""
        due = windows.due(self.plan, now)
        if due < windows.timer:
            if windows.timer < MAX_TIME:
                ctx.delete_timer(windows.timer, entry=entry)
            ctx.set_timer(due, entry=entry)
            windows.timer = due

    def _id(self, key: Any, start: int, end: int) -> str:
        return f"{self.prefix}{key}/{start}" if self.plan.session else f"{self.prefix}{key}/{start}-{end}"

    def _records(self, firings: list[Firing], key: Any, ctx: Context) -> list[Record]:
        """Return the records of results, and report those that replace another one."""
        names = self.aggregation.names
        records: list[Record] = []
        for start, end, revision, results, early, reason, into in firings:
            fields = dict.fromkeys(names) if results is None else dict(zip(names, results, strict=True))
            replaces = revision - 1 if revision else None
            envelope = (start, end, revision, replaces, results is None, early)
            fields.update(zip(_ENVELOPE, envelope, strict=True))
            id = self._id(key, start, end)
            records.append(Record(None, key=key, timestamp=end - 1, id=id, fields=fields))
            if revision:
                ctx.side(
                    "corrections",
                    id=id,
                    key=key,
                    timestamp=end - 1,
                    window_start=start,
                    window_end=end,
                    revision=revision,
                    replaces=replaces,
                    reason=reason,
                    merged_into=None if into is None else self._id(key, into, end),
                )
        return records

    if TYPE_CHECKING:
        aggregation: Aggregation = dataclasses.field(init=False)
        plan: WindowPlan = dataclasses.field(init=False)
        prefix: str = dataclasses.field(init=False)
