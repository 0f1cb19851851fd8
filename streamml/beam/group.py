"""One key group at work: its operators' state, its timers, the watermark that it knows."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec

from streamml.beam.envelope import Envelopes
from streamml.beam.store import GroupStore, Log
from streamml.beam.watermark import LAST, to_beam
from streamml.contract import Operator
from streamml.records import Batch
from streamml.runtime import Output, StageRuntime
from streamml.state.descriptors import NEVER
from streamml.times import MIN_TIME

__all__ = ["TIMERS", "Cells", "Group", "Head"]

TIMERS = ("due", "hold", "look", "wall")
"""A group's timers: when operators or waiting rows are due, what holds the output watermark back, the next look at the
watermark, and when a processing-time timer is due."""

_TIME = struct.Struct(">Q")
_BIAS = 2**63
_ALL = (b"", b"\xff" * 16)


class Head(msgspec.Struct):
    """What Beam keeps of a group in one small cell, read in each bundle.

    Attributes:
        version: drawn anew at each write; says whether what a worker has in memory is what Beam has.
        known: the watermark that is known.
        newest: the newest event time seen.
        sizes: bytes in the three logs.
        timers: times of the timers that are set.
        memory: what the stage runtime remembers.
    """

    version: bytes = b""
    known: int = MIN_TIME
    newest: int = MIN_TIME
    sizes: tuple[int, int, int] = (0, 0, 0)
    timers: dict[str, int] = msgspec.field(default_factory=dict)
    memory: dict[str, Any] | None = None


@dataclass(slots=True)
class Cells:
    """Beam's state and timers of the current key group."""

    head: Any
    logs: tuple[Any, Any, Any]
    timers: dict[str, Any]


class Group:
    """A key group with its state in memory, for as long as nobody else changes it.

    Args:
        head: what Beam has of it.
        operators: the stage's operators.
        template: the runtime whose opened operators it shares.
        envelopes: for rows that wait.
        options: of the runtime.
        sweep_every: see `GroupStore`.
    """

    def __init__(
        self,
        head: Head,
        operators: Sequence[Operator],
        template: StageRuntime,
        envelopes: Envelopes,
        *,
        cache_bytes: int,
        sweep_every: int,
        cells: Cells,
    ) -> None:
        self.head = head
        self._envelopes = envelopes
        self._logs = tuple(Log(size) for size in head.sizes)
        rows, entries, self._waiting = self._logs
        self.attach(cells)
        self.store = GroupStore(rows, entries, sweep_every=sweep_every)
        self.runtime = StageRuntime(
            operators, self.store, groups=1, memory=head.memory, cache_bytes=cache_bytes, like=template
        )
        self._times = [queue for step in self.runtime.steps if (queue := step.timers) is not None]

    def attach(self, cells: Cells) -> None:
        """Take the cells of this bundle."""
        for log, bag in zip(self._logs, cells.logs, strict=True):
            log.attach(bag)

    @property
    def bytes(self) -> int:
        """Bytes of its rows in memory."""
        return sum(log.held for log in self._logs)

    def arrive(self, batch: Batch, now: int) -> Output:
        """Handle rows in their order, each by the watermark that is known: to the group, or by what the row brought."""
        head = self.head
        head.newest = max(head.newest, max(batch.times, default=MIN_TIME))
        known = max(head.known, self.runtime.watermark)
        batch.watermarks = list(accumulate(batch.watermarks, max, initial=known))[1:]
        batch.watermark = batch.watermarks[-1] if batch.watermarks else known
        head.known = max(head.known, batch.watermark)
        return self.runtime.process(batch, now)

    def wait(self, batch: Batch, now: int) -> Output:
        """Keep rows until the watermark has reached their time; the late ones are handled at once."""
        known = self.head.known
        late = [row for row, time in enumerate(batch.times) if time < known]
        kept: dict[bytes, bytes | None] = {}
        for row, time in enumerate(batch.times):
            if time >= known:
                name = batch.ids[row].encode() + os.urandom(4)  # equal times go by id; two rows of one id both count
                kept[_TIME.pack(time + _BIAS) + name] = self._envelopes.encode(batch.slice(row, row + 1))
        self.head.newest = max(self.head.newest, max(batch.times, default=MIN_TIME))
        if kept:
            self._waiting.write(kept)
        return self.arrive(batch.take(late), now)

    def advance(self, watermark: int, now: int) -> Output:
        """Let waiting rows go on, and fire the timers, up to a watermark."""
        self.head.known = max(self.head.known, watermark)
        found = list(self._waiting.rows.scan(b"", _TIME.pack(self.head.known + 1 + _BIAS)))
        if found:
            self._waiting.write(dict.fromkeys(key for key, _ in found))
        batch = Batch.concat([self._envelopes.decode(row) for _, row in found])
        if batch is None:
            batch = Batch([], times=[], ids=[], watermarks=[], watermark=MIN_TIME)
        return self.runtime.process(in_time(batch, self.runtime.watermark, self.head.known), now)

    def due(self, look: Callable[[int, int], int]) -> dict[str, int]:
        """Return when each timer is wanted; `NEVER` for none."""
        first = next(iter(self._waiting.rows.scan(*_ALL)), None)
        waiting = NEVER if first is None else _TIME.unpack_from(first[0])[0] - _BIAS
        timers = min((queue.next_time for queue in self._times), default=NEVER)
        return {
            "due": min(waiting, timers),
            "hold": timers - 1 if self.head.known < timers - 1 < min(waiting, LAST) else NEVER,
            "look": look(self.head.known, self.head.newest),
            "wall": self.runtime.next_processing_time,
        }

    def save(self, cells: Cells, look: Callable[[int, int], int], now: int) -> None:
        """Write what changed to Beam's state, and set its timers."""
        self.runtime.flush(now)
        for log in self._logs:
            log.save()
        head = self.head
        rows, entries, waiting = (log.size for log in self._logs)
        head.sizes = (rows, entries, waiting)
        head.memory = self.runtime.snapshot()
        for name, time in self.due(look).items():
            if time == head.timers.get(name, NEVER):
                continue
            if time == NEVER:
                cells.timers[name].clear()
                del head.timers[name]
            else:
                cells.timers[name].set(to_beam(time))
                head.timers[name] = time
        head.version = os.urandom(8)
        cells.head.write(msgspec.msgpack.encode(head))


def in_time(batch: Batch, before: int, watermark: int) -> Batch:
    """Give rows in the order of their times the watermarks of a stream in order: before each stands its own time."""
    marks: list[int] = []
    for time in batch.times:
        before = max(before, time)
        marks.append(before)
    batch.watermarks, batch.watermark = marks, watermark
    return batch
