"""Files, folders and globs as sources: one partition for each file."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from streamml.connectors.line_reader import BLOCK_BYTES, LineReader
from streamml.connectors.lines import MAX_RECORD_BYTES
from streamml.connectors.partitions import PartitionedSource, Reader
from streamml.connectors.storage import failing
from streamml.connectors.tables import TableReader
from streamml.errors import ConnectorError

__all__ = ["FORMATS", "FileSource", "file_format"]

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".ndjson.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""What the end of a file's name says about what is in it."""

_ALL_BLOCKS = 64 * BLOCK_BYTES
_SMALLEST_BLOCK = 64 * 1024


class FileSource(PartitionedSource):
    r"""Reads a file, all files of a folder, or those that a glob finds, in sorted order.

    A partition is named by its file, relative to the folder of the glob.

    Args:
        path: a file, a folder, or a glob (`events/*.jsonl`, `events/**/*.parquet`).
        format: `jsonl`, `jsonl.gz`, `parquet` or `arrow`; by the name of each file if not given.
        follow: wait for more at the end of the files, for plain JSON lines only. New files are not looked for.
        max_record_bytes: a longer line is rejected.
        block_bytes: how much is read at once from a file; less when there are many files.

    >>> import tempfile, pathlib
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = pathlib.Path(folder.name, "events.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    >>> source = FileSource(f"{folder.name}/*.jsonl")
    >>> source.open(None)
    >>> source.poll(10, 0.0).payloads, source.finished
    ([b'{"x": 1}', b'{"x": 2}'], True)
    >>> source.close()
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str,
        *,
        format: str | None = None,
        follow: bool = False,
        max_record_bytes: int = MAX_RECORD_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if max_record_bytes < 1 or block_bytes < 1:
            msg = (
                f"source {path}: wanted max_record_bytes and block_bytes over 0, got {max_record_bytes}, {block_bytes}"
            )
            raise ConnectorError(msg)
        if format is not None and format not in FORMATS.values():
            known = ", ".join(sorted(set(FORMATS.values())))
            msg = f"source {path}: there is no format {format!r}. Known: {known}."
            raise ConnectorError(msg)
        super().__init__(path, self._make_readers)
        self._path = path
        self._format = format
        self._follow = follow
        self._max = max_record_bytes
        self._block = block_bytes

    @property
    def lag_unit(self) -> str:
        """See `Source`: bytes for files of lines, events for tables."""
        return "bytes" if any(isinstance(reader, LineReader) for reader in self._readers) else "events"

    def _make_readers(self) -> Sequence[Reader]:
        found = _find(self._path)
        block = min(self._block, max(_SMALLEST_BLOCK, _ALL_BLOCKS // len(found)))
        readers: list[Reader] = []
        for name, path in found:
            format = self._format or file_format(path, "source")
            if self._follow and format != "jsonl":
                msg = f"source {path}: only plain JSON lines can be followed, this is {format}. Leave follow out."
                raise ConnectorError(msg)
            if format in ("jsonl", "jsonl.gz"):
                packed = format == "jsonl.gz"
                readers.append(
                    LineReader(
                        path, name, packed=packed, follow=self._follow, max_record_bytes=self._max, block_bytes=block
                    )
                )
            else:
                readers.append(TableReader(path, name, format))
        return readers


def file_format(path: str, where: str) -> str:
    """Return the format that a file's name tells.

    Raises:
        ConnectorError: it tells none.

    >>> file_format("scores.jsonl.gz", "sink")
    'jsonl.gz'
    """
    name = os.path.basename(path.rstrip("/")).lower()
    for suffix in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(suffix):
            return FORMATS[suffix]
    msg = (
        f"{where} {path}: the name does not tell what is in the file. "
        f"Name it with one of {', '.join(FORMATS)}, or give format=."
    )
    raise ConnectorError(msg)


def _find(path: str) -> list[tuple[str, str]]:
    """Return (partition, path) of each file, sorted."""
    if os.path.isdir(path):
        folder = path
        with failing(path, "list"):
            names = sorted(os.listdir(path))
        paths = [os.path.join(path, name) for name in names if not name.startswith((".", "_"))]
        paths = [file for file in paths if os.path.isfile(file)]
    elif os.path.exists(path) or not glob.has_magic(path):
        return [(os.path.basename(path), path)]
    else:
        folder = path
        while glob.has_magic(folder):
            folder = os.path.dirname(folder)
        paths = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
    if not paths:
        msg = (
            f"source {path}: no file is there. Relative paths start at {os.getcwd()}; "
            "in a shell, quote a glob so that it comes here as it is."
        )
        raise ConnectorError(msg)
    return [(os.path.relpath(file, folder or "."), file) for file in paths]
