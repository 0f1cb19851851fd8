"""Standard output and standard error as sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamml.connectors.encode import Encoder
from streamml.connectors.storage import failing, write_all
from streamml.errors import ConnectorError
from streamml.ports import FollowingSink
from streamml.records import Batch

__all__ = ["StreamSink"]


class StreamSink(FollowingSink):
    r"""Writes JSON lines to standard output (or another file descriptor) at once.

    What a reader was given can't be taken back, so it takes no part in checkpoints: `transactional` is False, and after
    a crash what was written since the last checkpoint comes again, with the same ids.

    Args:
        fd: the file descriptor.
        side: name of the side output that is written; each record then starts with it as `side`.

    >>> import os
    >>> reading, writing = os.pipe()
    >>> StreamSink(writing, side="late").write_records([{"late_by": 5}])
    >>> os.read(reading, 100)
    b'{"side":"late","late_by":5}\n'
    >>> os.close(reading); os.close(writing)
    """

    transactional = False

    def __init__(self, fd: int = 1, *, side: str | None = None) -> None:
        self._fd = fd
        self._side = side
        self._encoder = Encoder()

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`."""

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`.

        Raises:
            ConnectorError: the reader has gone.
        """
        self._put(self._encoder.encode_lines(batch, fields))

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`."""
        if self._side is not None:
            records = [{"side": self._side, **record} for record in records]
        self._put(self._encoder.encode_records(records))

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`; everything is written already."""
        return {"format": "stream"}

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`; everything is written already."""

    def close(self) -> None:
        """See `Sink.close`; the descriptor itself is left open."""

    def _put(self, data: bytes) -> None:
        name = {1: "standard output", 2: "standard error"}.get(self._fd, f"file descriptor {self._fd}")
        with failing(f"sink {name}", "write to"):
            try:
                write_all(self._fd, data)
            except BrokenPipeError as exc:
                msg = f"sink {name}: its reader has gone (the pipe was closed, as by `| head`), so the job can't go on."
                raise ConnectorError(msg) from exc
