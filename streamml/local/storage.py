"""State and checkpoints of the embedded engine.

A live store, numbered checkpoints, and which one a start goes on from.
"""

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
        self.restored = (
            self.checkpoints.latest() if decided is None else self._as_decided(decided(), fresh=options.overwrite)
        )
        if self.restored is not None:
            found = self.restored.data.get("pipeline")
            if found != pipeline:
                msg = (
                    f"state folder {root} belongs to pipeline {found!r}, not to {pipeline!r}; pass another --state-dir"
                )
                raise StateError(msg)
            self.number = self.restored.number
        if self.restored is not None:
            restore_files(self.restored.db, live)
        elif live.exists():
            clear(live)
        self.store = RocksStore(live, options.rocks or RocksOptions())

    def _as_decided(self, number: int | None, *, fresh: bool) -> Loaded | None:
        """Load the checkpoint whose output was committed; newer ones are put aside, their output was not.

        Args:
            number: what the sink says, None if it knows of no commit.
            fresh: a job without checkpoints may start although the sink knows of a commit.
        """
        checkpoints = self.checkpoints
        assert checkpoints is not None
        there = [info.number for info in checkpoints.list(contents=False)]
        if number is not None:
            if not there and fresh:
                return None
            if number not in there:
                msg = (
                    f"state folder {checkpoints.root.parent}: the output was committed up to checkpoint "
                    f"{number}, and here are "
                    f"{there or 'none'}. Give the state folder that belongs to it; or, to start afresh and "
                    "append to the output, "
                    "an empty one with --overwrite."
                )
                raise StateError(msg)
            loaded = checkpoints.load(number)
            checkpoints.rewind(number)
            return loaded
        while checkpoints.list(contents=False):
            newest = checkpoints.latest()
            if newest is None or "decided" not in newest.data:
                return newest  # of a time when this sink was not there
            if (before := self._noted() or newest.data["decided"]) is not None:
                msg = (
                    f"state folder {checkpoints.root.parent}: the output had committed checkpoint "
                    f"{before}, and knows of none any "
                    "more (Kafka forgets after offsets.retention.minutes, 7 days, or the output or its "
                    "name was changed). "
                    f"Say which one it has, one of {there}, with resume=NUMBER in the sink's address; "
                    "after an orderly stop that is "
                    "the last one."
                )
                raise StateError(msg)
            checkpoints.rewind(newest.number - 1)
        return None

    @property
    def manifest(self) -> dict[str, Any]:
        """What was stored with the restored checkpoint; empty for a fresh job."""
        return {} if self.restored is None else self.restored.data

    def save(self, manifest: dict[str, Any]) -> CheckpointInfo | None:
        """Write the next checkpoint; None where none are taken."""
        if self.checkpoints is None:
            return None
        return self.checkpoints.save(self.number, self.store, manifest)

    def note_commit(self) -> None:
        """Note that a sink that decides has committed the newest checkpoint, to tell when it has forgotten that."""
        if self.checkpoints is not None:
            (self.checkpoints.root.parent / "committed").write_text(str(self.number), encoding="ascii")

    def _noted(self) -> int | None:
        assert self.checkpoints is not None
        note = self.checkpoints.root.parent / "committed"
        text = note.read_text(encoding="ascii") if note.exists() else ""
        return int(text) if text.isdigit() else None  # it may have been cut off

    def close(self) -> None:
        """Close the store."""
        self.store.close()
