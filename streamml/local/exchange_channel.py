"""One log of an exchange as its reader works through it: the rows of a block, and which of them were handed out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from streamml.local.exchange_order import START, Mark
from streamml.local.exchange_reader import LogReader
from streamml.local.exchange_rows import RowCodec
from streamml.records import Batch

__all__ = ["Channel", "places_of"]


class Channel:
    """One log: the block that is worked on, and how much of it was handed out."""

    def __init__(self, name: str, reader: LogReader, codec: RowCodec, me: int) -> None:
        self.name = name
        self.reader = reader
        self.mark = START
        self.epoch = 0
        self.rows = 0
        self.offset = 0
        self._codec = codec
        self._me = me
        self._batch: Batch | None = None
        self._keys: list[tuple[int, bytes]] = []
        self._skip = 0

    def place(self, position: Mapping[str, Any]) -> None:
        """Go to a position."""
        self.offset = self.reader.at = position["offset"]
        self._skip = position["row"]

    @property
    def exhausted(self) -> bool:
        """Whether every row of the block was handed out."""
        return self.rows == len(self._keys)

    def fill(self) -> None:
        """Take the next block that has rows for this worker, as far as there are any."""
        while self.exhausted:
            offset = self.reader.at
            block = self.reader.next()
            if block is None:
                return
            self.offset, self.epoch, self.mark = offset, block.epoch, max(self.mark, block.mark)
            part = block.parts[self._me] if block.parts else b""
            batch = self._batch = self._codec.decode(part) if part else None
            self._keys = [] if batch is None else list(zip(batch.watermarks, places_of(batch), strict=True))
            self.rows, self._skip = self._skip, 0

    def before(self, bound: Mark) -> list[tuple[int, bytes]]:
        """Return the keys of the rows that come before a mark and were not handed out."""
        if self.exhausted or self.epoch > bound.epoch:
            return []
        stop = len(self._keys) if self.epoch < bound.epoch else bisect_left(self._keys, bound[1:], self.rows)
        return self._keys[self.rows : stop]

    def take(self, count: int) -> Batch:
        """Hand out that many rows."""
        assert self._batch is not None
        start, self.rows = self.rows, self.rows + count
        return self._batch.slice(start, self.rows)

    def position(self) -> dict[str, Any]:
        """Return where it stands; `record` is what is the same for all consumers that have read everything."""
        done = self.exhausted
        row = self.rows + self._skip  # the latter until its block was read again
        return {"record": self.reader.at if done else self.offset, "offset": self.offset, "row": row}


def places_of(batch: Batch) -> list[bytes]:
    """Return the places of rows on their way through an exchange."""
    assert batch.entries is not None
    return batch.entries
