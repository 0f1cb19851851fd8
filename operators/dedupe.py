"""`Dedupe`: let each id through once within its TTL."""

from __future__ import annotations

from streamml.contract import Context, KeyedOperator
from streamml.operators.rows import kept
from streamml.records import Batch, Record
from streamml.state import SetState
from streamml.state.cells import SetCell
from streamml.times import Duration

__all__ = ["Dedupe"]


class Dedupe(KeyedOperator):
    """Let each id through once; the others go to the side output `duplicates`.

    Exact: ids are kept, not hashes of them. An id is forgotten once the watermark is `ttl` past its event's time; an
    event that is older than that when it arrives can't be judged and goes to `late`.

    Args:
        id: the field that identifies an event; None takes the record's id, which is the schema's id field.
        ttl: how long an id is remembered, in event time.

    >>> from streamml.testing import event, run
    >>> result = run([Dedupe("n")], [event("k", t="1s", n=1), event("k", t="2s", n=1), event("k", t="3s", n=2)])
    >>> [e.n for e in result.main], len(result.side("duplicates"))
    ([1, 2], 1)
    """

    sides = ("duplicates", "late")
    rejects_rows = True

    id: str | None = None
    ttl: Duration = "1h"

    seen = SetState(str, ttl=lambda op: op.ttl)

    def reads(self) -> list[str]:
        """Return the id's field."""
        return [] if self.id is None else [self.id]

    def on_event(self, event: Record, ctx: Context) -> None:
        """Emit the event if its id is new."""
        if event.timestamp <= ctx.watermark - self.ttl:
            ctx.late(event, ctx.watermark, self.ttl)
        elif self.seen.add(str(event.id if self.id is None else event[self.id])):
            ctx.emit(event)
        else:
            ctx.side("duplicates", event)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Do the same by columns."""
        slot, ttl = self.seen.slot, self.ttl
        ids = batch.ids if self.id is None else list(map(str, batch.column(self.id)))
        lost: list[int] = []
        number = -1
        for id, time, watermark, entry in zip(ids, batch.times, batch.watermarks, batch.entries or (), strict=True):
            number += 1
            horizon = watermark - ttl
            if time <= horizon:
                ctx.late(batch.record(number), watermark, ttl)
                lost.append(number)
                continue
            cell: SetCell | None = entry.cells[slot]
            if cell is None:
                entry.cells[slot] = SetCell({id: time}, 1)
            elif id not in cell.times or cell.times[id] <= horizon:
                if cell.oldest <= horizon:
                    cell.expire(horizon, entry.chunk_io(slot))
                cell.times[id] = time  # `SetCell.add`, without the call
                cell.tail += 1
                if time < cell.oldest:
                    cell.oldest = time
            else:
                ctx.side("duplicates", batch.record(number))
                lost.append(number)
        return kept(batch, lost)
