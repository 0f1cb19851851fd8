"""Which workers keep the state of a job, and where: `workers.json` in its state folder.

A job of one process keeps its state in the folder itself, without `workers.json`. A job of several has a generation
for each number of workers that it ever had: `gen-0002/worker-0000/` and so on, and the file says which generation
counts. So another number of workers is a new generation that is built beside the old one and becomes the one that
counts by renaming one file. Where a pipeline changes its key, each further segment has as many workers of its own, in
`gen-0002/segment-0001/worker-0000/` and so on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamml.errors import StateError
from streamml.state.durable import sync_folder

__all__ = ["NAME", "WorkerFolders", "owner", "read_workers", "remove_others", "write_workers"]

NAME = "workers.json"
FORMAT = 1
_PLAIN = ("checkpoints", "live")


def owner(group: int, groups: int, count: int) -> int:
    """Return which of `count` workers has a key group: neighbours stay together.

    >>> [owner(group, 8, 3) for group in range(8)]
    [0, 0, 0, 1, 1, 1, 2, 2]
    """
    return group * count // groups


@dataclass(frozen=True)
class WorkerFolders:
    """The workers of a job.

    Attributes:
        root: the job's state folder.
        count: how many workers there are.
        generation: how often the number of workers was set; 0 for a job of one process that never had workers.
        segments: how many parts the pipeline is cut into, each with `count` workers; 1 for a job of one process.

    >>> WorkerFolders(Path("state"), 2, 3).folder(1).as_posix()
    'state/gen-0003/worker-0001'
    >>> WorkerFolders(Path("state"), 2, 3, 2).folder(1, 1).as_posix()
    'state/gen-0003/segment-0001/worker-0001'
    """

    root: Path
    count: int = 1
    generation: int = 0
    segments: int = 1

    @property
    def home(self) -> Path:
        """Folder of the generation."""
        return self.root if self.generation == 0 else self.root / f"gen-{self.generation:04d}"

    def folder(self, index: int, segment: int = 0) -> Path:
        """Return the state folder of a worker."""
        if self.generation == 0:
            return self.home
        home = self.home / f"segment-{segment:04d}" if segment else self.home
        return home / f"worker-{index:04d}"

    def folders(self, segment: int = 0) -> list[Path]:
        """Return the state folders of all workers of a segment."""
        return [self.folder(index, segment) for index in range(self.count)]

    def all_folders(self) -> list[Path]:
        """Return the state folders of all workers of all segments."""
        return [folder for segment in range(self.segments) for folder in self.folders(segment)]

    def next(self, count: int, segments: int = 1) -> WorkerFolders:
        """Return the generation after this one, of so many workers in so many segments."""
        return WorkerFolders(self.root, count, self.generation + 1, segments)


def read_workers(root: Path) -> WorkerFolders:
    """Return the workers of a state folder, which may be empty or not there.

    Raises:
        StateError: the file is damaged, or a newer version of streamml wrote it.
    """
    path = root / NAME
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != FORMAT:
            msg = f"{path}: wanted format {FORMAT}, got {body['format']}. Run the version of streamml that wrote it."
            raise StateError(msg)
        return WorkerFolders(root, int(body["workers"]), int(body["generation"]), int(body.get("segments", 1)))
    except FileNotFoundError:
        return WorkerFolders(root)
    except (ValueError, KeyError, TypeError) as exc:
        there = sorted(path.name for path in root.glob("gen-????"))
        msg = f"{path}: it is not whole: {exc!r}. Put it back from a backup; generations there: {there or 'none'}."
        raise StateError(msg) from exc


def write_workers(folders: WorkerFolders, step: Callable[[str], None] = lambda name: None) -> None:
    """Make a generation the one that counts, in one step that survives a crash."""
    folders.root.mkdir(parents=True, exist_ok=True)
    temporary = folders.root / f"{NAME}.tmp"
    body = {"format": FORMAT, "workers": folders.count, "generation": folders.generation}
    if folders.segments > 1:
        body["segments"] = folders.segments
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(body) + "\n")
        file.flush()
        os.fsync(file.fileno())
    step("workers written")
    temporary.rename(folders.root / NAME)
    step("workers switched")
    sync_folder(folders.root)
    step("workers durable")


def remove_others(folders: WorkerFolders, step: Callable[[str], None] = lambda name: None) -> None:
    """Remove what generations before this one, and one that was never finished, have left."""
    keep = folders.home.name
    gone = [path for path in folders.root.glob("gen-*") if path.name != keep]
    if folders.generation:
        gone += [folders.root / name for name in _PLAIN]
    for path in sorted(gone):
        if path.is_dir():
            shutil.rmtree(path)
            step("old state removed")
