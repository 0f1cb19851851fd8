"""The state of one key group in Flink's keyed state."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from streamml.errors import UnsupportedError
from streamml.state.sweeps import RareSweeps

__all__ = ["MEMORY", "PREFETCH", "FlinkMaps", "FlinkStore"]

PREFETCH = 10_000
"""Most rows of a map that are fetched in one call when a group is touched first."""

MEMORY = b"memory"
"""Key of what a stage remembers beside its rows, among the timers."""


class FlinkMaps:
    """The three map states of a stage, of the current Flink key: rows of keys, entries of users' maps, timers.

    They are apart so that timers are read at the first touch of a group without reading its rows, and a user's map is
    scanned without them.
    """

    def __init__(self, rows: Any, entries: Any, timers: Any) -> None:
        self.rows, self.entries, self.timers = rows, entries, timers


class FlinkStore:
    """A `Store` over the map states of one key group; used only while that group is Flink's current key.

    PyFlink reads a key that it has not cached by a call of some 0.3 ms. So the first touch of a map fetches its rows
    (up to
    `PREFETCH`) in one call; when that was all of them, PyFlink answers for absent keys, too, without a call.

    Args:
        maps: the stage's map states.
        sweep_every: how far the watermark or the clock moves on between two sweeps for expired rows, ms; 0 for never.
    """

    def __init__(self, maps: FlinkMaps, *, sweep_every: int = 0) -> None:
        self._maps = maps
        self._fetched: set[int] = set()
        self._index: list[bytes] | None = None  # keys of the users' map entries in order, once one was scanned
        self._sweeps = RareSweeps(sweep_every)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._map(key).get(key) for key in keys]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            state = self._map(key)
            if value is None:
                state.remove(key)
            else:
                state.put(key, value)
            if self._index is not None and key[3:4] == b"m":
                self._note(key, value is not None)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        if len(start) < 4:  # a sweep, over everything that can expire
            found = [*self._maps.rows.items(), *self._maps.entries.items()]
            return iter(sorted(row for row in found if start <= row[0] < stop))
        if start[3:4] == b"m":
            if self._index is None:
                self._index = sorted(self._maps.entries.keys())
            keys = self._index[bisect_left(self._index, start) : bisect_left(self._index, stop)]
            return iter([(key, value) for key in keys if (value := self._maps.entries.get(key)) is not None])
        return iter(sorted(row for row in self._map(start).items() if start <= row[0] < stop))

    def sweep_budget(self, watermark: int, now: int) -> int:
        """Return how many rows a sweep may look at now: all once in a while, for it walks over the whole group."""
        return self._sweeps.budget(watermark, now)

    def checkpoint(self, folder: Path) -> None:
        msg = "the state of a Flink job: checkpoints are Flink's own; take a savepoint with `streamml flink savepoint`"
        raise UnsupportedError(msg)

    def size(self) -> dict[str, int]:
        return {"bytes": 0, "rows": 0}

    def close(self) -> None:
        pass

    def _map(self, key: bytes) -> Any:
        kind = key[3:4]
        which = 2 if kind == b"t" or key == MEMORY else 1 if kind == b"m" else 0
        state = (self._maps.rows, self._maps.entries, self._maps.timers)[which]
        if which not in self._fetched:
            self._fetched.add(which)
            for _ in islice(state.items(), PREFETCH):
                pass
        return state

    def _note(self, key: bytes, there: bool) -> None:
        assert self._index is not None
        place = bisect_left(self._index, key)
        known = place < len(self._index) and self._index[place] == key
        if there and not known:
            insort(self._index, key)
        elif known and not there:
            del self._index[place]
