"""Options of the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamml.errors import PlanError
from streamml.times import Duration, to_millis

if TYPE_CHECKING:
    from streamml.models.batching import BatchSize

__all__ = ["LocalOptions"]


@dataclass(frozen=True)
class LocalOptions:
    """How the embedded engine runs a pipeline.

    Attributes:
        state_dir: folder of state and checkpoints; None keeps state in memory and takes no checkpoints (nothing
            survives a crash).
        checkpoint_interval: time between checkpoints, and between commits of sinks. Default 5s.
        batch_size: most records in a micro-batch. Default 1024. Results do not depend on it.
        latency_target: latency that 99 % of events should keep, from their arrival to the output: micro-batches get as
            large as keeps it (`streamml.models.batching.BatchSize`), at most `batch_size`. Default none: as many as
            there are.
        poll: how long an idle engine waits for records before it looks at timers and signals. Default 50ms.
        keep_checkpoints: how many checkpoints are kept. Default 3.
        cache_mb: bound of the decoded state that is kept in memory, an estimate. Default 512.
        rocks: options of the store (`streamml.state.rocks.RocksOptions`), None for its defaults.
        overwrite: a fresh job may replace output that is there already. Default no.
        exchange_mb: of a pipeline that changes its key, by how much a worker may be ahead of those that get its rows
            before it waits for them, on disk. Default 256.
        fsync: force checkpoints and output to the disk, so that they survive a power cut too. Default yes.
    """

    state_dir: Path | None = None
    checkpoint_interval: Duration = "5s"
    batch_size: int = 1024
    latency_target: Duration | None = None
    poll: Duration = "50ms"
    keep_checkpoints: int = 3
    cache_mb: int = 512
    rocks: Any = field(default=None, repr=False)
    overwrite: bool = False
    exchange_mb: int = 256
    fsync: bool = True

    def __post_init__(self) -> None:
        for name in ("checkpoint_interval", "poll", "latency_target"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, None if value is None else to_millis(value, where=name))
            except ValueError as exc:
                raise PlanError(str(exc)) from exc
        for name in ("batch_size", "keep_checkpoints", "cache_mb", "exchange_mb"):
            if getattr(self, name) < 1:
                msg = f"{name}: wanted at least 1, got {getattr(self, name)}"
                raise PlanError(msg)
        if self.latency_target == 0:
            msg = "latency_target: wanted at least 1ms, got 0; leave it out for micro-batches as large as they come"
            raise PlanError(msg)
        if self.state_dir is not None:
            object.__setattr__(self, "state_dir", Path(self.state_dir))

    def sizes(self) -> BatchSize | None:
        """Return what chooses the size of micro-batches for the latency target, None without one."""
        if self.latency_target is None:
            return None
        from streamml.models.batching import BatchSize

        return BatchSize(int(self.latency_target), high=self.batch_size)
