"""Standard input as a source."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamml.connectors.lines import MAX_RECORD_BYTES, LineBuffer
from streamml.connectors.partitions import POSITION_VERSION, check_format
from streamml.connectors.storage import failing
from streamml.ports import Chunk

__all__ = ["StdinSource"]

_PARTITION = "stdin"
_BLOCK_BYTES = 1024 * 1024


class StdinSource:
    r"""Reads lines from standard input (or another file descriptor) as they come; no poll blocks beyond its timeout.

    It can't be read again: `replayable` is False, and opened with positions it goes on with what comes, counting on.
    What was read and not yet in a checkpoint is lost in a crash, so an engine says that this is not exactly once.

    Args:
        fd: the file descriptor.
        max_record_bytes: a longer line is rejected.
        clock: monotonic seconds, for the timeout.

    >>> reading, writing = os.pipe()
    >>> _ = os.write(writing, b'{"x": 1}\n{"x"'); os.close(writing)
    >>> source = StdinSource(reading)
    >>> source.open(None)
    >>> source.poll(10, 0.0).payloads, source.poll(10, 0.0).payloads, source.finished
    ([b'{"x": 1}'], [b'{"x"'], True)
    >>> os.close(reading)
    """

    replayable = False

    def __init__(
        self, fd: int = 0, *, max_record_bytes: int = MAX_RECORD_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fd = fd
        self._max = max_record_bytes
        self._clock = clock
        self._lines = LineBuffer(max_record_bytes)
        self._ended = False

    def open(self, positions: Mapping[str, Any] | None) -> None:
        """See `Source.open`."""
        place = (positions or {}).get(_PARTITION)
        if place is not None:
            check_format("stdin:", place, "stdin")
            self._lines = LineBuffer(self._max, record=place["record"])

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        """See `Source.poll`."""
        deadline = self._clock() + timeout
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        while not self._ended and not self._lines.waiting:
            left = max(0.0, deadline - self._clock())
            if not ready.poll(left * 1000):
                return None
            self._read()
        start = self._lines.record
        lines = self._lines.take(limit)
        return Chunk(lines, [(_PARTITION, len(lines))], range(start, start + len(lines))) if lines else None

    def positions(self) -> dict[str, Any]:
        """See `Source.positions`; it can't be returned to."""
        return {_PARTITION: {"version": POSITION_VERSION, "format": "stdin", "record": self._lines.record}}

    def partitions(self) -> Sequence[str]:
        """See `Source.partitions`."""
        return [] if self.finished else [_PARTITION]

    @property
    def finished(self) -> bool:
        """See `Source.finished`."""
        return self._ended and not self._lines.waiting

    def progress(self) -> float | None:
        """See `Source.progress`: unknown."""
        return None

    def lag(self) -> dict[str, int]:
        """See `Source.lag`: unknown."""
        return {}

    def close(self) -> None:
        """See `Source.close`; standard input itself is left open."""

    def _read(self) -> None:
        with failing("stdin:", "read"):
            try:
                block = os.read(self._fd, _BLOCK_BYTES)
            except BlockingIOError:  # someone else read it in between
                return
        if block:
            self._lines.feed(block)
        else:
            self._lines.end()
            self._ended = True
