"""In-memory form of the growing states of one key: a list and a set, spilled in chunks, and a map, stored by entry.

A list or a set keeps only its tail in the key's row; each time the tail has `CHUNK` elements it is written once as an
immutable chunk row. So an append costs the same whether the key holds ten elements or a million.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

__all__ = ["ABSENT", "CHUNK", "Absent", "ChunkIO", "ListCell", "MapCell", "MapIO", "SetCell"]

CHUNK = 256
"""Elements of a chunk row of a list or a set."""
_LATEST = 2**62


class Absent(enum.Enum):
    """Sentinel for "no such entry", so that None stays a legal value."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


class ChunkIO(Protocol):
    """Where a cell puts its immutable chunks; given by the state table for one key and one state."""

    def put(self, number: int, values: list[Any], times: list[int]) -> None:
        """Store a chunk."""
        ...

    def drop(self, first: int, stop: int) -> None:
        """Delete the chunks from `first` up to `stop`."""
        ...


class ListCell:
    """Values in order of arrival with the event time of each."""

    __slots__ = ("chunks", "first", "spilled", "times", "values")

    def __init__(self, values: list[Any], times: list[int], first: int = 0, chunks: list[int] | None = None) -> None:
        self.values = values
        self.times = times
        self.first = first  # number of the oldest chunk that is stored
        self.chunks = chunks if chunks is not None else []  # sizes of the stored chunks
        self.spilled = sum(self.chunks)  # leading values that stand in stored chunks

    def append(self, value: Any, time: int) -> None:
        self.values.append(value)
        self.times.append(time)

    def remove_newest(self) -> None:
        """Take back the last `append`."""
        self.values.pop()
        self.times.pop()

    def forget_chunks(self) -> None:
        """Take the stored chunks for gone: everything in memory is to be stored again, under new numbers."""
        self.first += len(self.chunks)
        self.chunks = []
        self.spilled = 0

    def expire(self, horizon: int, io: ChunkIO) -> None:
        """Forget leading elements whose time is at or before the horizon, whole chunks at a time where stored."""
        while self.chunks and max(self.times[: self.chunks[0]]) <= horizon:
            size = self.chunks.pop(0)
            io.drop(self.first, self.first + 1)
            self.first += 1
            self.spilled -= size
            del self.values[:size], self.times[:size]
        if not self.chunks:
            gone = 0
            for time in self.times:
                if time > horizon:
                    break
                gone += 1
            if gone:
                del self.values[:gone], self.times[:gone]

    def wire(self, io: ChunkIO) -> list[Any]:
        """Spill full chunks and return what goes into the key's row."""
        while len(self.values) - self.spilled >= 2 * CHUNK:
            start, stop = self.spilled, self.spilled + CHUNK
            io.put(self.first + len(self.chunks), self.values[start:stop], self.times[start:stop])
            self.chunks.append(CHUNK)
            self.spilled = stop
        return [self.first, self.chunks, self.values[self.spilled :], self.times[self.spilled :]]


class SetCell:
    """Values with the event time of each, in order of insertion; the oldest ones may stand in stored chunks."""

    __slots__ = ("chunks", "first", "oldest", "tail", "times")

    def __init__(self, times: dict[Any, int], tail: int, first: int = 0, chunks: Sequence[int] = ()) -> None:
        self.times = times
        self.tail = tail  # how many of the newest values are in no chunk
        self.oldest = min(times.values()) if times else _LATEST
        self.first = first  # number of the oldest chunk that is stored
        self.chunks = chunks  # for each stored chunk the newest time in it

    def add(self, value: Any, time: int) -> None:
        """Add a value that is not there."""
        self.times[value] = time
        self.tail += 1
        if time < self.oldest:
            self.oldest = time

    def remove_newest(self, value: Any) -> None:
        """Take back the last `add`."""
        del self.times[value]
        self.tail -= 1

    def expire(self, horizon: int, io: ChunkIO) -> None:
        """Forget values whose time is at or before the horizon; stored chunks go as a whole."""
        if self.oldest > horizon:
            return
        gone = 0
        while gone < len(self.chunks) and self.chunks[gone] <= horizon:
            gone += 1
        io.drop(self.first, self.first + gone)
        self.first += gone
        self.chunks = self.chunks[gone:]
        stored = len(self.times) - self.tail
        self.tail = sum(time > horizon for time in islice(self.times.values(), stored, None))
        self.times = {value: time for value, time in self.times.items() if time > horizon}
        self.oldest = min(self.times.values(), default=_LATEST)

    def newest(self) -> int:
        """Return the newest time that a value was added with, among those that may still live."""
        if not self.chunks:
            return max(self.times.values(), default=-_LATEST)
        tail = islice(self.times.values(), len(self.times) - self.tail, None)
        return max(max(tail, default=-_LATEST), max(self.chunks, default=-_LATEST))

    def wire(self, io: ChunkIO) -> list[Any]:
        """Spill full chunks and return what goes into the key's row."""
        if not self.chunks and self.tail < 2 * CHUNK:
            return [self.first, (), list(self.times), list(self.times.values())]
        items = list(islice(self.times.items(), len(self.times) - self.tail, None))
        if self.tail >= 2 * CHUNK:
            spilled = self.tail // CHUNK * CHUNK
            for start in range(0, spilled, CHUNK):
                part = items[start : start + CHUNK]
                times = [time for _, time in part]
                io.put(self.first + len(self.chunks), [value for value, _ in part], times)
                self.chunks = [*self.chunks, max(times)]
            self.tail -= spilled
            del items[:spilled]
        return [self.first, self.chunks, [value for value, _ in items], [time for _, time in items]]


class MapIO(Protocol):
    """Reads of a key's stored map entries; given by the state table."""

    def get(self, map_key: Any) -> tuple[Any, int] | None:
        """Return the stored value and its time."""
        ...

    def scan(self, low: Any, high: Any) -> Iterator[tuple[Any, tuple[Any, int]]]:
        """Yield the stored entries with low <= map key < high, in order."""
        ...


class MapCell:
    """Changes to a key's map that are not stored yet, in front of its stored entries."""

    __slots__ = ("changes", "io", "known")

    def __init__(self, io: MapIO) -> None:
        self.io = io
        self.changes: dict[Any, tuple[Any, int] | None] = {}
        self.known: dict[Any, tuple[Any, int] | None] = {}

    def get(self, map_key: Any) -> tuple[Any, int] | None:
        if map_key in self.known:
            return self.known[map_key]
        found = self.io.get(map_key)
        self.known[map_key] = found
        return found

    def put(self, map_key: Any, cell: tuple[Any, int] | None) -> None:
        self.known[map_key] = cell
        self.changes[map_key] = cell

    def scan(self, low: Any, high: Any) -> Iterator[tuple[Any, tuple[Any, int]]]:
        """Yield entries in the order of their map keys, changes over what is stored."""
        merged: dict[Any, tuple[Any, int] | None] = dict(self.io.scan(low, high))
        for map_key, cell in self.changes.items():
            if (low is ABSENT or map_key >= low) and (high is ABSENT or map_key < high):
                merged[map_key] = cell
        for map_key in sorted(merged):
            cell = merged[map_key]
            if cell is not None:
                yield map_key, cell
