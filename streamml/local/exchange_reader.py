"""Reads the log of one worker of the segment before; see `streamml.local.exchange_log` for its files."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import msgspec

from streamml.connectors.storage import failing
from streamml.errors import ConnectorError
from streamml.local.exchange_log import HEAD, MAGIC, Block, Note, file_of, files, notes_of

__all__ = ["LogReader"]

_decode_block = msgspec.msgpack.Decoder(Block).decode


class LogReader:
    """Reads what is committed, block by block, as one of several consumers.

    Args:
        folder: of the log; it need not be there yet.
        me: number of this consumer.
        consumers: how many there are.
    """

    def __init__(self, folder: Path, me: int, consumers: int) -> None:
        self._folder = folder
        self._end_note = Note(folder / "end")
        self._notes = list(notes_of(folder, consumers))
        self._me = me
        self._kept = self._told = 0
        self._fd = -1
        self._start = 0
        self.at = 0
        """Place of the next block."""
        self.end = 0
        """Up to where it is committed, as far as known."""

    def look(self) -> bool:
        """Return whether a block is there."""
        if self.at >= self.end:
            found = self._end_note.read()
            if found is not None:
                self.end = max(self.end, found[0])
        return self.at < self.end

    def next(self) -> Block | None:
        """Return the next block; None if none is committed yet.

        Raises:
            ConnectorError: it is damaged.
        """
        if not self.look():
            return None
        with failing(f"exchange {self._folder}", "read"):
            head = self._pread(HEAD.size)
            magic, size, checksum = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            body = os.pread(self._fd, size, self.at - self._start + HEAD.size) if magic == MAGIC else b""
        if len(body) != size or magic != MAGIC or crc32(body) != checksum:
            msg = (
                f"exchange {self._folder}: the block at byte {self.at} is damaged or of another version of streamml. "
                "Put the state folder back from a backup, or start the job from an empty one."
            )
            raise ConnectorError(msg)
        self.at += HEAD.size + size
        return _decode_block(body)

    def _pread(self, size: int) -> bytes:
        """Read at the current place, in the next file where one ends."""
        if self._fd >= 0:
            if head := os.pread(self._fd, size, self.at - self._start):
                return head
            os.close(self._fd)
        starts = [start for start in files(self._folder) if start <= self.at]
        self._start = starts[-1] if starts else self.at
        self._fd = os.open(file_of(self._folder, self._start), os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._fd, size, self.at - self._start)

    def tell(self, keep: int | None = None) -> None:
        """Tell the producer how far this consumer has read.

        Args:
            keep: what lies before this is not needed by any of its checkpoints; files that no consumer needs go.
        """
        if (keep is None and self.at == self._told) or not self._folder.is_dir():
            return
        self._told = self.at
        if keep is not None:
            self._kept = keep
        self._notes[self._me].write(self.at, self._kept)
        if keep is None:
            return
        needed = min((note.read() or (0, 0))[1] for note in self._notes)
        starts = files(self._folder)
        for start, after in pairwise(starts):
            if after <= needed:
                file_of(self._folder, start).unlink(missing_ok=True)

    def close(self) -> None:
        """Close its files."""
        for note in (self._end_note, *self._notes):
            note.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
