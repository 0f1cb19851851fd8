"""Another number of workers: the old ones read on to one cut of the input, then their state is dealt out anew."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from streamml.connectors.positions import furthest, records
from streamml.errors import StateError
from streamml.state.checkpoints import Checkpoints, Loaded
from streamml.state.durable import Checksums, sync_folder
from streamml.state.inspect import has_checkpoints
from streamml.state.manifest import ManifestError, read_manifest
from streamml.state.redistribute import Plan, deal_out, merge_stages
from streamml.state.restore import restore_files
from streamml.state.rocks import RocksStore
from streamml.state.workers import WorkerFolders, remove_others, write_workers

__all__ = ["deal_out_anew", "end_of", "goal_of", "locked", "rescale"]

Step = Callable[[str], None]
_BY_STAGE = ("stage_ids", "stages")
_PATIENCE = 15.0  # seconds that processes of a job that was killed may take to end


def rescale(
    now: WorkerFolders,
    count: int,
    read_on: Callable[[Mapping[str, Any]], bool],
    step: Step = lambda name: None,
    stages: Sequence[Sequence[str]] = ((),),
) -> WorkerFolders | None:
    """Change the number of workers of a job that is not running; call it inside `locked`.

    A crash at any moment leaves the workers that there were, with their state, or the new ones with theirs.

    Args:
        now: the workers that there are.
        count: how many are wanted.
        read_on: runs those that there are until all have read up to the given positions (a `Goal`), with a checkpoint
            there and nothing left in the exchanges between them, and says whether they came to that.
        step: called after each step that is visible on disk.
        stages: names of the stages of each segment of the pipeline, see `streamml.local.segments`.

    Returns:
        The new workers; None if `read_on` said no.

    Raises:
        StateError: the state is of workers of a pipeline that was cut into other segments.
    """
    if now.generation and now.segments != len(stages):
        msg = (
            f"state folder {now.root}: its workers run a pipeline that changes its key {now.segments - 1} times, this "
            f"one does {len(stages) - 1} times. Run the pipeline as it was, or start with an empty state folder."
        )
        raise StateError(msg)
    remove_others(now, step)
    if count == now.count:
        return now
    new = now.next(count, len(stages))
    if not any(map(has_checkpoints, now.all_folders())):
        write_workers(new, step)
        return new
    if not read_on(goal_of(now)):
        return None
    deal_out_anew(now, new, step, stages)
    write_workers(new, step)
    remove_others(new, step)
    return new


def goal_of(workers: WorkerFolders) -> dict[str, Any]:
    """Return for each source how far some worker has read in each partition, by their newest checkpoints."""
    found = [
        manifest["sources"] for folder in workers.folders() if (manifest := _peek(folder / "checkpoints")) is not None
    ]
    if not found:
        msg = f"state folder {workers.root}: no checkpoint of its {workers.count} workers can be read"
        raise StateError(msg)
    return {tag: furthest([sources[tag] for sources in found]) for tag in found[0]}


def end_of(workers: WorkerFolders) -> dict[str, Any] | None:
    """Return where the input ended for some workers that the others of the first segment have not got to, else None."""
    found = [_peek(folder / "checkpoints") or {} for folder in workers.folders()]
    ended = [manifest["sources"] for manifest in found if manifest.get("finished")]
    if not ended or len(ended) == len(found):
        return None
    return {tag: furthest([sources[tag] for sources in ended]) for tag in ended[0]}


def _peek(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the newest checkpoint that looks whole."""
    for info in reversed(Checkpoints(folder).list(contents=False)):
        if info.valid:
            try:
                return read_manifest(folder / f"chk-{info.number:08d}", info.number, Checksums(), contents=False).data
            except ManifestError:
                continue
    return None


def deal_out_anew(
    now: WorkerFolders, new: WorkerFolders, step: Step = lambda name: None, stages: Sequence[Sequence[str]] = ((),)
) -> None:
    """Build the folders of new workers, which count once `write_workers` has said so.

    Nothing is left in the exchanges of the old ones, so those of the new ones begin empty.
    """
    building = new.home.with_name(f"{new.home.name}.tmp")
    for left_over in (building, new.home):
        if left_over.exists():
            shutil.rmtree(left_over)
    building.mkdir(parents=True)
    step("generation begun")
    for segment, names in enumerate(stages):
        _deal_out_segment(now, new, segment, names, building, step)
    sync_folder(building)
    building.rename(new.home)
    sync_folder(new.root)
    step("generation renamed")


