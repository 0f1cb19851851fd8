"""Where a registry keeps its files: what a place must offer, and a folder on a disk."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from streamml.errors import ModelError

__all__ = ["ROLLOUTS", "FolderStore", "Store"]

ROLLOUTS = "rollouts"
"""Folder of a model's history."""

_STALE = 24 * 3600
"""Seconds after which what a killed writer left behind is removed by the next writer."""


class Store(Protocol):
    """A tree of files in which a file or folder appears whole or not at all, and never changes afterwards.

    Attributes:
        where: the place, for messages.
    """

    where: str

    def names(self, *parts: str) -> list[str]:
        """Return the names in a folder, without what is still being written; nothing when there is no such folder."""
        ...

    def bundles(self, name: str) -> list[str]:
        """Return which folders of a model hold a bundle; the empty text is the model's own folder."""
        ...

    def read(self, *parts: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_records(self, name: str, files: Sequence[str]) -> dict[str, bytes]:
        """Return the content of records of a model's history by file; those that are not there are left out."""
        ...

    def create(self, data: bytes, *parts: str) -> bool:
        """Make a file with this content; False when it exists already, which is then left as it is."""
        ...

    def scratch(self, name: str) -> AbstractContextManager[Path]:
        """Return a context that gives a folder in which to put together a version of a model."""
        ...

    def publish(self, folder: Path, name: str, version: int) -> bool:
        """Make what was put together the version of a model; False when there is such a version already."""
        ...

    def fetch(self, name: str, version: str) -> Path:
        """Return a local folder with a version's bundle; the empty text is the one in the model's own folder."""
        ...


class FolderStore:
    """A folder on a disk, or on a network share that has hard links.

    A file is written under another name and linked to its own; a version is put together in a hidden folder and
    renamed. Both fail when the name is taken, so writers at the same time can't replace each other's.

    Args:
        root: the folder; made by the first version that is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root)

    def names(self, *parts: str) -> list[str]:
        folder = self.root.joinpath(*parts)
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise _unreadable(folder, exc) from exc

    def bundles(self, name: str) -> list[str]:
        folder = self.root / name
        return [each for each in ("", *self.names(name)) if (folder / each / "bundle.json").is_file()]

    def read(self, *parts: str) -> bytes:
        path = self.root.joinpath(*parts)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise _unreadable(path, exc) from exc

    def read_records(self, name: str, files: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for file in files:
            with suppress(FileNotFoundError):
                found[file] = self.read(name, ROLLOUTS, file)
        return found

    def create(self, data: bytes, *parts: str) -> bool:
        path = self.root.joinpath(*parts)
        temporary = _temporary(path)
        try:
            path.parent.mkdir(exist_ok=True)
            _sweep(path.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync(path.parent)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        return True

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        folder = _temporary(self.root / name / "version")
        try:
            folder.mkdir(parents=True)
            _sweep(folder.parent)
            yield folder
        except OSError as exc:
            raise _unwritable(folder.parent, exc) from exc
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, name: str, version: int) -> bool:
        target = self.root / name / str(version)
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        try:
            folder.rename(target)  # fails when the target is a folder that is not empty
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise
        _sync(target.parent)
        _sync(target.parent.parent)
        return True

    def fetch(self, name: str, version: str) -> Path:
        return self.root / name / version


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed have left, once nobody can be writing it any more."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another writer sweeps as well
            if time.time() - path.stat().st_mtime > _STALE:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _unreadable(path: Path, exc: OSError) -> ModelError:
    return ModelError(f"model registry: {path} can't be read ({exc}); check the folder, its mount and permissions")


def _unwritable(path: Path, exc: OSError) -> ModelError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "The disk is full: free some space"
    elif exc.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
        advice = "The registry must lie on a file system that has hard links, and be writable for this user"
    else:
        advice = "Check the folder, its mount and permissions"
    return ModelError(f"model registry: {path} can't be written ({exc}); nothing was changed. {advice}")
