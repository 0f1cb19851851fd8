"""References of the operators that handle one event at a time, and of the probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamml.operators import Dedupe, Features, Filter, FlatMap, Map, Session
from streamml.operators.windows import AllTimeWindow, TumblingWindow
from streamml.records import Record
from streamml.testing.probes import Alarm, Judge, Remember, WallAlarm
from streamml.testing.reference import Reference, reference
from streamml.testing.reference_aggregates import Seen, check, evaluate
from streamml.times import MAX_TIME, MIN_TIME

__all__: list[str] = []


@reference(Map)
class _Map(Reference):
    def on_row(self, row: Record) -> None:
        made = self.op.function(row)
        if isinstance(made, Record):
            self.emit(made)
        else:
            self.emit(row.with_fields(**made) if isinstance(made, Mapping) else row.with_value(made))


@reference(Filter)
class _Filter(Reference):
    def on_row(self, row: Record) -> None:
        if self.op.function(row):
            self.emit(row)


@reference(FlatMap)
class _FlatMap(Reference):
    def on_row(self, row: Record) -> None:
        for number, made in enumerate(self.op.function(row)):
            part = row.with_fields(**made) if isinstance(made, Mapping) else row.with_value(made)
            part.id = f"{row.id}/{self.op.name}/{number}"
            self.emit(part)


@reference(Dedupe)
class _Dedupe(Reference):
    """Remembers (id, time) for ever and asks which of them still count."""

    def on_row(self, row: Record) -> None:
        ttl, watermark = self.op.ttl, self.moment.watermark
        if row.timestamp + ttl <= watermark:
            self.late(row, ttl)
            return
        id = str(row.id if self.op.id is None else row[self.op.id])
        let_through = self.state.setdefault(row.key, [])
        if any(other == id and time + ttl > watermark for other, time in let_through):
            self.side("duplicates", row)
        else:
            let_through.append((id, row.timestamp))
            self.emit(row)


@reference(Features)
class _Features(Reference):
    """Keeps every event that counted and picks those that an event sees."""

    def on_row(self, row: Record) -> None:
        op, time = self.op, row.timestamp
        if time < self.moment.watermark - op.allowed_lateness:
            self.late(row, op.allowed_lateness)
            return
        event = Seen(time, check(row, op.fields))
        events = self.state.setdefault(row.key, [])
        events.append(event)
        window = op.window
        tile = window.tile
        if isinstance(window, AllTimeWindow):
            start, end, first = MIN_TIME, MAX_TIME, MIN_TIME
        elif isinstance(window, TumblingWindow):
            start = time - time % window.size
            end, first = start + window.size, start
        else:
            end = (time // tile + 1) * tile
            start = first = end - window.size
        last = (time // tile + 1) * tile  # the end of its own tile
        seen = [other for other in events if first <= other.time < last]
        self.emit(row.with_fields(**evaluate(op.fields, seen, time, start, end)))


@reference(Session)
class _Session(Reference):
    """Keeps every event that counted, and finds the session of each by sorting."""

    def on_row(self, row: Record) -> None:
        op, time = self.op, row.timestamp
        if time < self.moment.watermark - op.allowed_lateness:
            self.late(row, op.allowed_lateness)
            return
        events = self.state.setdefault(row.key, [])
        events.append(Seen(time, check(row, op.fields)))
        times = sorted(other.time for other in events)
        first = last = time
        for other in times:
            if last <= other < last + op.gap:
                last = other
        for other in reversed(times):
            if first - op.gap < other <= first:
                first = other
        seen = [other for other in events if first <= other.time <= last]
        self.emit(row.with_fields(**evaluate(op.fields, seen, time, first, last)))


@reference(Judge)
class _Judge(Reference):
    def on_row(self, row: Record) -> None:
        if row.timestamp < self.moment.watermark - self.op.allowed_lateness:
            self.late(row, self.op.allowed_lateness)
        else:
            self.emit(row.with_fields(watermark=self.moment.watermark))


@reference(Remember)
class _Remember(Reference):
    """Writes (value, time) to lists and forgets nothing; what has expired is left out when it is read."""

    def _alive(self, written: int) -> bool:
        return self.op.ttl is None or written + self.op.ttl > self.moment.watermark

    def on_row(self, row: Record) -> None:
        mine = self.state.setdefault(row.key, {"latest": None, "recent": [], "distinct": {}, "table": {}})
        time, fields = row.timestamp, row.value
        latest = mine["latest"]
        before = latest[0] if latest is not None and self._alive(latest[1]) else None
        known = (
            self._alive(mine["distinct"].get(fields.get("n"), MIN_TIME))
            if fields.get("n") in mine["distinct"]
            else False
        )
        if fields.get("clear"):
            mine.update(latest=None, recent=[], table={})
        else:
            n = fields["n"]
            mine["latest"] = (n, time)
            mine["recent"].append((n, time))
            if n not in mine["distinct"] or not self._alive(mine["distinct"][n]):
                mine["distinct"][n] = time
            mine["table"][str(n)] = (time, time)
        if fields.get("poison"):
            raise ValueError
        found: dict[str, Any] = {
            "before": before,
            "known": known,
            "recent": [n for n, written in mine["recent"] if self._alive(written)],
            "distinct": sorted(n for n, written in mine["distinct"].items() if self._alive(written)),
            "table": {n: value for n, (value, written) in sorted(mine["table"].items()) if self._alive(written)},
        }
        self.emit(row.with_fields(**found))


@reference(Alarm)
class _Alarm(Reference):
    def on_row(self, row: Record) -> None:
        fields = row.value
        name = "fatal" if fields.get("fatal") else str(fields.get("alarm", ""))
        timer = (row.timestamp + self.op.delay, row.key, name)
        if fields.get("cancel"):
            self.timers.discard(timer)
        else:
            self.timers.add(timer)
        self.state[row.key] = self.state.get(row.key, 0) + 1
        if fields.get("poison"):
            raise ValueError

    def on_timer(self, time: int, key: Any, name: str) -> None:
        if name == "fatal":
            raise RuntimeError
        fields = {"alarm": name, "events": self.state[key], "watermark": self.moment.watermark}
        self.emit(Record(None, key=key, timestamp=time, id=f"{key}@{time}/{name}", fields=fields))


@reference(WallAlarm)
class _WallAlarm(Reference):
    def on_row(self, row: Record) -> None:
        self.state[row.key] = self.state.get(row.key, 0) + 1
        self.clock_timers.add((self.moment.now + self.op.delay, row.key, ""))

    def on_timer(self, time: int, key: Any, name: str) -> None:
        fields = {"events": self.state[key]}
        self.emit(Record(None, key=key, timestamp=time, id=f"{key}@{time}", fields=fields))
