"""The start of a segment: reads the logs of all workers of the one before it, merged into one order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamml.local.exchange_channel import Channel, places_of
from streamml.local.exchange_order import START, Mark, Order
from streamml.local.exchange_reader import LogReader
from streamml.local.exchange_rows import RowCodec
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.times import MAX_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["ExchangeIngest", "ExchangeSource", "ExchangeTracker"]

_WAIT = 0.005  # seconds between two looks for more


class ExchangeSource:
    """Hands out the rows of this worker's key groups in the order that a single worker would have had them in.

    A row is handed out when no log can bring one that belongs before it: each says with every block where what
    follows stands. A log that has nothing is waited for, unless the workers before have ended.

    Args:
        folder: of the logs, one for each worker.
        me: number of this worker.
        workers: how many there are in each segment.
        codec: reads rows.
        order: is told the places of rows; None where the rows go nowhere else.
        ended: whether all workers that write here have ended in order.
        keep: how many checkpoints are kept, each of which may be needed.
    """

    replayable = True
    lag_unit = "bytes"

    def __init__(
        self,
        folder: Path,
        me: int,
        workers: int,
        codec: RowCodec,
        order: Order | None,
        *,
        ended: Callable[[], bool],
        keep: int,
    ) -> None:
        self.frontier = START
        """Everything before this was handed out."""
        self.at_end = False
        """The input has ended, and that was not taken notice of."""
        self.batch = Batch([], times=[], ids=[], watermarks=[], watermark=START.watermark)
        """The rows of the newest chunk."""
        self.order = order
        self._epoch = 0
        self._ended = ended
        self._done = False
        self._kept: deque[Mapping[str, Any]] = deque(maxlen=keep)
        self._channels = []
        for index in range(workers):
            name = f"worker-{index:04d}"
            self._channels.append(Channel(name, LogReader(folder / name, me, workers), codec, me))

    def open(self, positions: Mapping[str, Any] | None) -> None:
        """See `Source.open`."""
        for channel in self._channels:
            place = (positions or {}).get(channel.name)
            if place is not None:
                channel.place(place)
                self._epoch, self.at_end = place["epoch"], place["at_end"]
        self._move(Mark(self._epoch, *START[1:]))

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        """See `Source.poll`."""
        deadline = time.monotonic() + timeout
        while not self.at_end:
            ended = self._ended()  # asked first: what they have written is all there then
            before = self.frontier
            batch = self._merge(limit, ended)
            if batch is not None:
                self.batch = batch
                return Chunk(batch.values, [("exchange", len(batch))], range(len(batch)))
            if ended and not self.at_end:
                self._done = all(channel.exhausted and not channel.reader.look() for channel in self._channels)
            left = deadline - time.monotonic()
            if self.at_end or self._done or self.frontier > before or left <= 0:
                break
            time.sleep(min(left, _WAIT))
        return None

    def _merge(self, limit: int, ended: bool) -> Batch | None:
        """Return the next rows in order, None if there are none yet; moves the frontier."""
        parts: list[Batch] = []
        rows = 0
        while rows < limit:
            for channel in self._channels:
                channel.fill()
            waiting = [channel.mark for channel in self._channels if not (ended and channel.exhausted)]
            reached = min(waiting, default=max(channel.mark for channel in self._channels))
            turn = Mark(self._epoch, *START[1:]).turn()
            part, bound = self._before(min(reached, turn), limit - rows)
            if part is None:
                if reached < turn:
                    self._move(bound)
                elif not parts:
                    self.at_end = True
                break
            parts.append(part)
            rows += len(part)
            if bound < turn:
                self._move(bound)
            else:
                self._move(Mark(self._epoch, part.watermarks[-1], places_of(part)[-1]))
        for channel in self._channels:
            channel.reader.tell()
        batch = Batch.concat(parts)
        if batch is not None:
            batch.watermark = max(self.frontier.watermark, batch.watermarks[-1])
        return batch

    def _before(self, bound: Mark, limit: int) -> tuple[Batch | None, Mark]:
        """Return at most that many rows before a mark, and before what all others stand."""
        found = [(*key, index) for index, channel in enumerate(self._channels) for key in channel.before(bound)]
        if not found:
            return None, bound
        found.sort()  # runs in order, so this merges them
        if len(found) > limit:
            watermark, place, _ = found[limit]
            bound = Mark(self._epoch, watermark, place)
            del found[limit:]
        counts = [0] * len(self._channels)
        ranks: list[list[int]] = [[] for _ in self._channels]
        for rank, (_, _, index) in enumerate(found):
            counts[index] += 1
            ranks[index].append(rank)
        pieces = [channel.take(count) for channel, count in zip(self._channels, counts, strict=True) if count]
        joined = Batch.concat(pieces)
        assert joined is not None
        if len(pieces) > 1:
            order = sorted(range(len(found)), key=[rank for mine in ranks for rank in mine].__getitem__)
            joined = joined.take(order)
        return joined, bound

    def _move(self, frontier: Mark) -> None:
        self.frontier = max(self.frontier, frontier)
        if self.order is not None:
            self.order.frontier = self.frontier

    def turn(self) -> None:
        """Take notice that the input has ended; what follows was appended later."""
        self.at_end = False
        self._epoch += 1
        self._move(Mark(self._epoch, *START[1:]))

    def positions(self) -> dict[str, Any]:
        """See `Source.positions`."""
        common = {"epoch": self._epoch, "at_end": self.at_end}
        return {channel.name: channel.position() | common for channel in self._channels}

    def committed(self, positions: Mapping[str, Any]) -> None:
        """Take notice of a checkpoint: what none needs any more may be removed from the logs."""
        self._kept.append(positions)
        if len(self._kept) == self._kept.maxlen:
            for channel in self._channels:
                channel.reader.tell(self._kept[0][channel.name]["offset"])

    def partitions(self) -> Sequence[str]:
        """See `Source.partitions`; the watermark is carried by the rows, not followed by partition."""
        return []

    @property
    def finished(self) -> bool:
        """See `Source.finished`."""
        return self._done

    def progress(self) -> float | None:
        """See `Source.progress`."""
        return None

    def lag(self) -> dict[str, int]:
        """See `Source.lag`: bytes."""
        return {channel.name: max(0, channel.reader.end - channel.reader.at) for channel in self._channels}

    def close(self) -> None:
        """See `Source.close`."""
        for channel in self._channels:
            channel.reader.close()


class ExchangeTracker(WatermarkTracker):
    """The watermark of a segment that reads an exchange: what its frontier says."""

    def __init__(self, source: ExchangeSource) -> None:
        super().__init__()
        self._source = source

    def idle(self, now: int) -> int:
        """See `WatermarkTracker.idle`; at the end of the input it is the greatest time, once."""
        if self._source.at_end:
            self._source.turn()
            return MAX_TIME
        self.current = self._source.frontier.watermark
        return self.current

    def handed_out(self, batch: Batch) -> None:
        """Follow a batch."""
        self.current = batch.watermark


class ExchangeIngest:
    """Stands where rows of other sources are decoded: those of an exchange are."""

    def __init__(self, source: ExchangeSource, tracker: ExchangeTracker) -> None:
        self._source = source
        self._tracker = tracker

    def partition(self, name: str) -> str:
        """See `Ingest.partition`."""
        return name

    def follow(self, partitions: Sequence[str], now: int) -> None:
        """See `Ingest.follow`; nothing is to be followed."""

    def batch(self, chunk: Chunk, now: int) -> tuple[Batch, list[dict[str, Any]]]:
        """Return the rows of the chunk that the source handed out last; none of them is bad."""
        batch = self._source.batch
        self._tracker.handed_out(batch)
        if (order := self._source.order) is not None:
            order.know(batch.watermarks, places_of(batch))
        batch.entries = None
        return batch, []
