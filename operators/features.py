"""`Features`: aggregates of a key's events as of each event."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from streamml.contract import Context
from streamml.errors import PlanError
from streamml.operators.aggregates import Aggregate
from streamml.operators.aggregation import Aggregation
from streamml.operators.annotator import Annotator
from streamml.operators.rows import checked_rows, columns, kept
from streamml.operators.tiles import TilePlan, Tiles
from streamml.operators.windows import AllTimeWindow, TrailingWindow, TumblingWindow, all_time
from streamml.records import Batch, Record
from streamml.state import ObjectState
from streamml.times import Duration

__all__ = ["Features"]


class Features(Annotator):
    """Add aggregates of the key's events as of each event, the event itself included.

    An event sees what event time puts before it: the events that arrived before it, in the tiles of its window that
    are not after its own tile. So it is exact at tile resolution, also under disorder, and nothing waits. An event
    older than the watermark less `allowed_lateness` goes to `late` and is not counted. One whose input is not a
    finite number goes to `rejected` and is not counted.

    Args:
        window: `all_time()`, `tumbling(size)` or `trailing(size, tile)`.
        fields: aggregates by the name of the field to add, such as `{"n": count(), "mean": mean("amount")}`.
        allowed_lateness: how far behind the watermark an event may be and still be counted.

    >>> from streamml.operators import count, total, trailing
    >>> from streamml.testing import event, run
    >>> last_minute = Features(trailing("1m", tile="1s"), {"n": count(), "sum": total("x")})
    >>> script = [event("k", t="1s", x=1), event("k", t="30s", x=2), event("k", t="70s", x=4)]
    >>> [(e.n, e.sum) for e in run([last_minute], script).main]
    [(1, 1.0), (2, 3.0), (2, 6.0)]
    """

    window: AllTimeWindow | TumblingWindow | TrailingWindow = all_time()
    fields: Mapping[str, Aggregate] = dataclasses.field(default_factory=dict)
    allowed_lateness: Duration = 0

    tiles = ObjectState[Tiles](
        new=lambda op: op.plan.new,
        to_wire=lambda op: op.plan.to_wire,
        from_wire=lambda op: op.plan.from_wire,
        written=lambda op: op.plan.written,
        signature=lambda op: f"tiles {op.window} {op.aggregation.signature}",
        ttl=lambda op: None if op.plan.from_base else op.plan.size + op.allowed_lateness,
    )

    def validate(self) -> None:
        """Refuse other windows."""
        if not isinstance(self.window, AllTimeWindow | TumblingWindow | TrailingWindow):
            msg = f"Features(window=): wanted all_time(), tumbling(size) or trailing(size, tile), got {self.window!r}"
            raise PlanError(msg)
        object.__setattr__(self, "aggregation", Aggregation(self.fields))
        object.__setattr__(self, "plan", TilePlan(self.aggregation, self.window, int(self.allowed_lateness)))

    def on_event(self, event: Record, ctx: Context) -> None:
        """Count the event and emit it with the results."""
        if event.timestamp < ctx.watermark - self.allowed_lateness:
            ctx.late(event, ctx.watermark, self.allowed_lateness)
            return
        row = tuple(event[name] for name in self.aggregation.inputs)
        self.aggregation.check(row)
        results = self.tiles.get().step(self.plan, row, event.timestamp, ctx.watermark)
        ctx.emit(event.with_fields(**dict(zip(self.aggregation.names, results, strict=True))))

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Do the same by columns."""
        plan, slot, lateness = self.plan, self.tiles.slot, self.allowed_lateness
        bad, rows = checked_rows(batch, self.aggregation)
        step = self.aggregation.step
        results: list[tuple[Any, ...]] = []
        lost: list[int] = []
        number = -1
        for row, time, watermark, entry in zip(rows, batch.times, batch.watermarks, batch.entries or (), strict=True):
            number += 1
            if time < watermark - lateness or number in bad:
                self._lose(batch.record(number), watermark, lateness, bad.get(number), ctx)
                lost.append(number)
                continue
            cell: Tiles | None = entry.cells[slot]
            if cell is None:
                cell = entry.cells[slot] = plan.new()
            # The common case of `Tiles.step`, without the call.
            if cell.closed is None and cell.start <= time < cell.stop:
                results.append(step(cell.newest, row, time, cell.low, cell.high))
            else:
                results.append(cell.step(plan, row, time, watermark))
        return kept(batch, lost).with_fields(columns(self.aggregation, results))

    if TYPE_CHECKING:
        plan: ClassVar[TilePlan]
