"""In-memory form of the growing states of one key: a list and a set, spilled in chunks, and a map, stored by entry.

A list or a set keeps only its tail in the key's row; each time the tail has `CHUNK` elements it is written once as an
immutable chunk row. So an append costs the same whether the key holds ten elements or a million.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
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
    """Values with the event time of each: a dict in order of insertion, spilled like a list."""

    __slots__ = ("chunks", "first", "oldest", "tail", "times")

    def __init__(
        self, times: dict[Any, int], tail: dict[Any, int], first: int = 0, chunks: list[int] | None = None
    ) -> None:
        self.times = times
        self.oldest = min(times.values(), default=_LATEST)
        self.tail = tail  # what is not in a stored chunk, a part of `times`
        self.first = first
        self.chunks = chunks if chunks is not None else []  # for each stored chunk the newest time in it

    def add(self, value: Any, time: int) -> None:
        self.times[value] = self.tail[value] = time
        if time < self.oldest:
            self.oldest = time

    def expire(self, horizon: int, io: ChunkIO) -> None:
        """Forget values whose time is at or before the horizon; stored chunks go as a whole."""
        if self.oldest > horizon:
            return
        while self.chunks and self.chunks[0] <= horizon:
            io.drop(self.first, self.first + 1)
            self.first += 1
            self.chunks.pop(0)
        self.times = {value: time for value, time in self.times.items() if time > horizon}
        self.tail = {value: time for value, time in self.tail.items() if time > horizon}
        self.oldest = min(self.times.values(), default=_LATEST)

    def wire(self, io: ChunkIO) -> list[Any]:
        """Spill full chunks and return what goes into the key's row."""
        if len(self.tail) >= 2 * CHUNK:
            values = list(self.tail)
            stop = len(values) // CHUNK * CHUNK
            for start in range(0, stop, CHUNK):
                part = values[start : start + CHUNK]
                times = [self.tail[value] for value in part]
                io.put(self.first + len(self.chunks), part, times)
                self.chunks.append(max(times))
            self.tail = {value: self.tail[value] for value in values[stop:]}
        return [self.first, self.chunks, list(self.tail), list(self.tail.values())]


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
