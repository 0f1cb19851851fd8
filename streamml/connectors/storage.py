"""Files made durable step by step, and errors of the file system in words that help."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamml.errors import ConnectorError

__all__ = [
    "HEAD_BYTES",
    "Guard",
    "Step",
    "check_head",
    "checksum",
    "copy_range",
    "failing",
    "head_of",
    "lock",
    "sync_folder",
    "write_all",
]

Step = Callable[[str], None]
"""Called with the name of each durable step that was just made; tests kill the process there."""

HEAD_BYTES = 64 * 1024
"""How much of the start of a file tells whether it is still the same file."""

_NEXT = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Check the permissions of the file and of its folder.",
    errno.EPERM: "Check the permissions of the file and of its folder.",
    errno.EROFS: "The file system is read-only: write to another one.",
    errno.ENOSPC: "The disk is full: free some space and start again, nothing committed was lost.",
    errno.EDQUOT: "The quota is used up: free some space and start again, nothing committed was lost.",
    errno.EMFILE: "Too many open files: raise `ulimit -n`, or read fewer files at a time.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.ENOTDIR: "A part of the path is a file: check the path.",
}


@contextmanager
def failing(where: str, doing: str) -> Iterator[None]:
    """Turn an error of the file system into a `ConnectorError` that names the file and what to do.

    >>> with failing("/nowhere/events.jsonl", "open"):
    ...     open("/nowhere/events.jsonl")
    Traceback (most recent call last):
    streamml.errors.ConnectorError: /nowhere/events.jsonl: can't open it: No such file or directory. Check the path.
    """
    try:
        yield
    except OSError as exc:
        advice = _NEXT.get(exc.errno or 0, "Check the disk and its mount.")
        msg = f"{where}: can't {doing} it: {exc.strerror or exc}. {advice}"
        raise ConnectorError(msg) from exc


class Guard:
    """Guards the durable steps of a sink: once one has failed, what is on disk is unknown, so no other is made.

    >>> durably = Guard("sink x.jsonl")
    >>> with durably("commit to"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    streamml.errors.ConnectorError: sink x.jsonl: can't commit to it: No space left on device. The disk is full: ...
    >>> with durably("commit to"):
    ...     pass
    Traceback (most recent call last):
    streamml.errors.ConnectorError: sink x.jsonl: an earlier write failed. Restore the newest checkpoint: ...
    """

    def __init__(self, where: str) -> None:
        self.failed = False
        self._where = where

    @contextmanager
    def __call__(self, doing: str) -> Iterator[None]:
        """Guard one step, described as in "can't ... it"."""
        if self.failed:
            msg = f"{self._where}: an earlier write failed. Restore the newest checkpoint: it is not damaged."
            raise ConnectorError(msg)
        self.failed = True
        with failing(self._where, doing):
            yield
        self.failed = False


def sync_folder(path: str) -> None:
    """Make the names in the folder of a file durable."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, also to a pipe that does not block."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def lock(fd: int, where: str) -> None:
    """Keep other processes from writing the same output; the lock ends with the process."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        msg = f"sink {where}: another process is writing to it. Stop that job, or give this one another output."
        raise ConnectorError(msg) from exc


def copy_range(
    source: int, target: int, start: int, count: int, step: Callable[[], None], block: int = 1 << 23
) -> None:
    """Copy the first `count` bytes of a file to byte `start` of another, block by block."""
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    while done < count:
        size = min(block, count - done)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, size, done, start + done)
            except OSError as exc:
                if exc.errno not in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.EBADF):
                    raise
                in_kernel = False
                continue
        else:
            copied = os.pwrite(target, os.pread(source, size, done), start + done)
        if not copied:
            msg = f"wanted {count} bytes to copy, got {done}"
            raise OSError(errno.EIO, msg)
        done += copied
        step()


def checksum(fd: int, start: int, count: int, block: int = 1 << 20) -> int | None:
    """Return the CRC-32 of a part of a file; None if the file is shorter."""
    total = 0
    while count:
        data = os.pread(fd, min(block, count), start)
        if not data:
            return None
        total = zlib.crc32(data, total)
        start += len(data)
        count -= len(data)
    return total


def head_of(path: str, size: int) -> str:
    """Return the fingerprint of the first `size` bytes of a file."""
    with failing(path, "read"), open(path, "rb") as file:
        return hashlib.blake2b(file.read(size), digest_size=8).hexdigest()


def check_head(path: str, position: Mapping[str, Any]) -> None:
    """Refuse a file that does not start as the one that the position was taken from.

    Raises:
        ConnectorError: it starts differently.
    """
    size, wanted = position["head_bytes"], position["head"]
    if size and head_of(path, size) != wanted:
        msg = (
            f"source {path}: its first {size} bytes are not those that it had when the checkpoint was taken. "
            "It was replaced: put the old file back, or start without the checkpoint to read the new one."
        )
        raise ConnectorError(msg)
