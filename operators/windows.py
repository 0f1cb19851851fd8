"""Descriptions of windows: which stretch of event time an aggregate is taken over.

A description is a frozen value with durations in milliseconds; it holds no state and keeps no events. Windows are half
open, `[start, end)`, and aligned to the epoch, also before it. A *tile* is the unit in which an operator stores
partial results: the longer the tile, the smaller the state and the coarser the window's older edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

from streamml.errors import PlanError
from streamml.times import MAX_TIME, MIN_TIME, Duration, format_duration, to_millis

__all__ = [
    "AllTimeWindow",
    "AnyWindow",
    "SessionWindow",
    "SlidingWindow",
    "TrailingWindow",
    "TumblingWindow",
    "all_time",
    "positive_millis",
    "session",
    "sliding",
    "trailing",
    "tumbling",
]


def positive_millis(value: Duration, where: str) -> int:
    """Return a duration of at least one millisecond, in milliseconds.

    Raises:
        PlanError: it is not a duration, or is shorter than a millisecond.

    >>> positive_millis("10m", "size")
    600000
    """
    try:
        millis = to_millis(value, where=where)
    except ValueError as exc:
        raise PlanError(str(exc)) from exc
    if millis == 0:
        msg = f"{where}: wanted a duration of at least 1ms, got {value!r}. Write it as '10s' or as milliseconds."
        raise PlanError(msg)
    return millis


def _whole(where: str, size: int, tile: int) -> None:
    if size % tile:
        msg = (
            f"{where}: the size must be a whole number of tiles, got size={format_duration(size)} and "
            f"tile={format_duration(tile)}. For example tile={format_duration(gcd(size, tile))!r}."
        )
        raise PlanError(msg)


@dataclass(frozen=True)
class AllTimeWindow:
    """Every event of the key so far. Built by `all_time`.

    Attributes:
        tile: milliseconds in a tile: events of one tile may come in any order.
    """

    tile: int

    def tile_of(self, time: int) -> int:
        """Return the number of the tile that holds this time; tile 0 starts at the epoch."""
        return time // self.tile

    def bounds(self, time: int) -> tuple[int, int]:
        """Return `(MIN_TIME, MAX_TIME)`: this window has no edges."""
        return MIN_TIME, MAX_TIME

    def __str__(self) -> str:
        return f"all_time(tile={format_duration(self.tile)})"


@dataclass(frozen=True)
class TumblingWindow:
    """Windows of one size, end to end. Built by `tumbling`.

    Attributes:
        size: milliseconds in a window.
        tile: milliseconds in a tile; divides the size.
    """

    size: int
    tile: int

    def __post_init__(self) -> None:
        _whole("tumbling window", self.size, self.tile)

    def tile_of(self, time: int) -> int:
        """Return the number of the tile that holds this time; tile 0 starts at the epoch."""
        return time // self.tile

    def starts(self, time: int) -> list[int]:
        """Return the start of the one window that holds this time."""
        return [time - time % self.size]

    def bounds(self, time: int) -> tuple[int, int]:
        """Return start and end of the window that holds this time."""
        start = time - time % self.size
        return start, start + self.size

    def __str__(self) -> str:
        tile = "" if self.tile == self.size else f", tile={format_duration(self.tile)}"
        return f"tumbling({format_duration(self.size)}{tile})"


@dataclass(frozen=True)
class TrailingWindow:
    """The last stretch of time up to each event, to the tile. Built by `trailing`.

    Attributes:
        size: milliseconds in the window.
        tile: milliseconds in a tile; divides the size.
    """

    size: int
    tile: int

    def __post_init__(self) -> None:
        _whole("trailing window", self.size, self.tile)

    @property
    def tiles(self) -> int:
        """Number of tiles in the window, the event's own included."""
        return self.size // self.tile

    def tile_of(self, time: int) -> int:
        """Return the number of the tile that holds this time; tile 0 starts at the epoch."""
        return time // self.tile

    def bounds(self, time: int) -> tuple[int, int]:
        """Return start and end of the tiles that make the window of an event at this time."""
        end = (time // self.tile + 1) * self.tile
        return end - self.size, end

    def __str__(self) -> str:
        return f"trailing({format_duration(self.size)}, tile={format_duration(self.tile)})"


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of one size, a new one every `slide`; they overlap. Built by `sliding`.

    Attributes:
        size: milliseconds in a window.
        slide: milliseconds from one window's start to the next one's; at most the size.
    """

    size: int
    slide: int

    def __post_init__(self) -> None:
        if self.slide > self.size:
            msg = (
                f"sliding window: the slide can't be longer than the size, else events fall between windows; got "
                f"size={format_duration(self.size)} and slide={format_duration(self.slide)}. "
                f"For windows end to end write tumbling({format_duration(self.size)!r})."
            )
            raise PlanError(msg)

    @property
    def tile(self) -> int:
        """The longest tile of which every window is a whole number."""
        return gcd(self.size, self.slide)

    def tile_of(self, time: int) -> int:
        """Return the number of the tile that holds this time; tile 0 starts at the epoch."""
        return time // self.tile

    def starts(self, time: int) -> list[int]:
        """Return the starts of all windows that hold this time, oldest first."""
        slide = self.slide
        return list(range(((time - self.size) // slide + 1) * slide, time + 1, slide))

    def __str__(self) -> str:
        return f"sliding({format_duration(self.size)}, slide={format_duration(self.slide)})"


@dataclass(frozen=True)
class SessionWindow:
    """Runs of events with less than `gap` between neighbours. Built by `session`.

    Attributes:
        gap: milliseconds of silence that end a session; a session ends `gap` after its last event.
    """

    gap: int

    def __str__(self) -> str:
        return f"session({format_duration(self.gap)})"


AnyWindow: TypeAlias = AllTimeWindow | TumblingWindow | TrailingWindow | SlidingWindow | SessionWindow
"""Any of the descriptions; an operator says which of them it takes."""


def all_time(tile: Duration = "1s") -> AllTimeWindow:
    """Describe the window of every event so far.

    Args:
        tile: unit of the stored partial results.

    >>> all_time()
    AllTimeWindow(tile=1000)
    """
    return AllTimeWindow(positive_millis(tile, "all_time, tile"))


def tumbling(size: Duration, tile: Duration | None = None) -> TumblingWindow:
    """Describe windows of one size, end to end.

    Args:
        size: length of a window.
        tile: unit of the stored partial results, a whole part of the size; the size itself by default.

    >>> tumbling("10m").bounds(-1)
    (-600000, 0)
    """
    millis = positive_millis(size, "tumbling, size")
    return TumblingWindow(millis, millis if tile is None else positive_millis(tile, "tumbling, tile"))


def trailing(size: Duration, tile: Duration) -> TrailingWindow:
    """Describe the window that trails each event.

    It is made of whole tiles: the event's own and those before it. So it never counts an event older than `size`,
    and always counts one that is not older than `size` less one `tile`.

    Args:
        size: length of the window.
        tile: unit of the stored partial results, a whole part of the size; the work per event grows with size / tile.

    >>> window = trailing("10m", tile="10s")
    >>> window.tiles, window.bounds(600_000)
    (60, (10000, 610000))
    """
    return TrailingWindow(positive_millis(size, "trailing, size"), positive_millis(tile, "trailing, tile"))


def sliding(size: Duration, slide: Duration) -> SlidingWindow:
    """Describe windows of one size that start every `slide`.

    Args:
        size: length of a window.
        slide: from one window's start to the next one's; at most the size.

    >>> sliding("10s", slide="5s").starts(12_000)
    [5000, 10000]
    """
    return SlidingWindow(positive_millis(size, "sliding, size"), positive_millis(slide, "sliding, slide"))


def session(gap: Duration) -> SessionWindow:
    """Describe sessions: runs of events that a silence of `gap` ends.

    Args:
        gap: an event this long after its neighbour, or longer, is in another session.

    >>> session("30m")
    SessionWindow(gap=1800000)
    """
    return SessionWindow(positive_millis(gap, "session, gap"))