def _deal_out_segment(
    now: WorkerFolders, new: WorkerFolders, segment: int, names: Sequence[str], building: Path, step: Step
) -> None:
    apart = now.segments == new.segments  # else one process had the stages of all segments
    loaded = [_newest(folder) for folder in now.folders(segment if apart else 0)]
    _check_one_cut(now, loaded)
    plan = merge_stages([origin.data if apart else _only(origin.data, names) for origin in loaded])
    with ExitStack() as stack:
        stores = []
        for index, origin in enumerate(loaded):
            restore_files(origin.db, building / f"from-{index:04d}")
            store = RocksStore(building / f"from-{index:04d}")
            stack.callback(store.close)
            stores.append(store)
            step("origin opened")
        for index in range(new.count):
            folder = building / new.folder(index, segment).relative_to(new.home)
            folder.mkdir(parents=True)
            with ExitStack() as inner:
                target = RocksStore(folder / "live")
                inner.callback(target.close)
                deal_out(plan, stores, index, new.count, target, step)
                Checkpoints(folder / "checkpoints", on_step=step).save(1, target, _manifest(plan, loaded, segment))
            shutil.rmtree(folder / "live")
            sync_folder(folder)
            step("worker built")
    for index in range(now.count):
        shutil.rmtree(building / f"from-{index:04d}")
    sync_folder((building / new.folder(0, segment).relative_to(new.home)).parent)


def _only(data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return what a checkpoint says of some of its stages."""
    chosen = {part: {name: value for name, value in data[part].items() if name in names} for part in _BY_STAGE}
    return {**data, **chosen}


def _newest(folder: Path) -> Loaded:
    found = Checkpoints(folder / "checkpoints").latest()
    if found is None:
        msg = f"state folder {folder}: wanted a checkpoint of each worker at the same place of the input, got none here"
        raise StateError(msg)
    return found


def _check_one_cut(workers: WorkerFolders, loaded: Sequence[Loaded]) -> None:
    cuts = [{tag: records(positions) for tag, positions in origin.data["sources"].items()} for origin in loaded]
    if any(cut != cuts[0] for cut in cuts):
        msg = (
            f"state folder {workers.root}: its workers' checkpoints are not of one place of the input: {cuts}. "
            f"Start the job with --workers {workers.count}, as it was; stop it in order; then change their number."
        )
        raise StateError(msg)


def _manifest(plan: Plan, loaded: Sequence[Loaded], segment: int) -> dict[str, Any]:
    """Return what goes with the first checkpoint of each new worker of a segment.

    It has no sinks: they begin parts of their own. An exchange is read from its beginning.
    """
    first = loaded[0].data
    marks = [origin.data["watermarks"] for origin in loaded]
    partitions: dict[str, Any] = {}
    for mark in marks:
        for name, seen in mark["partitions"].items():
            partitions[name] = max(partitions.get(name, seen), seen)
    return {
        "pipeline": first["pipeline"],
        "finished": all(origin.data["finished"] for origin in loaded),
        "stage_ids": plan.stage_ids,
        "stages": plan.stages,
        "sources": {}
        if segment
        else {tag: furthest([origin.data["sources"][tag] for origin in loaded]) for tag in first["sources"]},
        "watermarks": {"current": max(mark["current"] for mark in marks), "partitions": partitions},
        "sinks": {},
    }


@contextmanager
def locked(root: Path) -> Iterator[int]:
    """Keep other processes from running workers on a state folder; yields the lock, which workers inherit.

    So it is free again only when the last worker of a job that was killed has ended.

    Raises:
        StateError: another job runs there.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / "workers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    msg = f"state folder {root}: another job runs on it. Stop that one, or name another folder."
                    raise StateError(msg) from exc
                time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)
