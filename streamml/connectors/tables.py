"""Reads one Parquet or Arrow IPC (Feather) file; its records are dicts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamml.connectors.partitions import POSITION_VERSION, check_format
from streamml.connectors.storage import HEAD_BYTES, check_head, failing, head_of
from streamml.errors import ConnectorError

__all__ = ["TableReader", "load_arrow"]

_BATCH_ROWS = 16_384


def load_arrow(where: str, module: str = "pyarrow") -> Any:
    """Import pyarrow, or a module of it, when the first file needs it.

    Raises:
        ConnectorError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        msg = f"{where}: Parquet and Arrow files need pyarrow, which is not installed: pip install 'streamml[arrow]'"
        raise ConnectorError(msg) from exc


class TableReader:
    """One file as a partition; its position is the number of the next row. Batches are read as they are needed.

    Times come as `datetime`; nanoseconds are cut to microseconds.

    Args:
        path: the file.
        name: name of the partition.
        format: `parquet` or `arrow` (the file or the stream format).
    """

    def __init__(self, path: str, name: str, format: str) -> None:
        self.name = name
        self.record = 0
        self.finished = False
        self._path = path
        self._format = format
        self._skip = 0
        self._rows: list[dict[str, Any]] = []
        self._next = 0
        self._batches: Iterator[Any] | None = None
        self._file: Any = None
        self._total: int | None = None
        self._identity: dict[str, Any] = {}

    def open(self, position: Mapping[str, Any] | None) -> None:
        """See `Reader.open`."""
        where = f"source {self._path}"
        pa = load_arrow(where)
        with failing(self._path, "open"), open(self._path, "rb") as file:
            size = file.seek(0, 2)
        head = min(size, HEAD_BYTES)
        self._identity = {"bytes": size, "head_bytes": head, "head": head_of(self._path, head)}
        if position is not None:
            check_format(self._path, position, self._format)
            check_head(self._path, position)
            if position["bytes"] != size:
                msg = (
                    f"{where}: it has {size} bytes, when the checkpoint was taken it had {position['bytes']}. "
                    "It was replaced: put the old file back, or start without the checkpoint."
                )
                raise ConnectorError(msg)
            self.record = self._skip = position["record"]
        try:
            self._batches = self._parquet() if self._format == "parquet" else self._arrow(pa)
        except (pa.ArrowException, OSError) as exc:
            raise self._damaged(exc) from exc
        self.finished = self._total is not None and self.record >= self._total

    def read(self, limit: int) -> Sequence[Any]:
        """See `Reader.read`."""
        assert self._batches is not None, "read before open"
        arrow_errors = load_arrow(self._path).ArrowException
        try:
            while self._next == len(self._rows):
                batch = next(self._batches, None)
                if batch is None:
                    self.finished = True
                    return []
                if self._skip >= batch.num_rows:
                    self._skip -= batch.num_rows
                    continue
                self._rows, self._next, self._skip = to_rows(batch.slice(self._skip)), 0, 0
        except (arrow_errors, OSError) as exc:
            raise self._damaged(exc) from exc
        rows = self._rows[self._next : self._next + limit]
        self._next += len(rows)
        self.record += len(rows)
        self.finished = self.record == self._total
        return rows

    def position(self) -> dict[str, Any]:
        """See `Reader.position`."""
        return {"version": POSITION_VERSION, "format": self._format, "record": self.record, **self._identity}

    def share(self) -> tuple[float, float] | None:
        """See `Reader.share`: rows."""
        return None if self._total is None else (self.record, self._total)

    def lag(self) -> int | None:
        """See `Reader.lag`: rows."""
        return None if self._total is None else self._total - self.record

    def close(self) -> None:
        """See `Reader.close`."""
        self._batches = None
        if self._file is not None:
            self._file.close()

    def _parquet(self) -> Iterator[Any]:
        parquet = load_arrow(self._path, "pyarrow.parquet")
        self._file = file = parquet.ParquetFile(self._path)
        self._check_names(file.schema_arrow.names)
        self._total = file.metadata.num_rows
        group, groups = 0, file.num_row_groups
        while group < groups and self._skip >= (rows := file.metadata.row_group(group).num_rows):
            self._skip -= rows
            group += 1
        batches: Iterator[Any] = file.iter_batches(_BATCH_ROWS, row_groups=list(range(group, groups)))
        return batches

    def _arrow(self, pa: Any) -> Iterator[Any]:
        self._file = pa.memory_map(self._path)
        if self._file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(self._file)
            self._check_names(reader.schema.names)
            return (reader.get_batch(number) for number in range(reader.num_record_batches))
        self._file.seek(0)
        stream = pa.ipc.open_stream(self._file)
        self._check_names(stream.schema.names)
        return iter(stream)

    def _check_names(self, names: list[str]) -> None:
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            msg = (
                f"source {self._path}: wanted columns of different names, got {doubled[0]!r} twice. Rename one of them."
            )
            raise ConnectorError(msg)

    def _damaged(self, exc: Exception) -> ConnectorError:
        text = " ".join(str(exc).split())
        return ConnectorError(
            f"source {self._path}: wanted a {self._format} file, but at row {self.record}: {text}. "
            "The file is damaged, still being written, or of another format than its name says."
        )


def to_rows(batch: Any) -> list[dict[str, Any]]:
    """Turn an Arrow record batch into dicts."""
    names = batch.schema.names
    if not names:
        return [{} for _ in range(batch.num_rows)]
    columns = [_values(column) for column in batch.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    pa = importlib.import_module("pyarrow")
    types, kind = pa.types, column.type
    texts = any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_binary))
    numbers = any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean))
    if texts or (numbers and column.null_count == 0):  # some five times faster than to_pylist
        fast: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return fast
    if types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif (types.is_time64(kind) or types.is_duration(kind)) and kind.unit == "ns":
        column = column.cast(pa.time64("us") if types.is_time64(kind) else pa.duration("us"), safe=False)
    values: list[Any] = column.to_pylist()
    return values
