"""How a stage learns Beam's watermark, which Beam does not tell a DoFn: from the timers that fire.

A timer for T fires when the watermark is at or past T, and not before. So a key group keeps a timer some way ahead of
what it knows, the next *look*; when that fires, it knows more. What it knows is never ahead of Beam's watermark, and so
nothing is late that Beam does not hold late.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Sequence

from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from streamml.state.descriptors import NEVER
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["LAST", "arrival", "from_beam", "next_look", "to_beam"]

LAST: int = GlobalWindow().max_timestamp().micros // 1000
"""Newest time that a timer can have, ms: when the watermark gets there, the input has ended."""
_FIRST: int = MIN_TIMESTAMP.micros // 1000
_FIRST_LOOK = 3_600_000
_NEAR = 16
_GROWTH = 3


_arrivals = threading.Lock()
_newest_arrival = 0


def arrival() -> Timestamp:
    """Return the Beam time of rows on their way to a keyed stage: the wall clock, moved to before every event.

    Never twice the same.

    A runner may hand the waiting elements of a key over by their Beam time, and no element that is newer than a pending
    timer (Prism does both). So they are handed over in the order of arrival, and a stage's watermark does not pass a
    row that is on its way.
    """
    global _newest_arrival
    with _arrivals:
        _newest_arrival = max(_newest_arrival + 1, int(time.time() * 1000))
        return Timestamp(micros=MIN_TIMESTAMP.micros + 1000 * _newest_arrival)


def to_beam(time: int) -> Timestamp:
    """Return a time as Beam has it, within what Beam can hold.

    >>> to_beam(1500)
    Timestamp(1.500000)
    """
    return Timestamp(micros=1000 * min(max(time, _FIRST), LAST))


def from_beam(time: Timestamp) -> int:
    """Return the watermark that is known when a timer of this time fires.

    >>> from_beam(Timestamp(2)), from_beam(GlobalWindow().max_timestamp()) == MAX_TIME
    (2000, True)
    """
    millis: int = time.micros // 1000
    return MAX_TIME if millis >= LAST else millis


def next_look(known: int, newest: int, step: int, points: Sequence[int] = ()) -> int:
    """Return the event time at which to look for the watermark next.

    While events come it lies behind the newest of them. Within 16 steps of that it is followed step by step; when it is
    further behind, the look is at half the distance. Past the newest event the distance grows to four times what it
    was, so a silent group costs little, and the end of the input some twenty timers.

    Args:
        known: the watermark that is known.
        newest: the newest event time that the group has seen, `MIN_TIME` if none.
        step: the least distance, ms.
        points: look at these times only.

    >>> next_look(100_000, 108_000, 1_000), next_look(100_000, 200_000, 1_000), next_look(200_000, 108_000, 1_000)
    (101000, 150000, 476000)
    """
    if points:
        place = bisect_right(points, known)
        return points[place] if place < len(points) else NEVER
    if newest == MIN_TIME or known >= LAST:
        return NEVER
    if known == MIN_TIME:
        return newest - _FIRST_LOOK
    gap = newest - known
    distance = min(gap // 2, gap - _NEAR * step) if gap > 0 else -gap * _GROWTH
    return min(known + max(step, distance), LAST)
