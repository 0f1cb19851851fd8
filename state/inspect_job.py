"""The state of a job of several workers, as `streamml.state.inspect` is that of one."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamml.state.inspect import KeySize, Snapshot, StageSize
from streamml.state.rows import KeyState
from streamml.state.table import encode_key, key_group
from streamml.state.workers import owner, read_workers

__all__ = ["JobSnapshot"]


class JobSnapshot:
    """The state in one checkpoint of each worker. Use it as a context manager, or close it.

    Args:
        folder: the job's state folder; that of a job of one process will do, too.
        number: which checkpoint; the newest whole one of each worker by default.

    Attributes:
        workers: the snapshot of each worker, by its number; a job of one process has one, None.

    Raises:
        StateError: there is no such checkpoint, or it is not whole.
    """

    def __init__(self, folder: Path, number: int | None = None) -> None:
        there = read_workers(folder)
        self.workers: dict[int | None, Snapshot] = {}
        with ExitStack() as stack:
            for number_of_worker, home in enumerate(there.all_folders()):
                name = None if there.generation == 0 else number_of_worker
                self.workers[name] = stack.enter_context(Snapshot(home, number))
            self._stack = stack.pop_all()
        self._count, self._segments = there.count, there.segments

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copies."""
        self._stack.close()

    @property
    def checkpoint(self) -> int | dict[str, int]:
        """Number of the checkpoint; of each worker's, where there are several."""
        numbers = {name: snapshot.loaded.number for name, snapshot in self.workers.items()}
        return numbers[None] if None in numbers else {f"worker {name}": number for name, number in numbers.items()}

    def owners(self, key: Any) -> list[Snapshot]:
        """Return the snapshots of the workers that have a key: one in each segment of a pipeline with several keys."""
        found = list(self.workers.values())
        memories = list(found[0].loaded.data.get("stages", {}).values())
        if len(found) == 1 or not memories:
            return found[:1]
        groups = memories[0]["state"]["groups"]
        index = owner(key_group(encode_key(key), groups), groups, self._count)
        return [found[segment * self._count + index] for segment in range(self._segments)]

    def get(self, key: Any, stage: str | None = None) -> list[KeyState]:
        """Return what each stage, or one of them, keeps for a key.

        Raises:
            PlanError: there is no such stage.
        """
        return [found for each in _having(stage, self.owners(key)) for found in each.get(key, stage)]

    def keys(self, stage: str | None = None) -> Iterator[KeySize]:
        """Yield each stored key with its size, worker by worker."""
        for snapshot in _having(stage, self.workers.values()):
            yield from snapshot.keys(stage)

    def sizes(self, stage: str | None = None, top: int = 10) -> list[StageSize]:
        """Return how much is stored by stage, with its largest keys."""
        totals: dict[str, StageSize] = {}
        for snapshot in _having(stage, self.workers.values()):
            for size in snapshot.sizes(stage, top):
                total = totals.setdefault(size.stage, StageSize(size.stage))
                total.keys += size.keys
                for kind in total.rows:
                    total.rows[kind] += size.rows[kind]
                    total.bytes[kind] += size.bytes[kind]
                total.largest = heapq.nlargest(top, [*total.largest, *size.largest])
        return list(totals.values())


def _having(stage: str | None, snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Return the snapshots that keep something for a stage; where none does, one that says so."""
    found = list(snapshots)
    return [each for each in found if stage is None or stage in each.stages] or found[:1]
