"""Sources and sinks that live in memory, and the sink that keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamml.connectors.encode import Encoder, output_rows
from streamml.connectors.partitions import POSITION_VERSION, PartitionedSource, check_format
from streamml.errors import ConnectorError
from streamml.ports import FollowingSink
from streamml.records import Batch

__all__ = ["MemorySink", "MemorySource", "NullSink"]


class MemorySource(PartitionedSource):
    """Hands out a list of raw bytes or decoded dicts.

    Args:
        items: the records; or a mapping from partition to records.
        partitions: over how many partitions, named `0`, `1` and so on, a list is dealt out in turn.

    >>> source = MemorySource([{"x": 1}, {"x": 2}, {"x": 3}], partitions=2)
    >>> source.open(None)
    >>> source.poll(10, 0.0).payloads, source.poll(10, 0.0).runs
    ([{'x': 1}, {'x': 3}], [('1', 1)])
    """

    def __init__(self, items: Sequence[Any] | Mapping[str, Sequence[Any]], *, partitions: int = 1) -> None:
        if isinstance(items, Mapping):
            parts = {name: list(items[name]) for name in items}
        else:
            if partitions < 1:
                msg = f"memory source: wanted at least one partition, got partitions={partitions}"
                raise ConnectorError(msg)
            parts = {str(part): list(items[part::partitions]) for part in range(partitions)}
        super().__init__("memory", lambda: [_ListReader(name, part) for name, part in parts.items()])


class _ListReader:
    def __init__(self, name: str, items: list[Any]) -> None:
        self.name = name
        self.record = 0
        self._items = items

    @property
    def finished(self) -> bool:
        return self.record >= len(self._items)

    def open(self, position: Mapping[str, Any] | None) -> None:
        if position is not None:
            check_format("memory", position, "memory")
            if position["record"] > len(self._items):
                msg = (
                    f"memory source, partition {self.name!r}: the checkpoint continues at record {position['record']}, "
                    f"but there are {len(self._items)}. Give it the items that the checkpoint was taken with."
                )
                raise ConnectorError(msg)
            self.record = position["record"]

    def read(self, limit: int) -> Sequence[Any]:
        items = self._items[self.record : self.record + limit]
        self.record += len(items)
        return items

    def position(self) -> dict[str, Any]:
        return {"version": POSITION_VERSION, "format": "memory", "record": self.record}

    def share(self) -> tuple[float, float]:
        return self.record, len(self._items)

    def lag(self) -> int:
        return len(self._items) - self.record

    def close(self) -> None:
        pass


class MemorySink(FollowingSink):
    """Keeps what is written as dicts: in `pending` until it is committed, then in `rows`.

    It outlives a crash of the engine as a file would: opened again with what `prepare` returned, it goes on from there.

    >>> sink = MemorySink()
    >>> sink.open(None)
    >>> sink.write_records([{"x": 1}])
    >>> prepared = sink.prepare(1)
    >>> sink.rows, sink.pending
    ([], [{'x': 1}])
    >>> sink.commit(1)
    >>> sink.rows
    [{'x': 1}]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pending: list[dict[str, Any]] = []
        self._prepared: tuple[int, int] | None = None  # (checkpoint, rows of `pending`)

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`."""
        self._prepared = None
        if prepared is None:
            self.rows.clear()
            self.pending.clear()
            return
        before, rows = prepared["committed"], prepared["pending"]
        if len(self.rows) == before and len(self.pending) >= rows:
            self.rows += self.pending[:rows]
        if len(self.rows) != before + rows:
            msg = (
                f"memory sink: the checkpoint was taken with {before} rows committed and {rows} pending, here are "
                f"{len(self.rows)} and {len(self.pending)}. Restore with the sink that it was taken with."
            )
            raise ConnectorError(msg)
        self.pending.clear()

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`."""
        self.pending += output_rows(batch, fields)

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`."""
        self.pending += map(dict, records)

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        self._prepared = (checkpoint, len(self.pending))
        return {"format": "memory", "committed": len(self.rows), "pending": len(self.pending)}

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`."""
        if self._prepared is not None and self._prepared[0] == checkpoint:
            rows = self._prepared[1]
            self.rows += self.pending[:rows]
            del self.pending[:rows]
            self._prepared = None

    def close(self) -> None:
        """See `Sink.close`; what a stored checkpoint may still need stays."""
        if self._prepared is None:
            self.pending.clear()


class NullSink(FollowingSink):
    """Writes nowhere. Rows are encoded all the same, so that a row that could not be written is noticed.

    >>> sink = NullSink()
    >>> sink.open(None)
    >>> sink.write_records([{"x": 1}])
    >>> sink.prepare(1)
    {'format': 'null'}
    """

    def __init__(self) -> None:
        self._encoder = Encoder()

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`."""

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`."""
        self._encoder.encode_lines(batch, fields)

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`."""
        self._encoder.encode_records(records)

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        return {"format": "null"}

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`."""

    def close(self) -> None:
        """See `Sink.close`."""
