"""Options of the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamml.errors import PlanError
from streamml.times import Duration, to_millis

__all__ = ["LocalOptions"]


@dataclass(frozen=True)
class LocalOptions:
    """How the embedded engine runs a pipeline.

    Attributes:
        state_dir: folder of state and checkpoints; None keeps state in memory and takes no checkpoints (nothing
            survives a crash).
        checkpoint_interval: time between checkpoints, and between commits of sinks. Default 5s.
        batch_size: most records in a micro-batch. Default 1024. Results do not depend on it.
        poll: how long an idle engine waits for records before it looks at timers and signals. Default 50ms.
        keep_checkpoints: how many checkpoints are kept. Default 3.
        cache_mb: bound of the decoded state that is kept in memory, an estimate. Default 512.
        rocks: options of the store (`streamml.state.rocks.RocksOptions`), None for its defaults.
        overwrite: a fresh job may replace output that is there already. Default no.
        fsync: force checkpoints and output to the disk, so that they survive a power cut too. Default yes.
    """

    state_dir: Path | None = None
    checkpoint_interval: Duration = "5s"
    batch_size: int = 1024
    poll: Duration = "50ms"
    keep_checkpoints: int = 3
    cache_mb: int = 512
    rocks: Any = field(default=None, repr=False)
    overwrite: bool = False
    fsync: bool = True

    def __post_init__(self) -> None:
        for name in ("checkpoint_interval", "poll"):
            try:
                object.__setattr__(self, name, to_millis(getattr(self, name), where=name))
            except ValueError as exc:
                raise PlanError(str(exc)) from exc
        for name in ("batch_size", "keep_checkpoints", "cache_mb"):
            if getattr(self, name) < 1:
                msg = f"{name}: wanted at least 1, got {getattr(self, name)}"
                raise PlanError(msg)
        if self.state_dir is not None:
            object.__setattr__(self, "state_dir", Path(self.state_dir))
