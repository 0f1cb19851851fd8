"""Watermarks: per source partition, bounded out-of-orderness, idleness, and no trust in a lone clock.

The watermark promises that no event older than it is expected. It is the newest time of a partition less the bound,
the minimum over the partitions that are not idle, and it never falls. Each row gets the watermark in force just
before it, so whether an event is late depends on what arrived before it and not on where the stream was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["WatermarkTracker"]


@dataclass(slots=True)
class _Partition:
    bound: int
    max_jump: int
    idleness: int
    seen_at: int
    newest: int = MIN_TIME
    suspect: int = MIN_TIME
    idle: bool = False

    def watermark(self) -> int:
        return MIN_TIME if self.newest == MIN_TIME else self.newest - self.bound


class WatermarkTracker:
    """Follows the watermark of a pipeline over all partitions of all its sources.

    An event more than `max_jump` ahead of everything before it in its partition moves the watermark only when the next
    one of the partition is that far ahead too, or when the partition falls silent and the wall clock has got there; so
    one record with a broken clock does not make all others late. In a stream whose events are always that far apart
    the watermark is one event behind.

    >>> t = WatermarkTracker()
    >>> t.add("p", bound=5, max_jump=100, idleness=1000, now=0)
    >>> t.observe("p", [10, 12, 9999, 20], now=0)
    [-4611686018427387904, -4611686018427387904, 7, 7]
    >>> t.current
    15
    """

    def __init__(self) -> None:
        self.current = MIN_TIME
        self._partitions: dict[str, _Partition] = {}

    def add(self, partition: str, *, bound: int, max_jump: int, idleness: int, now: int) -> None:
        """Start to follow a partition; nothing happens when it is followed already."""
        if partition not in self._partitions:
            self._partitions[partition] = _Partition(bound, max_jump, idleness, now)

    def observe(self, partition: str, times: list[int], now: int) -> list[int]:
        """Return for each event of a run the watermark before it, and move the watermark on.

        Args:
            partition: where the run came from.
            times: event times in order of arrival, ms.
            now: wall clock, ms (for idleness only).
        """
        state = self._partitions[partition]
        state.seen_at = now
        state.idle = False
        others = self._minimum_without(partition)
        current, newest, bound, max_jump = self.current, state.newest, state.bound, state.max_jump
        suspect = state.suspect
        result: list[int] = []
        put = result.append
        for time in times:
            put(current)
            if time > newest:
                if time > newest + max_jump:
                    if suspect == MIN_TIME:
                        suspect = time
                        continue
                    newest, suspect = min(suspect, time), max(suspect, time)
                    if suspect <= newest + max_jump:
                        newest, suspect = suspect, MIN_TIME
                else:
                    newest, suspect = time, MIN_TIME
                reached = newest - bound
                if reached > others:
                    reached = others
                if reached > current:
                    current = reached
            elif suspect != MIN_TIME:
                suspect = MIN_TIME
        state.newest, state.suspect = newest, suspect
        self.current = current
        return result

    def partitions(self) -> list[str]:
        """Return the partitions that are followed."""
        return list(self._partitions)

    def finish(self, partition: str) -> None:
        """Stop following a partition: a bounded one has ended."""
        if self._partitions.pop(partition, None) is not None:
            self._advance(self._minimum_without(None))

    def idle(self, now: int) -> int:
        """Mark partitions that have been silent for too long as idle and return the watermark.

        While all are idle the watermark follows the wall clock, so that windows close although nothing comes.
        """
        states = self._partitions.values()
        for state in states:
            if not state.idle and now - state.seen_at >= state.idleness:
                state.idle = True
                if state.newest < state.suspect <= now:  # nothing spoke against it
                    state.newest, state.suspect = state.suspect, MIN_TIME
        if states and all(state.idle for state in states):
            started = [s.watermark() + (now - s.seen_at) for s in states if s.newest != MIN_TIME]
            self._advance(max(started, default=MIN_TIME))
        elif any(state.idle for state in states):
            self._advance(self._minimum_without(None))
        return self.current

    def _minimum_without(self, partition: str | None) -> int:
        return min(
            (s.watermark() for name, s in self._partitions.items() if name != partition and not s.idle),
            default=MAX_TIME,
        )

    def _advance(self, reached: int) -> None:
        if self.current < reached < MAX_TIME:
            self.current = reached

    def snapshot(self) -> dict[str, Any]:
        """Return the state, plain JSON."""
        return {"current": self.current, "partitions": {n: [s.newest, s.suspect] for n, s in self._partitions.items()}}

    def restore(self, stored: dict[str, Any]) -> None:
        """Continue from a snapshot; partitions that are no longer there are ignored."""
        self.current = stored["current"]
        for name, (newest, suspect) in stored["partitions"].items():
            if name in self._partitions:
                self._partitions[name].newest = newest
                self._partitions[name].suspect = suspect
