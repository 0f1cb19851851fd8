"""Reading the state of a stopped or running job without its code: keys, their states, sizes.

A checkpoint knows which layouts its rows have, so rows are decoded by the names of their states. A copy of the
checkpoint by hard links is read; the job is not disturbed.
"""

from __future__ import annotations

import heapq
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from streamml.errors import CheckpointError, PlanError, StateError
from streamml.state.checkpoints import Checkpoints, Loaded
from streamml.state.restore import restore_files
from streamml.state.rows import KINDS, KeyState, StageRows, is_stage_key, key_in, route
from streamml.state.store import Store

__all__ = ["KeySize", "Snapshot", "StageSize", "checkpoints_of", "has_checkpoints", "newest"]


@dataclass(frozen=True, order=True)
class KeySize:
    """How much is stored for a key: bytes of all its rows, timers included."""

    bytes: int
    rows: int
    stage: str
    key: Any = field(compare=False)


@dataclass
class StageSize:
    """How much is stored for a stage.

    Attributes:
        stage: its name.
        keys: number of keys.
        rows: number of rows by kind: `states`, `chunks` (of long lists and sets), `maps`, `timers`.
        bytes: bytes of rows by kind, keys and values, before compression.
        largest: the keys with the most bytes, the largest first.
    """

    stage: str
    keys: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS.values(), 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS.values(), 0))
    largest: list[KeySize] = field(default_factory=list)


def checkpoints_of(folder: Path) -> Checkpoints:
    """Return the checkpoints in a job's state folder; nothing in it is changed by looking.

    Raises:
        StateError: there are none.
    """
    for root in (folder / "checkpoints", folder):
        if _holds_any(root):
            return Checkpoints(root)
    msg = f"state folder {folder}: there are no checkpoints. Name the --state-dir of a job that has taken one."
    raise StateError(msg)


def has_checkpoints(folder: Path) -> bool:
    """Return whether a worker's state folder holds a checkpoint, whole or not."""
    return _holds_any(folder / "checkpoints")


def _holds_any(root: Path) -> bool:
    return root.is_dir() and any(path.name.startswith(("chk-", "bad-chk-", "undone-chk-")) for path in root.iterdir())


def newest(checkpoints: Checkpoints) -> Loaded:
    """Return the newest checkpoint that is whole; unlike `Checkpoints.latest` it moves nothing aside.

    Raises:
        CheckpointError: there is none.
    """
    problems = []
    for info in reversed(checkpoints.list(contents=False)):
        try:
            return checkpoints.load(info.number)
        except CheckpointError as exc:
            problems.append(str(exc))
    msg = f"checkpoints in {checkpoints.root}: none can be read: {'; '.join(problems) or 'all were put aside'}"
    raise CheckpointError(msg)


class Snapshot:
    """The state in one checkpoint of a job. Use it as a context manager, or close it.

    Args:
        folder: the job's state folder.
        number: which checkpoint; the newest whole one by default.

    Raises:
        StateError: there is no such checkpoint, or it is not whole.
    """

    def __init__(self, folder: Path, number: int | None = None) -> None:
        from streamml.state.rocks import RocksStore

        checkpoints = checkpoints_of(folder)
        self._copy = _scratch(folder)
        try:
            self.loaded = _linked(checkpoints, number, self._copy / "db")
            self._store: Store = RocksStore(self._copy / "db")
        except BaseException:
            shutil.rmtree(self._copy, ignore_errors=True)
            raise
        data = self.loaded.data
        stages: dict[str, Any] = data.get("stages", {})
        self.stages = {
            name: StageRows(name, number, stages[name], self._store)
            for name, number in data.get("stage_ids", {}).items()
            if name in stages
        }
        self._by_number = {stage.number: stage for stage in self.stages.values()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy."""
        self._store.close()
        shutil.rmtree(self._copy)

    def get(self, key: Any, stage: str | None = None) -> list[KeyState]:
        """Return what each stage, or one of them, keeps for a key; stages that keep nothing are left out.

        Raises:
            PlanError: there is no such stage.
        """
        found = [rows.get(key) for rows in self._chosen(stage)]
        return [state for state in found if state is not None]

    def keys(self, stage: str | None = None) -> Iterator[KeySize]:
        """Yield each stored key with its size, in the order of the store (by key group)."""
        names = {rows.number for rows in self._chosen(stage)}
        for number, sizes in self._groups(None):
            if number in names:
                yield from sizes

    def sizes(self, stage: str | None = None, top: int = 10) -> list[StageSize]:
        """Return how much is stored by stage, with its largest keys."""
        totals = {rows.number: StageSize(rows.name) for rows in self._chosen(stage)}
        for number, sizes in self._groups(totals):
            if number in totals:
                total = totals[number]
                found = list(sizes)
                total.keys += len(found)
                total.largest = heapq.nlargest(top, [*total.largest, *found])
        return list(totals.values())

    def _chosen(self, stage: str | None) -> list[StageRows]:
        if stage is None:
            return list(self.stages.values())
        if stage not in self.stages:
            where = f"checkpoint {self.loaded.number}"
            raise PlanError.unknown(where, "stage", stage, self.stages)
        return [self.stages[stage]]

    def _groups(self, totals: dict[int, StageSize] | None) -> Iterator[tuple[int, list[KeySize]]]:
        """Yield for each key group and stage the sizes of its keys; counts rows by kind on the way."""
        current: tuple[int, int] | None = None
        sizes: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
        for key, row in self._store.scan(b"", b"\xff" * 8):
            group, number, kind = route(key)
            if (group, number) != current:
                if current is not None:
                    yield current[1], self._sizes(current[1], sizes)
                current = (group, number)
                sizes.clear()
            if totals is not None and number in totals:
                totals[number].rows[KINDS[kind]] += 1
                totals[number].bytes[KINDS[kind]] += len(key) + len(row)
            counts = sizes[key_in(key, kind)]
            counts[0] += len(key) + len(row)
            counts[1] += 1
        if current is not None:
            yield current[1], self._sizes(current[1], sizes)

    def _sizes(self, number: int, sizes: dict[bytes, list[int]]) -> list[KeySize]:
        name = self._by_number[number].name if number in self._by_number else f"stage number {number}"
        decoded = ((msgspec.msgpack.decode(raw), counts) for raw, counts in sizes.items())
        return [KeySize(counts[0], counts[1], name, key) for key, counts in decoded if not is_stage_key(key)]


def _linked(checkpoints: Checkpoints, number: int | None, target: Path) -> Loaded:
    """Link a checkpoint's files; when a running job retires it meanwhile, take the one that is newest by then."""
    while True:
        loaded = newest(checkpoints) if number is None else checkpoints.load(number)
        try:
            restore_files(loaded.db, target)
        except StateError:
            if number is not None or loaded.folder.is_dir():
                raise
        else:
            return loaded


def _scratch(folder: Path) -> Path:
    """Make a folder for the copy: on the same disk, where files can be linked; elsewhere where that is not writable."""
    try:
        return Path(tempfile.mkdtemp(prefix="inspect-", dir=folder))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="streamml-inspect-"))
