"""Where the rows that workers send each other stand in the one order that a single worker would have had.

All workers read the same input, so a row's number in it is known to each. A row that a stage emits for a row of its
input has that one's place; what a timer emits comes after all rows with its watermark, in the order of the keys.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from streamml.records import Batch
from streamml.state.table import encode_key
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["START", "Mark", "Order"]

_AFTER_ALL = b"\xff" * 8
_AFTER = b"\xff"


class Mark(NamedTuple):
    """A place in the order of what a worker sends: everything that it sends later stands here or after it.

    Attributes:
        epoch: how often the input has ended; a watermark may fall only when it was read on after its end.
        watermark: of the row.
        place: what orders rows with one watermark.
    """

    epoch: int
    watermark: int
    place: bytes

    def turn(self) -> Mark:
        """Return the start of the next epoch."""
        return Mark(self.epoch + 1, MIN_TIME, b"")


START = Mark(0, MIN_TIME, b"")


class Order:
    r"""Finds the places of the rows that a worker emits.

    A row's watermark is made an object of its own when the row comes in, and a stage hands that object on with what it
    emits for the row: so the row is known by it, and operators need not carry anything. A watermark that is not known
    was made by a timer.

    Args:
        hop: number of the segment: the timers of a later one stand after those of an earlier one.

    >>> order = Order(0)
    >>> envelope = {"times": [9, 9], "ids": ["1", "2"], "keys": ["k", "l"]}
    >>> batch = Batch(["a", "b"], watermarks=[1000, 1000], watermark=1004, **envelope)
    >>> order.number(batch, range(2), 2)
    >>> order.places(batch.take([1]))
    [b'\x00\x00\x00\x00\x00\x00\x00\x01']
    >>> order.mark(1004)
    Mark(epoch=0, watermark=1004, place=b'\x00\x00\x00\x00\x00\x00\x00\x02')
    """

    def __init__(self, hop: int) -> None:
        self.next = 0
        """Number of the next row of the input."""
        self.epoch = 0
        self.frontier: Mark | None = None
        """In a segment that reads an exchange: everything before this was handed out."""
        self._timers = _AFTER_ALL + bytes([hop])
        self._known: dict[int, bytes] = {}
        self._alive: list[int] = []  # as long as they live no other object has their ids

    def number(self, batch: Batch, rows: Sequence[int], read: int) -> None:
        """Give the rows of a batch their places by their numbers.

        Args:
            batch: of this worker.
            rows: which rows of those that were read they are.
            read: how many rows were read.
        """
        batch.watermarks = array("q", batch.watermarks).tolist()  # objects of their own
        first = self.next
        self.next += read
        self.know(batch.watermarks, [(first + row).to_bytes(8, "big") for row in rows])

    def know(self, watermarks: list[int], places: list[bytes]) -> None:
        """Take the places of the rows that are worked on now."""
        self._alive = watermarks
        self._known = dict(zip(map(id, watermarks), places, strict=True))

    def places(self, batch: Batch) -> list[bytes]:
        """Return the places of the rows that came out of a stage."""
        known, found = self._known, []
        for row, watermark in enumerate(batch.watermarks):
            place = known.get(id(watermark))
            if place is None:
                before = self._timers if watermark < batch.watermark else self._before_next()
                place = before + encode_key(batch.keys[row])
            found.append(place)
        return found

    def _before_next(self) -> bytes:
        """Return a place after the last row and before the next one: of timers of the wall clock."""
        number = self.next if self.frontier is None else int.from_bytes(self.frontier.place[:8], "big")
        return max(number - 1, 0).to_bytes(8, "big") + _AFTER

    def mark(self, watermark: int) -> Mark:
        """Return where everything stands that comes after a batch.

        Args:
            watermark: after the batch; that of the end of the input begins an epoch.
        """
        if self.frontier is not None:
            return self.frontier
        if watermark == MAX_TIME:
            self.epoch += 1
            return Mark(self.epoch, MIN_TIME, b"")
        return Mark(self.epoch, watermark, self.next.to_bytes(8, "big"))
