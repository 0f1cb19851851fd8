"""Durations and instants: milliseconds inside, `timedelta` or `"5s"` strings outside."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

__all__ = ["MAX_TIME", "MIN_TIME", "Duration", "format_duration", "format_time", "to_millis"]

MIN_TIME = -(2**62)
"""Before every event: the watermark of a stream that has seen nothing."""
MAX_TIME = 2**62
"""After every event: the watermark of a stream that has ended."""

if TYPE_CHECKING:
    Duration: TypeAlias = Any
else:
    Duration = Annotated[int | str | timedelta, "duration"]
    """Type of an operator's duration field: a user writes `"5s"`, a `timedelta` or milliseconds.

    The operator reads milliseconds (`int`).
    """

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def to_millis(value: int | float | str | timedelta, *, where: str = "duration") -> int:
    """Return a duration in milliseconds.

    Args:
        value: a `timedelta`, a string such as `"5s"`, `"250ms"` or `"1h30m"`, or a number of milliseconds.
        where: what the duration is for, for the error message.

    Raises:
        ValueError: the string has no unit or an unknown one, or the duration is negative.

    >>> to_millis("1h30m"), to_millis("250ms"), to_millis(timedelta(seconds=2))
    (5400000, 250, 2000)
    """
    if isinstance(value, timedelta):
        millis = round(value.total_seconds() * 1000)
    elif isinstance(value, str):
        parts = _PART.findall(value.replace(" ", ""))
        if not parts or "".join(number + unit for number, unit in parts) != value.replace(" ", ""):
            msg = f"{where}: wanted a duration such as '5s', '250ms' or '1h30m', got {value!r}"
            raise ValueError(msg)
        millis = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        millis = round(value)
    else:
        msg = f"{where}: wanted a timedelta, a string such as '5s' or milliseconds, got {type(value).__name__}"
        raise ValueError(msg)
    if millis < 0:
        msg = f"{where}: a duration can't be negative, got {value!r}"
        raise ValueError(msg)
    return millis


def format_duration(millis: int) -> str:
    """Write milliseconds as the shortest exact duration string.

    >>> format_duration(5_400_000), format_duration(1500)
    ('1h30m', '1500ms')
    """
    if millis == 0:
        return "0s"
    if millis % 1000:
        return f"{millis}ms"
    text, left = "", millis
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    return text


def format_time(millis: int) -> str:
    """Write an instant as UTC text, or `-` for a watermark that has not started or has ended.

    >>> format_time(1_700_000_000_000)
    '2023-11-14T22:13:20.000Z'
    """
    try:
        stamp = datetime.fromtimestamp(millis / 1000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return "-"
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
