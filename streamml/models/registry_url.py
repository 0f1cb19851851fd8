"""Registries at an address of fsspec: object stores such as `s3://bucket/models`, and whatever else it knows.

A record is created only if there is none of its number. That takes a store with exclusive creation, as fsspec offers it
for S3, Google Cloud Storage, Azure and `memory://`; on others there must be one writer at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from streamml.errors import ModelError
from streamml.models.bundle import Bundle
from streamml.models.manifest import MANIFEST, read_manifest
from streamml.models.registry_store import ROLLOUTS, FolderStore, Store
from streamml.models.signing import SIGNATURE

__all__ = ["UrlStore", "fetched", "open_url"]

_CLAIM = ".claim"
T = TypeVar("T")


def open_url(url: str) -> Store:
    """Return the store at an address; `file://` is a folder.

    Raises:
        ModelError: fsspec or the package for this kind of address is not installed, or the address is none.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("file", "local"):
        return FolderStore(Path(rest))
    return UrlStore(url)


class UrlStore:
    """A tree of objects at an address of fsspec.

    A version is claimed by an object of its own, then its files are written, `bundle.json` last: without it nobody sees
    the version. Versions are fetched once, into this user's cache folder, and checked file by file.

    Args:
        url: the address. Credentials and options come from where the store's own package takes them, such as the
            environment, or from fsspec's configuration (`FSSPEC_S3_ENDPOINT_URL=...`).
    """

    def __init__(self, url: str) -> None:
        self.where = _public(url)
        try:
            from fsspec.core import url_to_fs
        except ImportError as exc:
            msg = f"model registry {self.where}: fsspec is not installed; run: pip install 'streamml[fsspec]'"
            raise ModelError(msg) from exc
        try:
            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as exc:
            msg = (
                f"model registry {self.where}: fsspec can't open such an address ({exc}); install the package that it "
                "names, or use a folder"
            )
            raise ModelError(msg) from exc
        self._records: dict[str, bytes] = {}  # they never change, and each costs a round trip
        self._cache = cache_folder() / "models" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def names(self, *parts: str) -> list[str]:
        folder = self._path(*parts)
        try:
            found = self._call("be listed", lambda: self._fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []
        names = {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != folder}
        return sorted(name for name in names if name and not name.startswith("."))

    def bundles(self, name: str) -> list[str]:
        candidates = ["", *(each for each in self.names(name) if each.isdigit())]
        return [each for each in candidates if self._exists(name, each, MANIFEST)]

    def read(self, *parts: str) -> bytes:
        return bytes(self._call("be read", self._fs.cat_file, self._path(*parts)))

    def read_records(self, name: str, files: Sequence[str]) -> dict[str, bytes]:
        paths = {self._path(name, ROLLOUTS, file): file for file in files}
        if missing := [path for path in paths if path not in self._records]:
            found = self._call("be read", lambda: self._fs.cat(missing, on_error="return"))
            for path, data in found.items():
                if isinstance(data, bytes):
                    self._records[path] = data
                elif not isinstance(data, FileNotFoundError):
                    error = self._error("be read", data)
                    raise error from data
        return {file: self._records[path] for path, file in paths.items() if path in self._records}

    def create(self, data: bytes, *parts: str) -> bool:
        path = self._path(*parts)
        try:
            self._call("be written", lambda: self._fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return self.read(*parts) == data  # the store may have taken a first try whose answer was lost
        except ModelError:
            if not self._exists(*parts):
                raise
            return self.read(*parts) == data
        return True

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="streamml-version-") as folder:
            yield Path(folder)

    def publish(self, folder: Path, name: str, version: int) -> bool:
        number = str(version)
        if not self.create(uuid4().hex.encode(), name, number, _CLAIM):
            return False
        for path in sorted(folder.iterdir()):
            if path.name != MANIFEST:
                target = self._path(name, number, path.name)
                self._call("be written", lambda path=path, target=target: self._fs.put_file(str(path), target))
        return self.create((folder / MANIFEST).read_bytes(), name, number, MANIFEST)

    def fetch(self, name: str, version: str) -> Path:
        def load(file: str, target: Path) -> None:
            try:
                self._call("be read", lambda: self._fs.get_file(self._path(name, version, file), str(target)))
            except FileNotFoundError as exc:
                msg = f"model registry {self.where}: {name}/{version}/{file} is missing; restore it"
                raise ModelError(msg) from exc

        signed = self._exists(name, version, SIGNATURE)
        return fetched(self._cache / name, self.read(name, version, MANIFEST), load, (SIGNATURE,) if signed else ())

    def _path(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *filter(None, parts)])

    def _exists(self, *parts: str) -> bool:
        return bool(self._call("be read", self._fs.exists, self._path(*parts)))

    def _call(self, what: str, call: Callable[..., T], *args: Any) -> T:
        """Call the store; what goes wrong in it has a class of its own for each kind of store."""
        self._fs.invalidate_cache()  # else it answers, even for single files, from a listing of long ago
        try:
            return call(*args)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as exc:
            raise self._error(what, exc) from exc

    def _error(self, what: str, exc: Exception) -> ModelError:
        msg = (
            f"model registry {self.where}: can't {what} ({type(exc).__name__}: {exc}); nothing is half visible. "
            "Check the address, the credentials and the network"
        )
        return ModelError(msg)


def fetched(cache: Path, manifest: bytes, load: Callable[[str, Path], None], more: tuple[str, ...] = ()) -> Path:
    """Return a local folder with a bundle, fetched and checked if it is not in the cache.

    Args:
        cache: folder of the model's versions in the cache.
        manifest: the bundle's description, which says what else there is.
        load: writes a file of the bundle to a path.
        more: files beside those that the description names.

    Raises:
        ModelError: a file is not what the description says, or the cache can't be written.
    """
    folder = cache / hashlib.sha256(manifest).hexdigest()[:32]
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=cache) as scratch:
            made = Path(scratch) / "bundle"
            made.mkdir()
            (made / MANIFEST).write_bytes(manifest)
            said = read_manifest(made)
            files = {said.model, *said.files, *more}
            if odd := [file for file in files if Path(file).name != file]:
                msg = f"model {said.name}:{said.version}: its description names {odd[0]!r}, which is no file beside it"
                raise ModelError(msg)
            for file in files:
                load(file, made / file)
            Bundle(made, said).check_files()
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
                shutil.rmtree(made)
    except OSError as exc:
        msg = f"model cache {cache}: can't be filled ({exc}); free some space, or name another folder: STREAMML_CACHE"
        raise ModelError(msg) from exc
    return folder


def cache_folder() -> Path:
    """Return this user's cache folder: `STREAMML_CACHE`, or `streamml` where the system keeps caches."""
    if given := os.environ.get("STREAMML_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "streamml"


def _public(url: str) -> str:
    """Return an address without user and password.

    >>> _public("ftp://me:secret@host/models")
    'ftp://host/models'
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
