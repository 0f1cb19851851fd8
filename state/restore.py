"""Make the folder of a live store from a checkpoint."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from streamml.errors import StateError
from streamml.state.durable import free_bytes

__all__ = ["restore_files"]

_STORE_FILE = re.compile(
    r"\d+\.(sst|log|blob|dbtmp)|(MANIFEST|OPTIONS)-\d+(\.dbtmp)?|LOG(\.old\.\d+)?"
    r"|CURRENT|IDENTITY|LOCK|rocksdict-config\.json|rows\.bin"
)


def restore_files(checkpoint: Path, live: Path) -> None:
    """Make the folder of a live store from the `db` folder of a checkpoint, which is never written to.

    Immutable files are linked, or copied where the disk can't link; the others are copied. What a store left in
    `live` is removed first; a store of this process that is open there must be closed before.

    Raises:
        StateError: there is no checkpoint, a process still holds `live`, it holds files of something else, or the
            disk refuses.
    """
    if not checkpoint.is_dir():
        msg = f"restore into {live}: wanted the db folder of a checkpoint, and there is no {checkpoint}."
        raise StateError(msg)
    try:
        if live.exists():
            clear(live)
        live.mkdir(parents=True, exist_ok=True)
        for source in sorted(checkpoint.iterdir()):
            if source.suffix == ".sst":
                _link(source, live / source.name)
            else:
                shutil.copyfile(source, live / source.name)
    except OSError as exc:
        msg = (
            f"restore of {checkpoint} into {live}: {exc}. {free_bytes(live)} bytes are free there. "
            "Remove the cause, or name another folder for the live state, and start again."
        )
        raise StateError(msg) from exc


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links; a disk that is full or read-only refuses the copy as well
        shutil.copyfile(source, target)


def clear(live: Path) -> None:
    """Remove what a store left, unless it is in use or not a store's."""
    paths = sorted(live.iterdir())
    strange = [path.name for path in paths if not _STORE_FILE.fullmatch(path.name)]
    if strange:
        msg = (
            f"restore into {live}: wanted an empty folder or a store's left-over, got {', '.join(strange[:5])}. "
            "Nothing was removed. Name another folder for the live state."
        )
        raise StateError(msg)
    lock = live / "LOCK"
    if lock.exists():
        with lock.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                msg = f"restore into {live}: another process has this store open. Stop it, or name another folder."
                raise StateError(msg) from exc
    for path in paths:
        path.unlink()
