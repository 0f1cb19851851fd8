"""Parquet and Arrow files: a folder that gets new parts at each commit."""

from __future__ import annotations

import datetime
import decimal
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamml.connectors.encode import output_columns, output_rows, to_plain
from streamml.connectors.storage import Guard, Step, failing, lock, sync_folder
from streamml.connectors.tables import load_arrow
from streamml.errors import ConnectorError, RecordError
from streamml.ports import FollowingSink
from streamml.records import Batch

__all__ = ["PartsSink"]

_VERSION = 1
_GROUP_ROWS = 65_536
_KNOWN = (bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)


class PartsSink(FollowingSink):
    """Writes Parquet or Arrow IPC files named `part-00000000.parquet` and so on into a folder.

    Rows go to `.pending-part-...`; `prepare` ends and syncs these files, `commit` renames them. A part has one schema,
    inferred from its values; rows that do not fit it begin another part. NaN stays NaN. If an older checkpoint than
    the newest is restored, because that is damaged, `open` removes the parts that came after it: they come again.

    Args:
        path: the folder; it is made if it is not there.
        format: `parquet` or `arrow`.
        overwrite: remove the parts that are there when a job starts afresh; without it, they are refused.
        on_step: called with the name of each durable step after it was made.
        group_rows: how many rows are held and then written as one row group.
    """

    def __init__(
        self,
        path: str,
        format: str,
        *,
        overwrite: bool = False,
        on_step: Step | None = None,
        group_rows: int = _GROUP_ROWS,
    ) -> None:
        self._path = path
        self._format = format
        self._overwrite = overwrite
        self._step = on_step or (lambda name: None)
        self._group_rows = group_rows
        self._final = re.compile(rf"part-(\d{{8,}})\.{format}")
        self._next = 0  # number of the next part
        self._tables: list[Any] = []
        self._rows = 0
        self._writer: Any = None
        self._schema: Any = None
        self._ended: list[str] = []  # parts written and not committed
        self._prepared: tuple[int, list[str]] | None = None
        self._lock = -1
        self._durably = Guard(f"sink {path}")

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`.

        Raises:
            ConnectorError: the folder is not what the checkpoint left, or a fresh job would add to it.
        """
        where = f"sink {self._path}"
        self._pa = load_arrow(where)
        with failing(where, "open"):
            os.makedirs(self._path, exist_ok=True)
            self._lock = os.open(os.path.join(self._path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            lock(self._lock, self._path)
            if prepared is None:
                self._start_empty()
            else:
                self._recover(prepared)
            for name in os.listdir(self._path):
                if name.startswith(".pending-"):
                    os.unlink(os.path.join(self._path, name))
            self._sync()
            self._step("opened")

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`.

        Raises:
            RecordError: a value does not fit into an Arrow column; then nothing of the batch was written.
        """
        columns = output_columns(batch, fields)
        self._add(columns if columns is not None else _by_columns(output_rows(batch, fields)), len(batch))

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`; a field that a record does not have is null."""
        self._add(_by_columns(records), len(records))

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        with self._durably("write the pending parts of"):
            self._flush()
            self._end_part()
            self._sync()
            self._step("pending synced")
        self._prepared = (checkpoint, list(self._ended))
        return {
            "version": _VERSION,
            "format": self._format,
            "checkpoint": checkpoint,
            "parts": list(self._ended),
            "next": self._next,
        }

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`; does nothing for a checkpoint that is not the one prepared last."""
        if self._prepared is None or self._prepared[0] != checkpoint:
            return
        parts = self._prepared[1]
        with self._durably("commit to"):
            self._rename(parts)
        del self._ended[: len(parts)]
        self._prepared = None

    def close(self) -> None:
        """See `Sink.close`; keeps the pending parts that a stored checkpoint may still need."""
        if self._writer is not None:
            self._end_part()
        kept = self._prepared[1] if self._prepared is not None else []
        with failing(f"sink {self._path}", "close"):
            for name in self._ended:
                if name not in kept:
                    os.unlink(self._at(f".pending-{name}"))
            self._ended.clear()
        self._release()

    def __del__(self) -> None:  # a sink that was dropped, not closed, as in a simulated crash
        self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _at(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _sync(self) -> None:
        sync_folder(self._at("part"))

    def _numbers(self) -> dict[int, str]:
        found = ((self._final.fullmatch(name), name) for name in os.listdir(self._path))
        return {int(match[1]): name for match, name in found if match}

    def _start_empty(self) -> None:
        there = self._numbers()
        if there and not self._overwrite:
            msg = (
                f"sink {self._path}: a fresh job wants an empty or new folder, this one has {len(there)} parts. "
                "Name another folder, remove the parts, or allow them to be removed with overwrite=True."
            )
            raise ConnectorError(msg)
        for name in there.values():
            os.unlink(self._at(name))

    def _recover(self, prepared: Mapping[str, Any]) -> None:
        if prepared.get("version") != _VERSION or prepared.get("format") != self._format:
            msg = (
                f"sink {self._path}: wanted a checkpoint of a {self._format} sink, version {_VERSION}, "
                f"got {dict(prepared)}. Restore with the sink that it was taken with, or start without the checkpoint."
            )
            raise ConnectorError(msg)
        self._next = prepared["next"]
        lost = [n for n in prepared["parts"] if not any(os.path.exists(self._at(p)) for p in (n, f".pending-{n}"))]
        if lost:
            msg = (
                f"sink {self._path}: the folder does not fit the restored checkpoint {prepared['checkpoint']}: "
                f"its part {lost[0]} is missing. Restore the newest checkpoint, or put the part back."
            )
            raise ConnectorError(msg)
        self._rename(prepared["parts"])
        # Newest first, so that a crash in between leaves a row of parts without a gap.
        for number, name in sorted(self._numbers().items(), reverse=True):
            if number >= self._next:
                os.unlink(self._at(name))
                self._step("later part removed")

    def _rename(self, parts: Sequence[str]) -> None:
        for name in parts:
            if os.path.exists(self._at(f".pending-{name}")):
                os.rename(self._at(f".pending-{name}"), self._at(name))
                self._step("part renamed")
        if parts:
            self._sync()
            self._step("committed")

    def _add(self, columns: dict[str, list[Any]], rows: int) -> None:
        if not rows:
            return
        self._tables.append(self._pa.table({name: self._array(name, column) for name, column in columns.items()}))
        self._rows += rows
        if self._rows >= self._group_rows:
            with self._durably("write the pending parts of"):
                self._flush()

    def _array(self, name: str, column: list[Any]) -> Any:
        wrong = (self._pa.ArrowException, TypeError, ValueError, OverflowError)
        try:
            return self._pa.array(column)
        except wrong:
            pass
        try:  # structs, NumPy arrays and the like
            return self._pa.array(msgspec.to_builtins(column, enc_hook=to_plain, builtin_types=_KNOWN))
        except wrong as exc:
            msg = (
                f"field {name!r}: wanted values of one type that Arrow knows, got "
                f"{', '.join(sorted({type(value).__name__ for value in column}))}: {' '.join(str(exc).split())}. "
                "Convert it in a Map, leave it out with select(), or write JSON lines."
            )
            raise RecordError(msg) from exc

    def _flush(self) -> None:
        tables, self._tables, self._rows = self._tables, [], 0
        if not tables:
            return
        try:
            joined = [self._pa.concat_tables(tables, promote_options="permissive")]
        except (self._pa.ArrowException, ValueError):
            joined = tables
        for table in joined:
            fitting = self._fit(table.combine_chunks())
            if self._writer is None:
                self._begin_part(fitting.schema)
            self._writer.write_table(fitting)

    def _fit(self, table: Any) -> Any:
        if self._writer is None or table.schema == self._schema:
            return table
        try:
            return table.cast(self._schema)
        except (self._pa.ArrowException, ValueError):
            self._end_part()
            return table

    def _begin_part(self, schema: Any) -> None:
        name = f"part-{self._next:08d}.{self._format}"
        self._next += 1
        self._ended.append(name)
        self._schema = schema
        path = self._at(f".pending-{name}")
        if self._format == "parquet":
            self._writer = load_arrow(path, "pyarrow.parquet").ParquetWriter(path, schema, compression="zstd")
        else:
            self._writer = self._pa.ipc.new_file(path, schema)
        self._step("part begun")

    def _end_part(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        self._step("part written")
        part = os.open(self._at(f".pending-{self._ended[-1]}"), os.O_RDONLY)
        try:
            os.fsync(part)
        finally:
            os.close(part)


def _by_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}
