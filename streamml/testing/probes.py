"""Small operators that show one part of the contract each; the conformance suite is written with them."""

from __future__ import annotations

from typing import Any

from streamml.contract import Context, KeyedOperator, Timer
from streamml.records import Batch, Record
from streamml.state import ListState, MapState, SetState, ValueState
from streamml.times import Duration, to_millis

__all__ = ["Alarm", "BatchAlarm", "Judge", "Remember", "WallAlarm"]


class Judge(KeyedOperator):
    """Says of each event which watermark it met; a late one goes to `late`.

    >>> from streamml.testing import advance, event, run
    >>> run([Judge()], [advance("5s"), event("k", t="4s")]).side("late")[0]["late_by_ms"]
    1000
    """

    sides = ("late",)

    allowed_lateness: Duration = 0

    def adds(self) -> list[str]:
        return ["watermark"]

    def on_event(self, event: Record, ctx: Context) -> None:
        allowed = to_millis(self.allowed_lateness)
        if event.timestamp < ctx.watermark - allowed:
            ctx.late(event, ctx.watermark, allowed)
        else:
            ctx.emit(event.with_fields(watermark=ctx.watermark))


class Remember(KeyedOperator):
    """Writes the field `n` of each event to one state of each kind and says what is there then.

    An event with `clear=True` clears them instead; one with `poison=True` raises after it has written.

    >>> from streamml.testing import event, run
    >>> result = run([Remember()], [event("k", t="1s", n=4), event("k", t="2s", n=4)])
    >>> result.main[1].fields
    {'before': 4, 'known': True, 'recent': [4, 4], 'distinct': [4], 'table': {'4': 2000}}
    """

    ttl: Duration | None = None

    latest = ValueState(int, ttl=lambda op: op.ttl)
    recent = ListState(int, ttl=lambda op: op.ttl)
    distinct = SetState(int, ttl=lambda op: op.ttl)
    table = MapState(str, int, ttl=lambda op: op.ttl)

    def adds(self) -> list[str]:
        return ["before", "known", "recent", "distinct", "table"]

    def on_event(self, event: Record, ctx: Context) -> None:
        fields = event.value
        before, known = self.latest.get(), fields.get("n") in self.distinct
        if fields.get("clear"):
            self.latest.clear()
            self.recent.clear()
            for key, _ in list(self.table.items()):
                self.table.delete(key)
        else:
            n = fields["n"]
            self.latest.set(n)
            self.recent.append(n)
            self.distinct.add(n)
            self.table.put(str(n), event.timestamp)
        if fields.get("poison"):
            msg = f"poison {fields['n']}"
            raise ValueError(msg)
        ctx.emit(
            event.with_fields(
                before=before,
                known=known,
                recent=self.recent.get(),
                distinct=sorted(self.distinct.get()),
                table=dict(self.table.items()),
            )
        )


class Alarm(KeyedOperator):
    """Sets a timer for `delay` after each event, named by the field `alarm`; `cancel=True` takes it back instead.

    A timer that fires emits how many events its key had by then. An event with `poison=True` raises after it has set
    its timer; one with `fatal=True` sets a timer that raises.

    >>> from streamml.testing import advance, event, run
    >>> result = run([Alarm(delay="5s")], [event("k", t="1s"), advance("6s"), event("k", t="7s")])
    >>> [(e.timestamp, e.events) for e in result.main]
    [(6000, 1), (12000, 2)]
    """

    delay: Duration = "10s"

    events = ValueState(int, default=0)

    def on_event(self, event: Record, ctx: Context) -> None:
        self._one(event.value, event.timestamp, ctx, None)

    def _one(self, fields: dict[str, Any], time: int, ctx: Context, entry: Any) -> None:
        name = "fatal" if fields.get("fatal") else str(fields.get("alarm", ""))
        due = time + to_millis(self.delay)
        if fields.get("cancel"):
            ctx.delete_timer(due, name, entry=entry)
        else:
            ctx.set_timer(due, name, entry=entry)
        self.events.set(self.events.get() + 1)
        if fields.get("poison"):
            msg = "poison"
            raise ValueError(msg)

    def on_timer(self, timer: Timer, ctx: Context) -> None:
        if timer.name == "fatal":
            msg = "fatal timer"
            raise RuntimeError(msg)
        fields = {"alarm": timer.name, "events": self.events.get(), "watermark": ctx.watermark}
        ctx.emit(ctx.result(f"{timer.key}@{timer.time}/{timer.name}", timer.time, fields))


class BatchAlarm(Alarm):
    """The same by batches: its timers must still fire between the right rows.

    >>> from streamml.testing import advance, event, run
    >>> script = [event("k", t="1s"), advance("6s"), event("k", t="7s")]
    >>> [(e.timestamp, e.events) for e in run([BatchAlarm(delay="5s")], script).main]
    [(6000, 1), (12000, 2)]
    """

    def earliest_timer(self, watermark: int, earliest: int) -> int:
        return earliest + to_millis(self.delay)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        for value, time, watermark, entry, key in zip(
            batch.values, batch.times, batch.watermarks, batch.entries or (), batch.keys, strict=True
        ):
            ctx.at(entry, None, key, time, watermark)
            self._one(value, time, ctx, entry)
        return batch.take([])


class WallAlarm(KeyedOperator):
    """Sets a processing-time timer `delay` after each event.

    >>> from streamml.testing import event, idle, run
    >>> [e.events for e in run([WallAlarm(delay="5s")], [event("k", t="1s"), event("k", t="2s"), idle("5s")]).main]
    [2]
    """

    delay: Duration = "10s"

    events = ValueState(int, default=0)

    def on_event(self, event: Record, ctx: Context) -> None:
        self.events.set(self.events.get() + 1)
        ctx.set_processing_timer(ctx.now + to_millis(self.delay))

    def on_timer(self, timer: Timer, ctx: Context) -> None:
        ctx.emit(ctx.result(f"{timer.key}@{timer.time}", timer.time, {"events": self.events.get()}))
