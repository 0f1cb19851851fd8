"""Flink's watermark and ours.

Flink's w says that no event with time <= w comes any more, ours that none older than w does: ours is Flink's plus
one. A timer for T fires when
ours is at or past T, so it is Flink's timer for T - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["before_each", "from_flink", "to_flink"]

_LEAST = -(2**63)
_MOST = 2**63 - 1


def from_flink(watermark: int) -> int:
    """Return our watermark for Flink's.

    >>> from_flink(999), from_flink(-(2**63)) == MIN_TIME, from_flink(2**63 - 1) == MAX_TIME
    (1000, True, True)
    """
    return min(max(watermark + 1, MIN_TIME), MAX_TIME)


def to_flink(time: int) -> int:
    """Return the time of the Flink timer that fires when our watermark reaches a time.

    >>> to_flink(1000)
    999
    """
    return min(max(time - 1, _LEAST), _MOST)


def before_each(watermarks: Sequence[int], least: int) -> list[int]:
    """Return our watermark before each record for Flink's, at least `least`.

    >>> before_each((4, 9), 7)
    [7, 10]
    """
    if watermarks and watermarks[0] == watermarks[-1]:
        return [max(from_flink(watermarks[0]), least)] * len(watermarks)
    return [max(from_flink(watermark), least) for watermark in watermarks]
