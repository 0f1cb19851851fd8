"""Reads one file of JSON lines, plain or gzip."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

from streamml.connectors.lines import MAX_RECORD_BYTES, LineBuffer
from streamml.connectors.partitions import POSITION_VERSION, check_format
from streamml.connectors.storage import HEAD_BYTES, check_head, failing, head_of
from streamml.errors import ConnectorError

__all__ = ["BLOCK_BYTES", "LineReader"]

BLOCK_BYTES = 1024 * 1024
"""Read at once from a file."""


class LineReader:
    """One file as a partition; its position is the byte (of the unpacked text) and the number of the next record.

    Args:
        path: the file.
        name: name of the partition.
        packed: whether it is gzip, of one or more members.
        follow: whether to wait for more at the end of the file; then a last line without line end waits as well.
        max_record_bytes: a longer line is rejected, see `LineBuffer`.
        block_bytes: how much is read at once.
    """

    def __init__(
        self,
        path: str,
        name: str,
        *,
        packed: bool = False,
        follow: bool = False,
        max_record_bytes: int = MAX_RECORD_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.name = name
        self.finished = False
        self._path = path
        self._format = "jsonl.gz" if packed else "jsonl"
        self._packed = packed
        self._follow = follow
        self._max = max_record_bytes
        self._block = block_bytes
        self._lines = LineBuffer(max_record_bytes)
        self._raw: IO[bytes] | None = None  # the file
        self._text: IO[bytes] | gzip.GzipFile | None = None  # what is in it, unpacked
        self._ended = False
        self._head = (0, "")
        self._last: dict[str, Any] = {}

    @property
    def record(self) -> int:
        """Number of the next record."""
        return self._lines.record

    def open(self, position: Mapping[str, Any] | None) -> None:
        """See `Reader.open`."""
        with failing(self._path, "open"):
            self._raw = open(self._path, "rb", buffering=0)  # noqa: SIM115
            if not stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode):
                msg = (
                    f"source {self._path}: wanted a file that can be read again, got a pipe or device. Read it as `-`."
                )
                raise ConnectorError(msg)
        self._text = gzip.GzipFile(fileobj=self._raw) if self._packed else self._raw
        if position is not None:
            check_format(self._path, position, self._format)
            check_head(self._path, position)
            self._seek(position["offset"], position["record"])

    def read(self, limit: int) -> Sequence[Any]:
        """See `Reader.read`."""
        while not self._ended and not self._lines.waiting:
            block = self._next_block()
            self._lines.feed(block)
            if block and (self._packed or self._follow or self._text_at() < self._size()):
                continue
            if self._follow:
                self._check_followed()
                break
            self._lines.end()
            self._ended = True
        lines = self._lines.take(limit)
        if self._ended and not self._lines.waiting:
            self._last = self.position()
            self.finished = True
            self.close()
        return lines

    def position(self) -> dict[str, Any]:
        """See `Reader.position`."""
        if self.finished:
            return dict(self._last)
        offset = self._lines.offset
        size = min(HEAD_BYTES, self._size() if self._packed else offset)
        if size != self._head[0]:
            self._head = (size, head_of(self._path, size))
        return {
            "version": POSITION_VERSION,
            "format": self._format,
            "offset": offset,
            "record": self._lines.record,
            "head_bytes": size,
            "head": self._head[1],
        }

    def share(self) -> tuple[float, float]:
        """See `Reader.share`: bytes of the file."""
        size = self._size()
        return size - self.lag(), size

    def lag(self) -> int:
        """See `Reader.lag`: bytes of the file."""
        if self._raw is None or self._raw.closed:
            return 0
        return max(0, self._size() - (self._raw.tell() if self._packed else self._lines.offset))

    def close(self) -> None:
        """See `Reader.close`."""
        for file in (self._text, self._raw):
            if file is not None:
                file.close()

    def __del__(self) -> None:  # a source that was dropped, not closed, as in a simulated crash
        self.close()

    def _text_at(self) -> int:
        assert self._text is not None
        return self._text.tell()

    def _size(self) -> int:
        with failing(self._path, "look at"):
            return os.stat(self._path).st_size

    def _next_block(self) -> bytes:
        assert self._text is not None
        try:
            if isinstance(self._text, gzip.GzipFile):
                return self._text.read1(self._block)
            with failing(self._path, "read"):
                return self._text.read(self._block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            msg = (
                f"source {self._path}: wanted whole gzip members, but after record {self._lines.record}: {exc}. "
                "The file is cut off, damaged or still being written; the records before that were read."
            )
            raise ConnectorError(msg) from exc

    def _seek(self, offset: int, record: int) -> None:
        """Go to a position; the byte before it must end a line, or it must have been the end of the file."""
        assert self._text is not None
        if offset:
            try:
                self._text.seek(offset - 1)
            except (EOFError, zlib.error, OSError) as exc:
                self._too_short(offset, exc)
            before = self._text.read(1)
            if not before:
                self._too_short(offset, None)
            if before != b"\n":
                after = self._text.read(1)
                if after == b"\n":
                    offset += 1
                elif after:
                    msg = (
                        f"source {self._path}: the checkpoint ends after record {record - 1}, a last line without "
                        f"line end, at byte {offset}; since then that line was continued. It was processed as it was: "
                        "write a line end there before the new text, or start without the checkpoint."
                    )
                    raise ConnectorError(msg)
        self._lines = LineBuffer(self._max, offset=offset, record=record)

    def _too_short(self, offset: int, cause: Exception | None) -> None:
        msg = (
            f"source {self._path}: the checkpoint continues at byte {offset} of its text, but it ends before that. "
            "It was cut or replaced: put back the file that belongs to it, or start without the checkpoint."
        )
        raise ConnectorError(msg) from cause

    def _check_followed(self) -> None:
        assert self._raw is not None
        with failing(self._path, "follow"):
            mine, there = os.fstat(self._raw.fileno()), os.stat(self._path)
        if mine.st_size < self._raw.tell():
            what = "was cut while it was followed"
        elif (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            what = "was replaced by another file while it was followed; the old one was read to its end"
        else:
            return
        msg = (
            f"source {self._path}: {what}, after record {self._lines.record - 1}. Followed files must only grow: "
            "start without the checkpoint to read the new content, and write new files under new names."
        )
        raise ConnectorError(msg)
