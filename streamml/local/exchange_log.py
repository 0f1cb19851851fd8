"""The log through which one worker sends rows to the workers of the next segment: files in a folder.

`00000000000000000000.log` and so on hold blocks; a file is named by the place of its first byte in the whole log. `end`
says how much of that is committed, `read-0002` how far consumer 2 has read and what it may still need after a crash.
Files that no consumer needs are removed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from streamml.connectors.storage import Step, failing, write_all
from streamml.errors import ConnectorError
from streamml.local.exchange_order import Mark
from streamml.state.durable import sync_folder

__all__ = ["HEAD", "MAGIC", "Block", "LogWriter", "Note", "file_of", "files", "notes_of"]

HEAD = struct.Struct(">4sII")  # magic with the version of the format, length, checksum
MAGIC = b"SMX\x01"
_NOTE = struct.Struct(">QQI")
_BUFFER_BYTES = 1 << 20


class Block(msgspec.Struct, array_like=True):
    """Rows of one micro-batch, for each consumer those of its key groups.

    Attributes:
        epoch: of the rows, see `Mark`.
        mark: everything after this block stands here or after it.
        parts: for each consumer its rows (`RowCodec`), empty where there are none.
    """

    epoch: int
    mark: Mark
    parts: list[bytes]

    def encode(self) -> bytes:
        """Return its bytes, with their checksum."""
        body = msgspec.msgpack.encode(self)
        return HEAD.pack(MAGIC, len(body), crc32(body)) + body


class Note:
    """Two numbers in a file that one process writes and others may read at any time.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> note = Note(Path(folder.name, "end"))
    >>> note.read()
    >>> note.write(7, 3)
    >>> note.read()
    (7, 3)
    >>> note.close()
    >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def write(self, first: int, second: int) -> None:
        """Write both."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        body = struct.pack(">QQ", first, second)
        os.pwrite(self._fd, body + struct.pack(">I", crc32(body)), 0)

    def read(self) -> tuple[int, int] | None:
        """Return both; None if it is not there, or not whole (it was being written just now, or the power failed)."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
        data = os.pread(self._fd, _NOTE.size, 0)
        if len(data) < _NOTE.size or _NOTE.unpack(data)[2] != crc32(data[:-4]):
            return None
        first, second, _ = _NOTE.unpack(data)
        return first, second

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def files(folder: Path) -> list[int]:
    """Return the places of the first bytes of a log's files."""
    return sorted(int(path.stem) for path in folder.glob("*.log"))


def file_of(folder: Path, start: int) -> Path:
    """Return the file that begins at a place."""
    return folder / f"{start:020d}.log"


def notes_of(folder: Path, count: int) -> Iterator[Note]:
    """Return the notes of the consumers."""
    return (Note(folder / f"read-{index:04d}") for index in range(count))


class LogWriter:
    """Appends blocks, which readers see once they are committed.

    Args:
        folder: of the log.
        consumers: how many read it.
        file_bytes: how large a file grows before the next one begins.
        fsync: force what is prepared to the disk.
        step: called after each durable step (fault tests).
    """

    def __init__(self, folder: Path, consumers: int, *, file_bytes: int, fsync: bool, step: Step) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._fsync = fsync
        self._step = step
        self._end_note = Note(folder / "end")
        self._reading = list(notes_of(folder, consumers))
        self._read = [0] * consumers
        self._fd = -1
        self._start = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._new = self._written = False
        self.end = 0
        self.committed = (0, 0)
        """Bytes and rows that readers may see."""

    def open(self, end: int, rows: int) -> None:
        """Go on after `end`, the place that a restored checkpoint knows of; finish its commit if that was cut off.

        What was committed after it, by a checkpoint that is damaged now, stays: readers may have seen it. `committed`
        tells.

        Raises:
            ConnectorError: the log does not reach to there.
        """
        with failing(f"exchange {self._folder}", "open"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self.committed = max(self._end_note.read() or (0, 0), (end, rows))
            self.end = self.committed[0]
            starts = files(self._folder)
            for start in [start for start in starts if start > self.end]:
                file_of(self._folder, start).unlink()
                starts.remove(start)
            self._start = starts[-1] if starts else self.end
            size = file_of(self._folder, self._start).stat().st_size if starts else 0
            if self._start + size < self.end or (not starts and self.end):
                msg = (
                    f"exchange {self._folder}: it ends at byte {self._start + size}, and {self.end} were committed. "
                    "It was cut or removed: put it back from a backup, or start the job from an empty state folder."
                )
                raise ConnectorError(msg)
            self._openfile_of()
            os.ftruncate(self._fd, self.end - self._start)
            self._end_note.write(*self.committed)
        self._step("exchange opened")

    def append(self, block: bytes) -> None:
        """Add a block."""
        if self._fd < 0:
            self._start = self.end
            self._openfile_of()
        self._buffer.append(block)
        self._buffered += len(block)
        self.end += len(block)
        if self._buffered >= _BUFFER_BYTES:
            self._flush()

    def prepare(self) -> int:
        """Make durable what was added; returns the place where it ends."""
        self._flush()
        if self._written and self._fsync:
            os.fsync(self._fd)
            if self._new:
                sync_folder(self._folder)
        self._new = self._written = False
        self._step("exchange synced")
        return self.end

    def commit(self, end: int, rows: int) -> None:
        """Let readers see it."""
        if (end, rows) != self.committed:
            self._end_note.write(end, rows)
            self.committed = (end, rows)
            self._step("exchange committed")
        if self._fd >= 0 and end == self.end and end - self._start >= self._file_bytes:
            os.close(self._fd)
            self._fd = -1

    def unread(self) -> int:
        """Return how many committed bytes the consumer that is furthest behind has not read."""
        for index, note in enumerate(self._reading):
            found = note.read()
            if found is not None:
                self._read[index] = found[0]
        return self.committed[0] - min(self._read)

    def close(self) -> None:
        """Close its files; what was not prepared is left out by the next `open`."""
        for note in (self._end_note, *self._reading):
            note.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _openfile_of(self) -> None:
        path = file_of(self._folder, self._start)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._new = True

    def _flush(self) -> None:
        if self._buffer:
            with failing(f"exchange {self._folder}", "write"):
                write_all(self._fd, b"".join(self._buffer))
            self._buffer, self._buffered, self._written = [], 0, True
