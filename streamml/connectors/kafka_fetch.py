"""What one poll of a Kafka topic brought, by columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Fetch", "Partition"]

Partition = tuple[str, int]
"""Topic and number."""


@dataclass(slots=True)
class Fetch:
    """What one poll of a reader brought.

    Attributes:
        runs: runs of one partition each; at most one for a partition.
        payloads, offsets, keys, times, traces: columns, as in `streamml.ports.Chunk`; None is a record without a value.
        ends: for partitions read to their end, the offset of the record that comes next.
        lost: partitions whose position is out of the broker's range.
    """

    runs: list[tuple[Partition, int]] = field(default_factory=list)
    payloads: list[bytes | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    traces: list[str | None] | None = None
    ends: dict[Partition, int] = field(default_factory=dict)
    lost: list[Partition] = field(default_factory=list)

    def take(self, runs: list[tuple[Partition, int]], rows: Sequence[int]) -> None:
        """Keep these rows only, in these runs."""
        self.runs = runs
        self.payloads = [self.payloads[row] for row in rows]
        self.offsets = [self.offsets[row] for row in rows]
        self.keys = [self.keys[row] for row in rows]
        self.times = [self.times[row] for row in rows]
        if self.traces is not None:
            self.traces = [self.traces[row] for row in rows]

    def cut(self, until: Mapping[Partition, int]) -> None:
        """Drop what is beyond the end of a bounded read."""
        self.ends = {partition: min(end, until[partition]) for partition, end in self.ends.items()}
        row, keep = 0, []
        runs: list[tuple[Partition, int]] = []
        for partition, count in self.runs:
            inside = [at for at in range(row, row + count) if self.offsets[at] < until[partition]]
            if len(inside) < count:
                self.ends[partition] = until[partition]
            if inside:
                runs.append((partition, len(inside)))
            keep += inside
            row += count
        if len(keep) < row:
            self.take(runs, keep)

    def drop_empty(self) -> None:
        """Drop records without a value."""
        keep = [row for row, payload in enumerate(self.payloads) if payload is not None]
        row, runs = 0, []
        for partition, count in self.runs:
            if left := sum(payload is not None for payload in self.payloads[row : row + count]):
                runs.append((partition, left))
            row += count
        self.take(runs, keep)
