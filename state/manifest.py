"""The list of the files of one checkpoint, which makes a torn or damaged one recognisable."""

from __future__ import annotations

import errno
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamml.errors import CheckpointError
from streamml.state.durable import Checksums, sync_folder

__all__ = ["FORMAT", "NAME", "Manifest", "ManifestError", "read_manifest", "write_manifest"]

NAME = "MANIFEST.json"
FORMAT = 1
"""Version of the manifest. Every later one keeps `format` and `checksum`, so that an older library can refuse it."""

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


class ManifestError(CheckpointError):
    """Raised for a checkpoint that is not whole (`newer` is False) or that a newer version wrote (`newer` is True)."""

    def __init__(self, problem: str, *, newer: bool = False) -> None:
        super().__init__(problem)
        self.newer = newer


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    number: int
    created_ms: int
    data: dict[str, Any]
    files: dict[str, tuple[int, int]]
    """Size in bytes and CRC-32 of each file by its path in the checkpoint folder."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())


def write_manifest(
    folder: Path, number: int, created_ms: int, data: dict[str, Any], checksums: Checksums, *, sync: bool
) -> Manifest:
    """List the files of a folder in its manifest; force files, manifest and folders to disk if `sync`."""
    files = {name: checksums.of(folder / name, sync=sync) for name in _names(folder)}
    body = {
        "format": FORMAT,
        "number": number,
        "created_ms": created_ms,
        "data": data,
        "files": {name: {"size": size, "crc32": f"{crc:08x}"} for name, (size, crc) in files.items()},
    }
    try:
        body = json.loads(_canonical(body))
    except (TypeError, ValueError) as exc:
        msg = f"checkpoint {number}: wanted a manifest of plain JSON values, got one that JSON can't hold: {exc}"
        raise CheckpointError(msg) from exc
    text = json.dumps({**body, "checksum": _checksum(body)}, indent=1)
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if sync:
        for path, _, _ in os.walk(folder):
            sync_folder(Path(path))
    checksums.forget_all_but({Path(name).name for name in files})
    return Manifest(number, created_ms, body["data"], files)


def read_manifest(folder: Path, number: int, checksums: Checksums, *, contents: bool = True) -> Manifest:
    """Read the manifest of a checkpoint and check every file against it.

    Args:
        folder: the checkpoint.
        number: its number by its name.
        checksums: where what is read is remembered; every file is read all the same.
        contents: check the bytes of the files, not only their sizes.

    Raises:
        ManifestError: something is missing, damaged or newer.
        OSError: the files can't be read for a reason that says nothing about them.
    """
    try:
        body = _body(folder)
        manifest = Manifest(
            body["number"],
            body["created_ms"],
            body["data"],
            {name: (entry["size"], int(entry["crc32"], 16)) for name, entry in body["files"].items()},
        )
        if manifest.number != number:
            msg = f"{NAME} is of checkpoint {manifest.number}"
            raise ManifestError(msg)
        if odd := set(_names(folder)) ^ set(manifest.files):
            which = sorted(odd)[0]
            msg = f"{which} is missing" if which in manifest.files else f"{which} is not in {NAME}: was it opened here?"
            raise ManifestError(msg)
        for name, (size, crc) in manifest.files.items():
            found = (folder / name).stat().st_size
            if found != size:
                msg = f"{name} has {found} bytes instead of {size}"
                raise ManifestError(msg)
            if contents and checksums.of(folder / name, fresh=True) != (size, crc):
                msg = f"the checksum of {name} does not fit its content"
                raise ManifestError(msg)
    except OSError as exc:
        if exc.errno not in _DAMAGE:
            raise
        msg = f"it can't be read: {exc}"
        raise ManifestError(msg) from exc
    return manifest


def _body(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if not path.exists():
        msg = f"{NAME} is missing"
        raise ManifestError(msg)
    try:
        body = json.loads(path.read_bytes())
    except ValueError as exc:
        msg = f"{NAME} is not whole: {exc}"
        raise ManifestError(msg) from exc
    if not isinstance(body, dict) or body.pop("checksum", None) != _checksum(body):
        msg = f"the checksum of {NAME} does not fit its content"
        raise ManifestError(msg)
    version = body.get("format")
    if not isinstance(version, int) or version != FORMAT:
        msg = f"{NAME} has format {version}, and this version of streamml reads format {FORMAT}"
        raise ManifestError(msg, newer=isinstance(version, int) and version > FORMAT)
    return body


def _names(folder: Path) -> list[str]:
    """Return the paths of all files under a folder, without the manifest."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if name != NAME)


def _canonical(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(body: object) -> str:
    return f"{zlib.crc32(_canonical(body)):08x}"
