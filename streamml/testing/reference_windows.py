"""References of `Window` and `DriftMonitor`: every window keeps its events, or values, and is read when it is due."""

from __future__ import annotations

from typing import Any

from streamml.drift import Profile, Verdict, compare
from streamml.errors import UnsupportedError
from streamml.operators import DriftMonitor, Window
from streamml.operators.windows import SessionWindow, SlidingWindow
from streamml.records import Record
from streamml.testing.reference import Reference, reference
from streamml.testing.reference_aggregates import Seen, check, evaluate

__all__: list[str] = []


@reference(Window)
class _Window(Reference):
    """Tumbling and sliding windows. State by (key, start): events, the last revision (-1: none), changed or not."""

    def __init__(self, op: Any, pipeline: str) -> None:
        super().__init__(op, pipeline)
        if isinstance(op.window, SessionWindow):
            self.__class__ = _SessionWindow
            return
        self.size = op.window.size
        self.slide = op.window.slide if isinstance(op.window, SlidingWindow) else op.window.size

    def on_row(self, row: Record) -> None:
        time, watermark, keep = row.timestamp, self.moment.watermark, self.size + self.op.allowed_lateness
        newest = time - time % self.slide
        starts = [s for s in range(newest, time - self.size, -self.slide) if s + keep > watermark][::-1]
        if not starts:
            self.late(row, self.op.allowed_lateness)
            return
        event = Seen(time, check(row, self.op.fields))
        for start in starts:
            window = self.state.setdefault((row.key, start), {"events": [], "revision": -1, "changed": False})
            window["events"].append(event)
            end = start + self.size
            if end <= watermark:
                self._result(row.key, start, end, window, end, "late event")
            else:
                window["changed"] = True
                self._remind(row.key, start, end, watermark)

    def on_timer(self, time: int, key: Any, name: str) -> None:
        mine = sorted(start for k, start in self.state if k == key)
        for start in mine:
            if start + self.size == time:
                self._result(key, start, time, self.state[key, start], time, "early")
        for start in mine:
            window, end = self.state[key, start], start + self.size
            if self._early(time) and start < time < end and window["changed"]:
                self._result(key, start, end, window, time, "early")

    def _early(self, time: int) -> bool:
        return self.op.early is not None and time % self.op.early == 0

    def _remind(self, key: Any, start: int, end: int, now: int) -> None:
        """Set timers for the end of an open window, and for its next early result after `now`."""
        self.timers.add((end, key, ""))
        if self.op.early is not None:
            tick = (max(now, start) // self.op.early + 1) * self.op.early
            if tick < end:
                self.timers.add((tick, key, ""))

    def _id(self, key: Any, start: int, end: int) -> str:
        return f"{self.pipeline}/{self.op.name}/{key}/{start}-{end}"

    def _result(self, key: Any, start: int, end: int, window: dict[str, Any], time: int, reason: str) -> None:
        """Emit what a window holds as of a time."""
        window["changed"] = False
        window["revision"] += 1
        values = evaluate(self.op.fields, window["events"], time, start, end)
        self._emit(key, start, end, window["revision"], values, time < end, reason)

    def _emit(
        self,
        key: Any,
        start: int,
        end: int,
        revision: int,
        values: dict[str, Any] | None,
        early: bool,
        reason: str,
        **more: Any,
    ) -> None:
        replaces = revision - 1 if revision else None
        fields = {
            **(dict.fromkeys(self.op.fields) if values is None else values),
            "window_start": start,
            "window_end": end,
            "revision": revision,
            "replaces": replaces,
            "retracted": values is None,
            "early": early,
        }
        record = Record(None, key=key, timestamp=end - 1, id=self._id(key, start, end), fields=fields)
        self.emit(record)
        if revision:
            self.side("corrections", record, revision=revision, replaces=replaces, reason=reason, **more)


class _SessionWindow(_Window):
    """Session windows. State by key: sessions with the first and last time of their events."""

    def on_row(self, row: Record) -> None:
        op, time, watermark = self.op, row.timestamp, self.moment.watermark
        gap, keep = op.window.gap, op.window.gap + op.allowed_lateness
        if time + keep <= watermark:
            self.late(row, op.allowed_lateness)
            return
        event = Seen(time, check(row, op.fields))
        alive = [s for s in self.state.get(row.key, ()) if s["last"] + keep > watermark]
        joined = [s for s in alive if s["start"] < time + gap and time < s["last"] + gap]
        start = min([time, *(s["start"] for s in joined)])
        session = {"start": start, "last": time, "revision": -1, "changed": True, "ended": False, "events": [event]}
        for other in sorted(joined, key=lambda s: s["start"]):
            end = other["last"] + gap
            session["last"] = max(session["last"], other["last"])
            session["events"] = [*session["events"][:-1], *other["events"], event]
            if other["start"] == start:
                session["revision"] = other["revision"]
                session["ended"] = other["ended"] or end <= watermark
            elif other["revision"] >= 0:
                into = self._id(row.key, start, end)
                self._emit(row.key, other["start"], end, other["revision"] + 1, None, False, "merged", merged_into=into)
        self.state[row.key] = [*(s for s in alive if s not in joined), session]
        end = session["last"] + gap
        if end <= watermark:
            self._session_result(row.key, session, end)
        else:
            self._remind(row.key, start, end, watermark)

    def on_timer(self, time: int, key: Any, name: str) -> None:
        for session in sorted(self.state.get(key, ()), key=lambda s: s["start"]):
            end = session["last"] + self.op.window.gap
            early = self._early(time) and session["changed"] and session["start"] < time < end
            if end == time or early:
                self._session_result(key, session, time)
            elif time < end:
                self._remind(key, session["start"], end, time)

    def _session_result(self, key: Any, session: dict[str, Any], time: int) -> None:
        reason = "late event" if session["ended"] else "early"
        session["ended"] = False
        self._result(key, session["start"], session["last"] + self.op.window.gap, session, time, reason)

    def _id(self, key: Any, start: int, end: int) -> str:
        return f"{self.pipeline}/{self.op.name}/{key}/{start}"


@reference(DriftMonitor)
class _DriftMonitor(Reference):
    """State by window start: the values of each feature. What is drift is left to `streamml.drift.compare`."""

    def on_row(self, row: Record) -> None:
        if not isinstance(self.op.reference, Profile):
            msg = "the reference of DriftMonitor takes a Profile only"
            raise UnsupportedError(msg)
        self.emit(row)
        start = row.timestamp - row.timestamp % self.op.every
        if start + self.op.every > self.moment.watermark:
            window = self.state.setdefault(start, {feature: [] for feature in self.op.features})
            for feature, values in window.items():
                values.append(row.value.get(feature))
            self.timers.add((start + self.op.every, None, ""))

    def on_timer(self, time: int, key: Any, name: str) -> None:
        op = self.op
        start = time - op.every
        for feature, values in self.state.pop(start, {}).items():
            counts = [0] * len(op.reference[feature].counts)
            for value in values:
                counts[op.reference.bin_index(feature, value)] += 1
            shares = [count / op.design_effect for count in counts]
            found = compare(op.reference, feature, shares, op.false_alarm_rate, comparisons=len(op.features))
            if found.verdict is Verdict.DRIFT and len(values) >= op.min_events:
                stub = Record(None, timestamp=time, id=f"{self.pipeline}/{op.name}/{feature}/{start}")
                detail = {"psi": found.psi, "n": len(values), "counts": counts, "window_start": start}
                self.side("drift", stub, feature=feature, **detail)
