"""Timers of one operator: in order of time, one for each (key, name, clock), kept in the store between runs."""

from __future__ import annotations

import heapq
import struct
from typing import Any

import msgspec

from streamml.state.descriptors import NEVER
from streamml.state.layout import pack_header
from streamml.state.store import Store
from streamml.state.table import encode_key, key_group

__all__ = ["Timer", "TimerQueue"]

_ROUTE = struct.Struct(">HBcHBQ")  # key group, stage, kind, operator, clock, time
_BIAS = 2**63
_HEAD = pack_header(0, NEVER, NEVER)


class Timer(msgspec.Struct, frozen=True, order=True):
    """A timer that is due.

    Attributes:
        time: when it is due, milliseconds since the epoch.
        key_bytes: the encoded key (what orders timers of one time).
        name: the operator's own name for it.
        key: the key that it was set for.
    """

    time: int
    key_bytes: bytes
    name: str
    key: Any


class TimerQueue:
    """The pending timers of one operator on one clock.

    Args:
        store: where they are kept.
        stage: number of the stage; `operator`: number of the operator's timers in it; `clock`: 0 event time, 1
            processing time.
        groups: number of key groups.
    """

    def __init__(self, store: Store, *, stage: int, operator: int, clock: int, groups: int) -> None:
        self._store = store
        self._stage = stage
        self._operator = operator
        self._clock = clock
        self._groups = groups
        self._heap: list[tuple[int, bytes, str]] = []
        self._live: dict[tuple[int, bytes, str], Any] = {}
        self._changes: dict[tuple[int, bytes, str], bool] = {}
        self.next_time = NEVER
        """Time of the earliest pending timer."""
        self._restore()

    def _restore(self) -> None:
        for group in range(self._groups):
            start = _ROUTE.pack(group, self._stage, b"t", self._operator, self._clock, 0)
            stop = _ROUTE.pack(group, self._stage, b"t", self._operator, self._clock, 2**64 - 1)
            for row, value in self._store.scan(start, stop + b"\xff"):
                time = _ROUTE.unpack_from(row)[5] - _BIAS
                key, name = msgspec.msgpack.decode(memoryview(value)[len(_HEAD) :])
                key = tuple(key) if isinstance(key, list) else key
                self._live[(time, encode_key(key), name)] = key
        self._heap = sorted(self._live)
        self.next_time = self._heap[0][0] if self._heap else NEVER

    def __len__(self) -> int:
        return len(self._live)

    def set(self, time: int, key: Any, key_bytes: bytes, name: str) -> bool:
        """Register a timer; returns False when it is there already."""
        item = (time, key_bytes, name)
        if item in self._live:
            return False
        self._live[item] = key
        self._changes[item] = True
        heapq.heappush(self._heap, item)
        if time < self.next_time:
            self.next_time = time
        return True

    def delete(self, time: int, key_bytes: bytes, name: str) -> bool:
        """Remove a timer; returns False when there is none."""
        item = (time, key_bytes, name)
        if item not in self._live:
            return False
        del self._live[item]
        self._changes[item] = False
        self._settle()
        return True

    def pop(self, upto: int) -> list[Timer]:
        """Remove and return all timers of the earliest pending time if that is at or before `upto`."""
        if self.next_time > upto:
            return []
        time = self.next_time
        due: list[Timer] = []
        while self._heap and self._heap[0][0] == time:
            item = heapq.heappop(self._heap)
            if item in self._live:
                due.append(Timer(*item, self._live.pop(item)))
                self._changes[item] = False
        self._settle()
        return due

    def _settle(self) -> None:
        heap = self._heap
        while heap and heap[0] not in self._live:
            heapq.heappop(heap)
        self.next_time = heap[0][0] if heap else NEVER

    def flush(self) -> None:
        """Write what changed since the last flush."""
        rows: dict[bytes, bytes | None] = {}
        for (time, key_bytes, name), added in self._changes.items():
            head = _ROUTE.pack(
                key_group(key_bytes, self._groups), self._stage, b"t", self._operator, self._clock, time + _BIAS
            )
            row = head + key_bytes + name.encode()
            rows[row] = _HEAD + msgspec.msgpack.encode([self._live[(time, key_bytes, name)], name]) if added else None
        if rows:
            self._store.write(rows)
        self._changes = {}
