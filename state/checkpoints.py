"""Numbered checkpoints in a folder: written whole or not at all, checked before use, the newest few kept."""

from __future__ import annotations

import builtins
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamml.errors import CheckpointError, StateError
from streamml.state.durable import Checksums, sync_folder, write_error
from streamml.state.manifest import Manifest, ManifestError, read_manifest, write_manifest
from streamml.state.restore import restore_files
from streamml.state.store import Store

__all__ = ["CheckpointInfo", "Checkpoints", "Loaded", "restore_files"]

_COMMITTED = re.compile(r"chk-(\d{8,})")
_TEMPORARY = re.compile(r"tmp-(new|old)-chk-\d{8,}")
_ASIDE = {
    "bad": "damaged, put aside",
    "undone": "put aside at a restart: what it wrote was not committed, and was done again",
}


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was checked and can be restored."""

    number: int
    created_ms: int
    data: dict[str, Any]
    """What the caller of `commit` gave."""
    folder: Path
    problems: list[str] = field(default_factory=list)
    """Newer checkpoints that were passed over, each with its problem and where it was put."""

    @property
    def db(self) -> Path:
        """Folder of the store."""
        return self.folder / "db"


@dataclass(frozen=True)
class CheckpointInfo:
    """One line of the list of checkpoints."""

    number: int
    created_ms: int | None
    bytes: int
    problem: str | None = None

    @property
    def valid(self) -> bool:
        """Whether it can be restored."""
        return self.problem is None


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Checkpoints:
    """The checkpoints of one worker under `root`, in folders `chk-00000012/`.

    In call order: `begin` gives an empty temporary folder, the store writes `db/` into it, `commit` makes it a
    checkpoint; `abort` gives it up. `save` does all of that for one store. `retire` drops the oldest ones, when there
    is time for it. A crash at any moment leaves either the new checkpoint or none of it. After a restart `latest` gives
    the newest one that is whole.

    Args:
        root: folder of the checkpoints.
        keep: how many are kept, at least 1; 2 or more where a sink decides which one is loaded.
        fsync: force everything to disk. Without it a checkpoint survives a crash of the process, not of the machine.
        on_step: called with a name between each two steps that are visible on disk; for fault tests.
        clock: milliseconds since 1970 for `created_ms`.

    >>> import tempfile
    >>> from streamml.state.memory import MemoryStore
    >>> folder = tempfile.TemporaryDirectory()
    >>> checkpoints, store = Checkpoints(Path(folder.name)), MemoryStore()
    >>> store.write({b"k": b"v"})
    >>> checkpoints.save(1, store, {"offset": 42}).number
    1
    >>> loaded = checkpoints.latest()
    >>> loaded.number, loaded.data, MemoryStore.restore(loaded.db).get_many([b"k"])
    (1, {'offset': 42}, [b'v'])
    >>> folder.cleanup()
    """

    def __init__(
        self,
        root: Path,
        keep: int = 3,
        fsync: bool = True,
        on_step: Callable[[str], None] | None = None,
        clock: Callable[[], int] = _wall_clock,
    ) -> None:
        if keep < 1:
            msg = f"checkpoints in {root}: keep must be at least 1, got {keep}"
            raise CheckpointError(msg)
        self.root = root
        self._keep = keep
        self._fsync = fsync
        self._step = on_step if on_step is not None else lambda name: None
        self._clock = clock
        self._checksums = Checksums()

    @property
    def read_bytes(self) -> int:
        """Bytes of files that were read for their checksums so far: what checkpoints cost beside their writing."""
        return self._checksums.read_bytes

    def begin(self, number: int) -> Path:
        """Return a fresh temporary folder for checkpoint `number`, which must be newer than all others."""
        newest = max(self._numbers(), default=-1)
        if number <= newest:
            msg = (
                f"checkpoint {number}: wanted a number above {newest}, the newest one in {self.root}. "
                f"Go on from {newest + 1}, or `rewind` to the checkpoint that was restored."
            )
            raise CheckpointError(msg)
        temporary = self._temporary(number)
        with self._guarded(number):
            self.root.mkdir(parents=True, exist_ok=True)
            for path in self._entries(_TEMPORARY):
                shutil.rmtree(path)
            self._step("left-overs removed")
            temporary.mkdir()
        self._step("begun")
        return temporary

    def commit(self, number: int, manifest: dict[str, Any]) -> CheckpointInfo:
        """Make the temporary folder of `begin` the checkpoint `number`; `retire` drops the oldest ones afterwards.

        Args:
            number: the number given to `begin`.
            manifest: JSON values to store with it (source positions, pipeline, versions of formats).

        Raises:
            CheckpointError: the disk is full or refuses; what was there before is still there.
        """
        temporary = self._temporary(number)
        if not temporary.is_dir():
            msg = f"checkpoint {number}: there is no {temporary}. Call begin({number}) first."
            raise CheckpointError(msg)
        self._step("store written")
        with self._guarded(number):
            written = write_manifest(temporary, number, self._clock(), manifest, self._checksums, sync=self._fsync)
            self._step("manifest written")
            temporary.rename(self._folder(number))
            self._step("renamed")
            self._sync_root()
        self._step("durable")
        return CheckpointInfo(number, written.created_ms, written.bytes)

    def abort(self, number: int) -> None:
        """Give up what `begin` began; a checkpoint that was committed stays."""
        # What can't be removed now is removed by the next `begin`, which says so if it can't either.
        shutil.rmtree(self._temporary(number), ignore_errors=True)

    def save(self, number: int, store: Store, manifest: dict[str, Any]) -> CheckpointInfo:
        """Write a checkpoint of one store: begin, `db/`, commit; aborted if it fails."""
        folder = self.begin(number)
        try:
            store.checkpoint(folder / "db")
        except (StateError, OSError):
            self.abort(number)
            raise
        return self.commit(number, manifest)

    def retire(self) -> None:
        """Drop the oldest checkpoints beyond `keep`; not a part of `commit`, so that no commit waits for it.

        Raises:
            CheckpointError: one can't be removed.
        """
        try:
            for number in self._numbers()[: -self._keep]:
                gone = self.root / f"tmp-old-{self._folder(number).name}"
                self._folder(number).rename(gone)  # in one step, so that no half of it is ever taken for a checkpoint
                self._step("retired")
                shutil.rmtree(gone)
        except OSError as exc:
            msg = (
                f"checkpoints in {self.root}: the new one is written, but an old one can't be removed: {exc}. "
                "Make the folder writable for this user."
            )
            raise CheckpointError(msg) from exc
        self._step("retention done")

    def latest(self) -> Loaded | None:
        """Return the newest checkpoint that is whole, None if there has never been one.

        Damaged newer ones are moved aside to `bad-chk-...` and named in `problems`.

        Raises:
            CheckpointError: there are some, but none can be used; or a newer version of streamml wrote the one
                that would be next.
        """
        problems: dict[int, str] = {}
        for number in reversed(self._numbers()):
            try:
                manifest = self._read(number)
            except ManifestError as exc:
                if exc.newer:
                    msg = (
                        f"checkpoint {self._folder(number)}: {exc}. Run the version of streamml that wrote it; or, "
                        "to go back to an older checkpoint, move this folder elsewhere."
                    )
                    raise CheckpointError(msg) from exc
                problems[number] = str(exc)
                continue
            return self._loaded(manifest, [self._put_aside(bad, problem) for bad, problem in problems.items()])
        found = [f"{self._folder(number).name}: {problem}" for number, problem in problems.items()]
        found += [f"{name}: was put aside as damaged" for name in self._aside("bad")]
        if not found:
            return None
        msg = (
            f"checkpoints in {self.root}: none can be used: {'; '.join(found)}. "
            "Restore the folder from a backup, or move it elsewhere to start from empty state."
        )
        raise CheckpointError(msg)

    def load(self, number: int) -> Loaded:
        """Return the checkpoint of that number, checked.

        Raises:
            CheckpointError: there is none, or it is not whole.
        """
        numbers = self._numbers()
        if number not in numbers:
            msg = f"checkpoint {number}: there is none in {self.root}; there are: {numbers or 'none at all'}."
            raise CheckpointError(msg)
        try:
            return self._loaded(self._read(number), [])
        except ManifestError as exc:
            others = [other for other in numbers if other != number]
            msg = f"checkpoint {self._folder(number)}: {exc}. Others are: {others or 'none'}."
            raise CheckpointError(msg) from exc

    def rewind(self, number: int) -> list[str]:
        """Move every checkpoint newer than `number` aside, and say which; so that the next one may be `number + 1`.

        They go to `undone-chk-...`: whole, but a sink that decides has not committed what they wrote.
        """
        newer = [other for other in self._numbers() if other > number]
        why = f"newer than {number}, which was restored"
        return [self._put_aside(other, why, "undone") for other in reversed(newer)]

    def aside(self) -> dict[str, str]:
        """Return what was put aside: for each folder's name what it is."""
        return {name: text for kind, text in _ASIDE.items() for name in self._aside(kind)}

    def _aside(self, kind: str) -> builtins.list[str]:
        return [path.name for path in self._entries(re.compile(rf"{kind}-chk-\d{{8,}}(\.\d+)?"))]

    def list(self, *, contents: bool = True) -> list[CheckpointInfo]:
        """Return all checkpoints, oldest first, and change nothing.

        Args:
            contents: check the bytes of all files, not only their sizes.
        """
        return [self._info(number, contents) for number in self._numbers()]

    def _info(self, number: int, contents: bool) -> CheckpointInfo:
        try:
            manifest = self._read(number, contents)
        except ManifestError as exc:
            size = sum(path.stat().st_size for path in self._folder(number).rglob("*") if path.is_file())
            return CheckpointInfo(number, None, size, str(exc))
        return CheckpointInfo(number, manifest.created_ms, manifest.bytes)

    def _read(self, number: int, contents: bool = True) -> Manifest:
        try:
            return read_manifest(self._folder(number), number, self._checksums, contents=contents)
        except OSError as exc:
            msg = f"checkpoint {self._folder(number)}: it can't be read: {exc}. Remove the cause, and start again."
            raise CheckpointError(msg) from exc

    def _loaded(self, manifest: Manifest, problems: builtins.list[str]) -> Loaded:
        folder = self._folder(manifest.number)
        return Loaded(manifest.number, manifest.created_ms, manifest.data, folder, problems)

    def _put_aside(self, number: int, problem: str, kind: str = "bad") -> str:
        folder = self._folder(number)
        aside = self.root / f"{kind}-{folder.name}"
        copy = 1
        while aside.exists():
            copy += 1
            aside = self.root / f"{kind}-{folder.name}.{copy}"
        try:
            folder.rename(aside)
            self._sync_root()
        except OSError as exc:
            msg = f"checkpoint {folder}: {problem}, and it can't be moved to {aside}: {exc}. Move it by hand."
            raise CheckpointError(msg) from exc
        return f"{folder.name}: {problem}; moved to {aside}"

    @contextmanager
    def _guarded(self, number: int) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            error = write_error(self.root, exc, doing=f"checkpoint {number}")
            self.abort(number)
            raise error from exc
        except CheckpointError:
            self.abort(number)
            raise

    def _sync_root(self) -> None:
        if self._fsync:
            sync_folder(self.root)

    def _folder(self, number: int) -> Path:
        return self.root / f"chk-{number:08d}"

    def _temporary(self, number: int) -> Path:
        return self.root / f"tmp-new-chk-{number:08d}"

    def _numbers(self) -> builtins.list[int]:
        return sorted(int(path.name.removeprefix("chk-")) for path in self._entries(_COMMITTED))

    def _entries(self, pattern: re.Pattern[str]) -> builtins.list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if pattern.fullmatch(path.name))
