"""Files that must survive a crash: checksums, fsync, and the error for a disk that takes no more."""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from pathlib import Path

from streamml.errors import CheckpointError

__all__ = ["Checksums", "free_bytes", "sync_folder", "write_error"]

_CHUNK = 1 << 20
_IMMUTABLE = ".sst"  # RocksDB never changes such a file after its flush, nor uses its name again


class Checksums:
    """CRC-32 of files, remembered within this process for the immutable ones.

    So the cost of a checkpoint grows with what changed since the last one, and not with the state.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], int] = {}
        self.read_bytes = 0
        """Bytes read so far."""

    def of(self, path: Path, *, sync: bool = False, fresh: bool = False) -> tuple[int, int]:
        """Return size and CRC-32 of a file.

        Args:
            path: the file.
            sync: force the file to disk as well, unless it is known.
            fresh: read the file even if it is known.
        """
        with path.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            key = (path.name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            known = None if fresh else self._known.get(key)
            if known is not None:
                return stat.st_size, known
            crc = 0
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
                self.read_bytes += len(chunk)
            if sync:
                os.fsync(file.fileno())
        if path.suffix == _IMMUTABLE:
            self._known[key] = crc
        return stat.st_size, crc

    def forget_all_but(self, names: set[str]) -> None:
        """Drop what is remembered of files with other names, which compaction has removed since."""
        self._known = {key: crc for key, crc in self._known.items() if key[0] in names}


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder that may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_error(folder: Path, cause: Exception, *, doing: str, more: str = "") -> CheckpointError:
    """Build the error for a checkpoint that could not be written.

    >>> print(write_error(Path("/"), OSError(28, "No space left on device"), doing="checkpoint 7"))
    checkpoint 7: folder / could not be written: [Errno 28] No space left on device. ... bytes are free there. Earlier
    checkpoints are untouched. Free space on that disk, keep fewer checkpoints, or name a folder on another disk.
    """
    code = getattr(cause, "errno", None)
    if "No space left" in str(cause) or code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        advice = "Free space on that disk, keep fewer checkpoints, or name a folder on another disk."
    elif "exists" in str(cause):
        advice = "Name a folder that does not exist yet."
    else:
        advice = "Make the folder writable for this user, or name another one."
    msg = (
        f"{doing}: folder {folder} could not be written: {cause}. {free_bytes(folder)} bytes "
        f"are free there. Earlier checkpoints are untouched. {advice}{more and ' ' + more}"
    )
    return CheckpointError(msg)
