"""State and checkpoints of the embedded engine: a live store, numbered checkpoints, and which one a start goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamml.errors import StateError
from streamml.local.options import LocalOptions
from streamml.state.checkpoints import CheckpointInfo, Checkpoints, Loaded
from streamml.state.memory import MemoryStore
from streamml.state.store import Store

__all__ = ["Storage"]


class Storage:
    """The store of one run, and its checkpoints if there is a state folder.

    Args:
        options: where and how.
        pipeline: name of the pipeline; a state folder belongs to one.
        on_step: called between durable steps (fault tests).
        decided: asks a sink that decides for the number of the checkpoint to go on from; None where none does.
    """

    def __init__(
        self,
        options: LocalOptions,
        pipeline: str,
        on_step: Callable[[str], None] | None = None,
        decided: Callable[[], int | None] | None = None,
    ) -> None:
        self.checkpoints: Checkpoints | None = None
        self.restored: Loaded | None = None
        self.number = 0
        self.store: Store
        if options.state_dir is None:
            self.store = MemoryStore()
            return
        from streamml.state.restore import clear, restore_files
        from streamml.state.rocks import RocksOptions, RocksStore

        root = options.state_dir
        live = root / "live"
        self.checkpoints = Checkpoints(
            root / "checkpoints", keep=options.keep_checkpoints, fsync=options.fsync, on_step=on_step
        )
        self.restored = self.checkpoints.latest() if decided is None else self._as_decided(self.checkpoints, decided())
        if self.restored is not None:
            found = self.restored.data.get("pipeline")
            if found != pipeline:
                msg = f"state folder {root} belongs to pipeline {found!r}, not to {pipeline!r}; pass another --state-dir"
                raise StateError(msg)
            self.number = self.restored.number
        if self.restored is not None:
            restore_files(self.restored.db, live)
        elif live.exists():
            clear(live)
        self.store = RocksStore(live, options.rocks or RocksOptions())

    @staticmethod
    def _as_decided(checkpoints: Checkpoints, number: int | None) -> Loaded | None:
        """Load the checkpoint whose output was committed; newer ones are put aside, their output was not."""
        if number is None:
            checkpoints.rewind(0)
            return None
        loaded = checkpoints.load(number)
        checkpoints.rewind(number)
        return loaded

    @property
    def manifest(self) -> dict[str, Any]:
        """What was stored with the restored checkpoint; empty for a fresh job."""
        return {} if self.restored is None else self.restored.data

    def save(self, manifest: dict[str, Any]) -> CheckpointInfo | None:
        """Write the next checkpoint; None where none are taken."""
        if self.checkpoints is None:
            return None
        return self.checkpoints.save(self.number, self.store, manifest)

    def close(self) -> None:
        """Close the store."""
        self.store.close()
