"""What an engine needs from a source and a sink. Connectors implement these; no engine is named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamml.records import Batch

__all__ = ["Chunk", "FollowingSink", "Sink", "Source"]


@dataclass(slots=True)
class Chunk:
    """What one poll brought: records in order, in runs of one source partition each.

    Attributes:
        payloads: raw bytes to be decoded by the schema (a line without its line end, a Kafka value), or decoded
            mappings (Parquet, Arrow, in-memory).
        runs: consecutive runs as (partition, number of records); the counts sum to `len(payloads)`.
        offsets: position of each record in its partition, for messages and for ids of events that have none.
        keys, times, traces: what the transport carried for each record, or None.
    """

    payloads: Sequence[Any]
    runs: Sequence[tuple[str, int]]
    offsets: Sequence[int]
    keys: Sequence[bytes | None] | None = None
    times: Sequence[int] | None = None
    traces: Sequence[str | None] | None = None


class Source(Protocol):
    """A replayable stream in partitions. Order of calls: `open` once, then `poll` and `positions` in turn, `close`.

    `positions` is stored in checkpoints, so it is plain JSON; it says what `poll` has handed out so far.

    Optional parts, which an engine calls where they are there:

    - `for_job(job: str, interval: int)`, before anything else: the name of the job, different for each worker, and
      the ms between checkpoints. From then on the source is closed, even if it is never opened.
    - `committed(positions: Mapping[str, Any])`, after each checkpoint: a checkpoint with these positions, what
      `positions` returned for it, is stored, and all sinks have committed it. Must not wait, and must not raise for
      what only others look at.
    - `lag_unit: str`: what `lag` counts, `"events"` (where there is none) or `"bytes"`.
    - `lag_seconds(now: int) -> dict[str, float]`: age of the last record read of each partition, 0 where none waits.
    - `measure(metrics: Metrics, now: int)`, about ten times a second: writes the source's metrics into the registry.

    Attributes:
        replayable: positions can be read again after a crash; false for a pipe.
    """

    replayable: bool

    def open(self, positions: Mapping[str, Any] | None) -> None:
        """Start at these positions, or at the configured start when there are none.

        Raises:
            ConnectorError: the input is not there, or is not what the positions were taken from.
        """
        ...

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        """Return at most `limit` records that are there, waiting at most `timeout` seconds for the first one."""
        ...

    def positions(self) -> dict[str, Any]:
        """Return where to start again so that exactly the records after the last poll come."""
        ...

    def partitions(self) -> Sequence[str]:
        """Return the partitions that are read now and may still bring records."""
        ...

    @property
    def finished(self) -> bool:
        """True when a bounded source has handed out its last record."""
        ...

    def progress(self) -> float | None:
        """Return how much of a bounded input was read (0 to 1), None when unknown."""
        ...

    def lag(self) -> dict[str, int]:
        """Return for each partition how many records (or bytes, for files) wait; empty when unknown."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Sink(Protocol):
    """An output that takes part in checkpoints (two-phase commit).

    Order of calls: `open` once; `write` any number of times; for each checkpoint `prepare` (everything written so far
    is durable, but not visible to a reader of committed data), then the engine stores the checkpoint together with what
    `prepare` returned, then `commit` (it becomes visible). After a crash `open` gets what was stored with the
    checkpoint that is
    restored: it finishes that commit if it was cut off, and discards whatever was written later.
    `close` after the last commit; what is not committed is discarded.

    A sink whose own system can tell atomically whether a commit took place (a Kafka transaction) says so by
    `committed`: at a start the engine asks it before `open`, and restores that checkpoint. It commits before the
    other sinks, and its `prepare` need only begin: a commit whose records are not all there fails, and then the
    checkpoint does not count.

    Optional parts, which an engine calls where they are there:

    - `for_job(job: str, interval: int)`, before anything else: the name of the job, different for each worker, and
      the ms between checkpoints. From then on the sink is closed, even if it is never opened.
    - `measure(metrics: Metrics, now: int)`, about ten times a second: writes the sink's metrics into the registry.

    Attributes:
        transactional: takes part in checkpoints; false for a sink that shows at once what is written (stdout).
        decides: `committed` decides which checkpoint a start goes on from.
    """

    transactional: bool
    decides: bool

    def committed(self) -> int | None:
        """Return the number of the last checkpoint that this sink has committed; asked only when it decides."""
        ...

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """Start empty (None: a fresh job), or continue from what `prepare` returned for the restored checkpoint."""
        ...

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """Append the rows of a batch; `fields` are the fields to write, None for all of them."""
        ...

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append plain records (side outputs)."""
        ...

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """Make durable what was written since the last commit; return what `open` needs to finish or roll back."""
        ...

    def commit(self, checkpoint: int) -> None:
        """Make visible what was prepared. Must be idempotent."""
        ...

    def close(self) -> None:
        """Release everything; discard what was not committed."""
        ...


class FollowingSink:
    """Base of sinks that do not decide which checkpoint a start goes on from."""

    transactional = True
    decides = False

    def committed(self) -> int | None:
        """Return None: the engine's own checkpoints decide."""
        return None
