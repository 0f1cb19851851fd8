"""The state of one key group on Beam: rows in memory, and in Beam's state a log of what changed.

Beam's Python SDK has no map state, and a cell that is written as a whole would cost as much as the group is large. So
changed rows are appended to a bag, and the bag is written anew when most of it is out of date. A worker that gets a
group reads its bag once, and then only the small cell that says whether what it has in memory is still what Beam has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import UnsupportedError
from streamml.state.memory import MemoryStore
from streamml.state.sweeps import RareSweeps

__all__ = ["GroupStore", "Log"]

_ENTRIES = b"cm"
"""Kinds of rows that are in the second log: chunks of long lists and sets, map entries. Most stages have none."""
_LEAST_GARBAGE = 64 << 10
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(dict[bytes, bytes | None]).decode


class Log:
    """Rows behind one bag; read when first asked for."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        """Bytes in the bag."""
        self.changes: dict[bytes, bytes | None] = {}
        self._rows: MemoryStore | None = None
        self._bag: Any = None

    def attach(self, bag: Any) -> None:
        """Say where the bag is in this bundle."""
        self._bag = bag

    @property
    def rows(self) -> MemoryStore:
        """The rows."""
        if self._rows is None:
            self._rows = MemoryStore()
            if self.size:
                for part in self._bag.read():
                    self._rows.write(_decode(part))
        return self._rows

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return 0 if self._rows is None else self._rows.size()["bytes"]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Change rows."""
        self.rows.write(rows)
        self.changes.update(rows)

    def save(self) -> None:
        """Append what changed to the bag, or write the bag anew when most of it is out of date."""
        if not self.changes:
            return
        part = _encode(self.changes)
        self.changes = {}
        if self.size + len(part) > _LEAST_GARBAGE + 3 * self.held:
            part = _encode(dict(self.rows.scan(b"", b"\xff" * 16)))
            self._bag.clear()
            self.size = 0
        self._bag.add(part)
        self.size += len(part)


class GroupStore:
    """A `Store` over the two logs of a key group.

    Args:
        rows: small states of keys, timers, rows that wait for their turn.
        entries: chunks and map entries.
        sweep_every: how far the watermark or the clock moves on between two sweeps for expired rows, ms; 0 for never.
    """

    def __init__(self, rows: Log, entries: Log, *, sweep_every: int = 0) -> None:
        self.logs = (rows, entries)
        self._sweeps = RareSweeps(sweep_every)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._log(key).rows.get_many([key])[0] for key in keys]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        rows_log, entries_log = self.logs
        entries = {key: row for key, row in rows.items() if key[3:4] in _ENTRIES}
        if entries:
            entries_log.write(entries)
            rows = {key: row for key, row in rows.items() if key not in entries}
        if rows:
            rows_log.write(rows)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        if len(start) < 4:  # a sweep, over everything
            return iter(sorted(row for log in self.logs for row in log.rows.scan(start, stop)))
        return self._log(start).rows.scan(start, stop)

    def sweep_budget(self, watermark: int, now: int) -> int:
        """Return how many rows a sweep may look at now: all once in a while, for it walks over the whole group."""
        return self._sweeps.budget(watermark, now)

    def checkpoint(self, folder: Path) -> None:
        msg = "the state of a Beam pipeline is the runner's: it makes the checkpoints and savepoints, if it has them"
        raise UnsupportedError(msg)

    def size(self) -> dict[str, int]:
        return {"bytes": sum(log.held for log in self.logs), "rows": 0}

    def close(self) -> None:
        pass

    def _log(self, key: bytes) -> Log:
        return self.logs[key[3:4] in _ENTRIES]
