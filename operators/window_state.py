"""What `Window` keeps of one key: the windows that may still change, and what is due for them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from streamml.operators.aggregation import Aggregation
from streamml.operators.windows import SessionWindow, SlidingWindow, TumblingWindow
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["AlignedWindows", "Firing", "SessionWindows", "WindowPlan", "Windows"]

# A session compared with its last result; reopened: it had ended.
_AS_EMITTED, _CHANGED, _REOPENED = 0, 1, 2


class Firing(NamedTuple):
    """A result to emit, or one to take back.

    Attributes:
        start, end: the window.
        revision: 0 for the first result of the window.
        results: the aggregates; None takes the last result back.
        early: the window is still open.
        reason: why it replaces an older result, if it does.
        into: start of the session that swallowed this one, if one did.
    """

    start: int
    end: int
    revision: int
    results: tuple[Any, ...] | None
    early: bool = False
    reason: str = ""
    into: int | None = None


class WindowPlan:
    """What the windows of all keys have in common. A session's window for one event is `[time, time + gap)`.

    Args:
        aggregation: what is kept of events.
        window: which windows.
        lateness: how long a window may be corrected after its end, ms.
        early: interval of early results, ms.
    """

    __slots__ = ("aggregation", "early", "keep", "lateness", "revised", "session", "size", "slide", "tile")

    def __init__(
        self,
        aggregation: Aggregation,
        window: TumblingWindow | SlidingWindow | SessionWindow,
        lateness: int,
        early: int | None,
    ) -> None:
        self.aggregation = aggregation
        self.lateness = lateness
        self.early = early
        self.revised = bool(lateness or early)
        self.session = isinstance(window, SessionWindow)
        if isinstance(window, SessionWindow):
            self.size, self.slide, self.tile = window.gap, 1, 1
        elif isinstance(window, SlidingWindow):
            self.size, self.slide, self.tile = window.size, window.slide, window.tile
        else:
            self.size, self.slide, self.tile = window.size, window.size, window.tile
        self.keep = self.size + lateness

    def gone(self, time: int, watermark: int) -> bool:
        """Return whether no window of an event of this time can change any more."""
        return time - time % self.slide + self.keep <= watermark

    def start_after(self, time: int) -> int:
        """Return the start of the first window that ends after this time."""
        return ((time - self.size) // self.slide + 1) * self.slide

    def next_early(self, time: int) -> int:
        """Return the first time after this one at which early results are emitted."""
        return MAX_TIME if self.early is None else (time // self.early + 1) * self.early

    def earliest_timer(self, watermark: int, earliest: int) -> int:
        """Return a time before which no event from time `earliest` on makes anything due."""
        bound = self.start_after(earliest) + self.size
        if bound <= watermark:  # it may correct a window that has ended and is purged later
            ended = self.start_after(watermark - self.lateness) + self.keep
            bound = min(self.start_after(watermark) + self.size, ended)
        return min(bound, self.next_early(watermark))

    def new(self) -> Windows:
        """Return the windows of a key that had no event yet."""
        return SessionWindows([]) if self.session else AlignedWindows([], [], {}, set())

    def to_wire(self, windows: Windows) -> list[Any]:
        """Return windows as msgpack-able data."""
        to_wire = self.aggregation.to_wire
        if isinstance(windows, SessionWindows):
            return [windows.timer, [[*session[:4], to_wire(session[4])] for session in windows.sessions]]
        accs = [to_wire(accs) for accs in windows.accs]
        return [windows.timer, windows.numbers, accs, list(windows.revisions.items()), sorted(windows.changed)]

    def from_wire(self, wire: Sequence[Any]) -> Windows:
        """Return the windows that `to_wire` gave."""
        from_wire = self.aggregation.from_wire
        if self.session:
            return SessionWindows([[*session[:4], from_wire(session[4])] for session in wire[1]], wire[0])
        timer, numbers, accs, revisions, changed = wire
        return AlignedWindows(list(numbers), [from_wire(a) for a in accs], dict(revisions), set(changed), timer)

    def last_end(self, windows: Windows) -> int:
        """Return the end of the last window that has an event."""
        if isinstance(windows, SessionWindows):
            return int(windows.sessions[-1][1]) + self.size if windows.sessions else MIN_TIME
        newest = windows.numbers[-1] * self.tile if windows.numbers else MIN_TIME
        return newest // self.slide * self.slide + self.size


class AlignedWindows:
    """Tumbling or sliding windows of one key, as tiles of which every window is a whole number.

    Attributes:
        numbers, accs: the tiles that have an event, oldest first, and their accumulators.
        revisions: last revision by window start, of windows whose result may still be replaced.
        changed: starts of open windows that had an event since their last result (only with early results).
        timer: time of the key's one timer, at or before whatever is due next; `MAX_TIME` for none.
    """

    __slots__ = ("accs", "changed", "numbers", "revisions", "timer")

    def __init__(
        self,
        numbers: list[int],
        accs: list[list[Any]],
        revisions: dict[int, int],
        changed: set[int],
        timer: int = MAX_TIME,
    ) -> None:
        self.numbers = numbers
        self.accs = accs
        self.revisions = revisions
        self.changed = changed
        self.timer = timer

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def add(self, plan: WindowPlan, row: Sequence[Any], time: int, watermark: int) -> list[Firing] | None:
        """Add an event that is not late (its checked row); None says that nothing is to be emitted or newly due."""
        numbers = self.numbers
        number = time // plan.tile
        at = len(numbers) - 1
        known = at >= 0 and numbers[at] == number
        if not known:
            at = bisect_left(numbers, number)
            known = at < len(numbers) and numbers[at] == number
            if not known:
                numbers.insert(at, number)
                self.accs.insert(at, plan.aggregation.new())
        plan.aggregation.add(self.accs[at], row, time)
        first = plan.start_after(time)
        if known and plan.early is None and first + plan.size > watermark:
            return None
        firings: list[Firing] = []
        for start in range(max(first, plan.start_after(watermark - plan.lateness)), time + 1, plan.slide):
            if start + plan.size <= watermark:
                tiles = self._tiles(plan, start)
                firings.append(self._result(plan, start, start + plan.size, "late event", tiles))
            elif plan.early is not None:
                self.changed.add(start)
        return firings

    def fire(self, plan: WindowPlan, time: int) -> list[Firing]:
        """Return the results that are due at this time, and drop what can't change any more."""
        firings: list[Firing] = []
        closing = time - plan.size
        if closing % plan.slide == 0 and (tiles := self._tiles(plan, closing)):
            firings.append(self._result(plan, closing, time, "early", tiles))
            self.changed.discard(closing)
        if plan.early is not None and time % plan.early == 0:
            for start in sorted(start for start in self.changed if start < time):
                firings.append(self._result(plan, start, time, "early", self._tiles(plan, start)))
                self.changed.remove(start)
        kept = plan.start_after(time - plan.lateness)
        if self.numbers[0] * plan.tile < kept:
            gone = bisect_left(self.numbers, kept // plan.tile)
            del self.numbers[:gone], self.accs[:gone]
        for start in [start for start in self.revisions if start < kept]:
            del self.revisions[start]
        return firings

    def due(self, plan: WindowPlan, now: int) -> int:
        """Return a time after `now`, at or before whatever is due next; there is a tile."""
        numbers, tile, slide = self.numbers, plan.tile, plan.slide
        due = numbers[0] * tile // slide * slide + plan.keep
        opened = plan.start_after(now)
        at = bisect_left(numbers, opened // tile)
        if at < len(numbers):
            due = min(due, max(opened, plan.start_after(numbers[at] * tile)) + plan.size)
        return min(due, plan.next_early(max(now, min(self.changed)))) if self.changed else due

    def _tiles(self, plan: WindowPlan, start: int) -> list[list[Any]]:
        numbers, tile = self.numbers, plan.tile
        return self.accs[bisect_left(numbers, start // tile) : bisect_left(numbers, (start + plan.size) // tile)]

    def _result(self, plan: WindowPlan, start: int, time: int, reason: str, tiles: list[list[Any]]) -> Firing:
        accs, *others = tiles
        for other in others:
            accs = plan.aggregation.merge(accs, other)
        revision = 0
        if plan.revised:
            revision = self.revisions[start] = self.revisions.get(start, -1) + 1
        end = start + plan.size
        return Firing(start, end, revision, plan.aggregation.results(accs, time, start, end), time < end, reason)


class SessionWindows:
    """The sessions of one key.

    Attributes:
        sessions: [start, last event, last revision (-1: none), how it differs from that, accumulators], oldest first.
        timer: time of the key's one timer, at or before whatever is due next; `MAX_TIME` for none.
    """

    __slots__ = ("sessions", "timer")

    def __init__(self, sessions: list[list[Any]], timer: int = MAX_TIME) -> None:
        self.sessions = sessions
        self.timer = timer

    def __bool__(self) -> bool:
        return bool(self.sessions)

    def add(self, plan: WindowPlan, row: Sequence[Any], time: int, watermark: int) -> list[Firing] | None:
        """Add an event that is not late (its checked row); None says that nothing is to be emitted or newly due."""
        if self.sessions:
            newest = self.sessions[-1]
            if newest[0] <= time < newest[1] + plan.size and newest[3] != _AS_EMITTED:  # so it has not ended
                plan.aggregation.add(newest[4], row, time)
                if time > newest[1]:
                    newest[1] = time
                return None
        return self._join(plan, row, time, watermark)

    def _join(self, plan: WindowPlan, row: Sequence[Any], time: int, watermark: int) -> list[Firing]:
        sessions, gap, aggregation = self.sessions, plan.size, plan.aggregation
        low = sum(1 for session in sessions if session[1] + gap <= time)
        high = sum(1 for session in sessions if session[0] < time + gap)
        joined = sessions[low:high]
        start = min([time, *(session[0] for session in joined)])
        merged = [start, time, -1, _CHANGED, aggregation.new() if not joined else joined[0][4]]
        firings: list[Firing] = []
        for number, (begin, last, revision, state, accs) in enumerate(joined):
            end = last + gap
            merged[1] = max(merged[1], last)
            if number:
                merged[4] = aggregation.merge(merged[4], accs)
            if begin == start:  # the same session still, and its results go on
                merged[2] = revision
                merged[3] = _REOPENED if end <= watermark else max(state, _CHANGED)
            elif revision >= 0:
                firings.append(Firing(begin, end, revision + 1, None, reason="merged", into=start))
        aggregation.add(merged[4], row, time)
        sessions[low:high] = [merged]
        if merged[1] + gap <= watermark:
            firings.append(self._result(plan, merged, merged[1] + gap))
        return firings

    def fire(self, plan: WindowPlan, time: int) -> list[Firing]:
        """Return the results that are due at this time, and drop what can't change any more."""
        firings: list[Firing] = []
        tick = plan.early is not None and time % plan.early == 0
        for session in self.sessions:
            end = session[1] + plan.size
            if end == time or (tick and session[3] != _AS_EMITTED and session[0] < time < end):
                firings.append(self._result(plan, session, time))
        self.sessions = [session for session in self.sessions if session[1] + plan.keep > time]
        return firings

    def due(self, plan: WindowPlan, now: int) -> int:
        """Return a time after `now`, at or before whatever is due next; there is a session."""
        due = MAX_TIME
        for start, last, _, state, _ in self.sessions:
            end = last + plan.size
            due = min(due, end if end > now else last + plan.keep)
            if state != _AS_EMITTED:
                due = min(due, plan.next_early(max(now, start)))
        return due

    def _result(self, plan: WindowPlan, session: list[Any], time: int) -> Firing:
        start, last, revision, state, accs = session
        end = last + plan.size
        session[2:4] = revision + 1, _AS_EMITTED
        reason = "late event" if state == _REOPENED else "early"
        return Firing(start, end, revision + 1, plan.aggregation.results(accs, time, start, end), time < end, reason)


Windows: TypeAlias = AlignedWindows | SessionWindows
"""What is kept of one key."""
