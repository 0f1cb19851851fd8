"""The store that lives in a dict: for tests, for small state, and as the oracle of the others."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from streamml.errors import StateError
from streamml.state.durable import write_error

__all__ = ["MemoryStore"]

_FILE = "rows.bin"
_MAGIC = b"SMLROWS\n"
_FORMAT = 1
_HEAD = struct.Struct("<8sI")  # magic, format version
_ROW = struct.Struct("<IQ")  # length of the key, length of the value
_TAIL = struct.Struct("<QI")  # number of rows, CRC-32 of everything before


class MemoryStore:
    """Ordered store in memory. A checkpoint is one file; nothing else is ever written.

    >>> store = MemoryStore()
    >>> store.write({b"b": b"2", b"a": b"1", b"c": b""})
    >>> store.write({b"b": None})
    >>> store.get_many([b"a", b"b", b"c"])
    [b'1', None, b'']
    >>> list(store.scan(b"a", b"c"))
    [(b'a', b'1')]
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] = []  # the keys as of the last scan; `_added` and `_removed` happened since
        self._added: set[bytes] = set()
        self._removed: set[bytes] = set()
        self._bytes = 0
        self._closed = False

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._check_open()
        return [self._rows.get(key) for key in keys]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        self._check_open()
        for key, value in rows.items():
            old = self._rows.get(key)
            if old is not None:
                self._bytes -= len(key) + len(old)
            if value is not None:
                self._bytes += len(key) + len(value)
                self._rows[key] = value
                if old is None:
                    self._note(key, self._added, self._removed)
            elif old is not None:
                del self._rows[key]
                self._note(key, self._removed, self._added)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        keys = self._ordered()
        found = [(key, self._rows[key]) for key in keys[bisect_left(keys, start) : bisect_left(keys, stop)]]
        return self._yield(found)

    def checkpoint(self, folder: Path) -> None:
        self._check_open()
        try:
            folder.mkdir()
            with (folder / _FILE).open("wb") as file:
                head = _HEAD.pack(_MAGIC, _FORMAT)
                crc = zlib.crc32(head)
                file.write(head)
                for key in self._ordered():
                    value = self._rows[key]
                    row = _ROW.pack(len(key), len(value)) + key + value
                    crc = zlib.crc32(row, crc)
                    file.write(row)
                file.write(_TAIL.pack(len(self._rows), crc))
        except OSError as exc:
            raise write_error(folder, exc, doing="checkpoint of a store in memory") from exc

    @classmethod
    def restore(cls, folder: Path) -> Self:
        """Return a store with the rows that `checkpoint` wrote into a folder.

        Raises:
            StateError: the file is not there, not whole, or of another format.
        """
        path = folder / _FILE
        try:
            data = path.read_bytes()
        except OSError as exc:
            msg = f"{path}: the rows of a store in memory can't be read: {exc}. Restore an older checkpoint."
            raise StateError(msg) from exc
        store = cls()
        store.write(_decode(path, data))
        return store

    def size(self) -> dict[str, int]:
        self._check_open()
        return {"bytes": self._bytes, "rows": len(self._rows)}

    def close(self) -> None:
        self._closed = True
        self._rows = {}
        self._sorted = []
        self._added.clear()
        self._removed.clear()

    def _check_open(self) -> None:
        if self._closed:
            msg = "store in memory: it was closed and can't be used again. Restore a new one from a checkpoint."
            raise StateError(msg)

    def _note(self, key: bytes, here: set[bytes], there: set[bytes]) -> None:
        if key in there:
            there.discard(key)
        else:
            here.add(key)

    def _ordered(self) -> list[bytes]:
        if self._removed:
            self._sorted = [key for key in self._sorted if key not in self._removed]
            self._removed.clear()
        if self._added:
            self._sorted += sorted(self._added)
            self._sorted.sort()  # two sorted runs: a merge
            self._added.clear()
        return self._sorted

    def _yield(self, rows: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for row in rows:
            self._check_open()
            yield row


def _decode(path: Path, data: bytes) -> dict[bytes, bytes]:
    """Return the rows of a checkpoint file, or refuse it."""
    damaged = f"{path}: the file of a store in memory is damaged"
    if len(data) < _HEAD.size + _TAIL.size or not data.startswith(_MAGIC):
        msg = f"{damaged}: {len(data)} bytes without the expected first and last ones. Restore an older checkpoint."
        raise StateError(msg)
    end = len(data) - _TAIL.size
    count, crc = _TAIL.unpack_from(data, end)
    if zlib.crc32(memoryview(data)[:end]) != crc:
        msg = f"{damaged}: its checksum does not fit its content. Restore an older checkpoint."
        raise StateError(msg)
    version = _HEAD.unpack_from(data)[1]
    if version != _FORMAT:
        msg = (
            f"{path}: wanted rows of format {_FORMAT}, got format {version}. "
            "Run the version of streamml that wrote it, or restore an older checkpoint."
        )
        raise StateError(msg)
    rows: dict[bytes, bytes] = {}
    at = _HEAD.size
    while at < end:
        key_length, value_length = _ROW.unpack_from(data, at)
        at += _ROW.size
        rows[data[at : at + key_length]] = data[at + key_length : at + key_length + value_length]
        at += key_length + value_length
    if len(rows) != count:
        msg = f"{damaged}: wanted {count} rows, got {len(rows)}. Restore an older checkpoint."
        raise StateError(msg)
    return rows
