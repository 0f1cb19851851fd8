"""The end of a segment: keys its rows for the next one and appends them to this worker's log, in two phases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

from streamml.connectors.storage import Guard, Step
from streamml.errors import ConnectorError
from streamml.keying import Keying
from streamml.local.exchange_log import Block, LogWriter
from streamml.local.exchange_order import START, Mark, Order
from streamml.local.exchange_rows import RowCodec
from streamml.ports import FollowingSink
from streamml.records import Batch
from streamml.state.table import encode_key
from streamml.state.workers import owner

__all__ = ["ExchangeSink"]

_VERSION = 1
_WAIT = 0.005  # seconds between two looks at how far the consumers are
_SUB = 4  # bytes that tell the rows of one place apart


class ExchangeSink(FollowingSink):
    """Writes rows for the workers of the next segment.

    A row that was prepared and not committed is written again after a crash, like that of any sink. What was committed
    stays: if a worker has to go back beyond that, because its newest checkpoint is damaged, the rows that the log has
    already are left out when they come again.

    Args:
        folder: of the log.
        keying: how the next segment is keyed.
        groups: number of key groups.
        workers: how many there are in each segment.
        codec: writes rows.
        order: tells the rows' places.
        most_unread: bytes by which the next segment may be behind before this one waits.
        file_bytes: how large the log's files grow.
        fsync: force what is prepared to the disk.
        on_step: called after each durable step (fault tests).
    """

    def __init__(
        self,
        folder: Path,
        keying: Keying,
        codec: RowCodec,
        order: Order,
        *,
        groups: int,
        workers: int,
        most_unread: int,
        file_bytes: int,
        fsync: bool = True,
        on_step: Step | None = None,
    ) -> None:
        self._folder = folder
        self._keying = keying
        self._codec = codec
        self._order = order
        self._groups = groups
        self._workers = workers
        self._owners = [owner(group, groups, workers) for group in range(groups)]
        self._most_unread = most_unread
        step = on_step or (lambda name: None)
        self._log = LogWriter(folder, workers, file_bytes=file_bytes, fsync=fsync, step=step)
        self._mark = self._written_mark = START
        self._last: tuple[int, bytes] = (START.watermark, b"")  # of the newest row of this epoch, with its number
        self._base = b""  # its place
        self._sub = 0
        self._rows = 0
        self._skip = 0
        self._open_blocks: list[tuple[Mark, list[bytes]]] = []
        self._prepared: tuple[int, int, int] | None = None
        self._durably = Guard(f"exchange {folder}")

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`.

        Raises:
            ConnectorError: the log is not what the checkpoint left.
        """
        state = prepared or {"version": _VERSION, "end": 0, "rows": 0}
        if state.get("version") != _VERSION:
            msg = (
                f"exchange {self._folder}: wanted a checkpoint of an exchange, version {_VERSION}, got {dict(state)}. "
                "Run the version of streamml that took it, or start the job from an empty state folder."
            )
            raise ConnectorError(msg)
        self._rows = state["rows"]
        self._log.open(state["end"], self._rows)
        self._skip = self._log.committed[1] - self._rows
        if prepared is not None:
            self._order.next, self._order.epoch = state["next"], state["epoch"]
            epoch, watermark, place = state["mark"]
            self._mark = self._written_mark = Mark(epoch, watermark, bytes.fromhex(place))
            watermark, last, base = state["last"]
            self._last, self._base, self._sub = (watermark, bytes.fromhex(last)), bytes.fromhex(base), state["sub"]

    def key(self, batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
        """Give rows that leave the segment their new keys; returns the batch and the rejected records of the others.

        Their places go with them in the column `entries`, which is free between two stages.
        """
        if not len(batch):
            return batch, []
        batch.entries = self._order.places(batch)
        return self._keying.assign(batch)

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`.

        Raises:
            RecordError: a row can't be encoded; then nothing of the batch was written.
        """
        if self._skip:
            skipped = min(self._skip, len(batch))
            self._number(batch.slice(0, skipped))
            self._skip -= skipped
            self._rows += skipped
            batch = batch.slice(skipped, len(batch))
        if not len(batch):
            return
        before = self._last, self._base, self._sub
        places = self._number(batch)
        try:
            parts = self._parts(batch, places)
        except BaseException:
            self._last, self._base, self._sub = before
            raise
        self._rows += len(batch)
        self._open_blocks.append((Mark(self._mark.epoch, *self._last), parts))

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`; no side output goes to an exchange."""
        msg = f"exchange {self._folder}: it takes rows, not side records"
        raise ConnectorError(msg)

    def passed(self, watermark: int) -> None:
        """Take notice that everything was written up to a watermark."""
        epoch, mark = self._mark.epoch, self._order.mark(watermark)
        if self._open_blocks:
            *others, (last, parts) = self._open_blocks
            for before, early in others:
                self._append(Block(epoch, before, early))
            self._append(Block(epoch, max(mark, last), parts))
            self._open_blocks = []
        if mark.epoch > epoch:
            self._last, self._base, self._sub = (START.watermark, b""), b"", 0
        self._mark = max(self._mark, mark)

    def full(self, timeout: float) -> bool:
        """Return whether the next segment is too far behind, after waiting for it."""
        if self._log.committed[0] <= self._most_unread:
            return False
        deadline = time.monotonic() + timeout
        while self._log.unread() > self._most_unread:
            if time.monotonic() >= deadline:
                return True
            time.sleep(_WAIT)
        return False

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        with self._durably("write to"):
            if self._mark > self._written_mark and not self._skip:
                self._append(Block(self._mark.epoch, self._mark, []))
            end = self._log.prepare()
        self._prepared = (checkpoint, end, self._rows)
        mark, (watermark, last) = self._mark, self._last
        return {
            "version": _VERSION,
            "checkpoint": checkpoint,
            "end": end,
            "rows": self._rows,
            "next": self._order.next,
            "epoch": self._order.epoch,
            "mark": [mark.epoch, mark.watermark, mark.place.hex()],
            "last": [watermark, last.hex(), self._base.hex()],
            "sub": self._sub,
        }

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`; does nothing for a checkpoint that is not the one prepared last."""
        if self._prepared is None or self._prepared[0] != checkpoint:
            return
        with self._durably("commit to"):
            if not self._skip:
                self._log.commit(*self._prepared[1:])
        self._prepared = None

    def close(self) -> None:
        """See `Sink.close`."""
        self._log.close()

    def __del__(self) -> None:  # a sink that was dropped, not closed, as in a simulated crash
        self._log.close()

    def _append(self, block: Block) -> None:
        self._log.append(block.encode())
        self._written_mark = max(self._written_mark, block.mark)

    def _number(self, batch: Batch) -> list[bytes]:
        """Return the places of rows, never falling, and each of its own; a watermark that falls is held, too."""
        found: list[bytes] = []
        fell = False
        (watermark, last), base, sub = self._last, self._base, self._sub
        for reached, place in zip(batch.watermarks, batch.entries or (), strict=True):
            if (place == base and reached == watermark) or (reached, place) < (watermark, last):
                sub += 1
                fell = fell or reached < watermark
                last = base + sub.to_bytes(_SUB, "big")
            else:
                watermark, last, base, sub = reached, place, place, 0
            found.append(last)
        if fell:
            batch.watermarks = list(accumulate(batch.watermarks, max, initial=self._last[0]))[1:]
        self._last, self._base, self._sub = (watermark, last), base, sub
        return found

    def _parts(self, batch: Batch, places: list[bytes]) -> list[bytes]:
        """Return the encoded rows for each consumer."""
        if self._workers == 1:
            return [self._codec.encode(batch, places)]
        owners, groups, encode = self._owners, self._groups, encode_key
        rows: list[list[int]] = [[] for _ in range(self._workers)]
        for row, key in enumerate(batch.keys):
            rows[owners[crc32(encode(key)) % groups]].append(row)
        return [self._codec.encode(batch.take(mine), [places[row] for row in mine]) if mine else b"" for mine in rows]
