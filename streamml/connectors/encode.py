"""Output records: from the rows of a batch to JSON, by columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from streamml.errors import RecordError
from streamml.records import Batch, as_dict

__all__ = ["Encoder", "output_columns", "output_rows"]

Columns = dict[str, list[Any]]

_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class Encoder:
    """Writes rows as JSON objects; built once for a sink, for it keeps what it made for each tuple of fields.

    A record starts with `id`, the id of the event. Where a field of that name is written, the event's id is
    written as `_id` (a field of that name too would win). `key` and `timestamp` may be written like fields; a field
    of the same name in the event wins. NaN and infinity become null, NumPy scalars and arrays numbers and lists.

    >>> values, envelope = [{"x": 1}, {"x": 2}], {"watermarks": [0, 0], "watermark": 0}
    >>> batch = Batch(values, times=[5, 6], ids=["a", "b"], keys=["k", "k"], **envelope)
    >>> Encoder().encode_rows(batch, ["key", "x"])
    [b'{"id":"a","key":"k","x":1}', b'{"id":"b","key":"k","x":2}']
    """

    def __init__(self) -> None:
        self._json = msgspec.json.Encoder(enc_hook=to_plain)
        self._makers: dict[tuple[str, ...], Callable[..., Any]] = {}

    def encode_lines(self, batch: Batch, fields: Sequence[str] | None) -> bytes:
        """Return the rows as JSON lines; `fields` as for `Sink.write`.

        Raises:
            RecordError: a value can't be written, or a row has no such field; `faults` says which rows.
        """
        rows = self._rows(batch, fields)
        try:
            return self._json.encode_lines(rows)
        except _FAILURES as exc:
            raise self._error(batch, fields) from exc

    def encode_rows(self, batch: Batch, fields: Sequence[str] | None) -> list[bytes]:
        """Return each row as one JSON object, without a line end.

        Raises:
            RecordError: as for `encode_lines`.
        """
        rows = self._rows(batch, fields)
        try:
            return list(map(self._json.encode, rows))
        except _FAILURES as exc:
            raise self._error(batch, fields) from exc

    def encode_records(self, records: Sequence[Mapping[str, Any]]) -> bytes:
        r"""Return plain records as JSON lines.

        Raises:
            RecordError: a value can't be written.

        >>> Encoder().encode_records([{"score": float("nan")}])
        b'{"score":null}\n'
        """
        try:
            return self._json.encode_lines([dict(record) for record in records])
        except _FAILURES as exc:
            found = self._first_fault([f"record {row}" for row in range(len(records))], records)
            raise RecordError(found or f"side output of {len(records)} records: {exc}") from exc

    def faults(self, batch: Batch, fields: Sequence[str] | None) -> dict[int, str]:
        """Return for each row that can't be written why, so that the others can be written without it.

        >>> batch = Batch([{"x": 1}, {"x": print}], times=[0, 0], ids=["a", "b"], watermarks=[0, 0], watermark=0)
        >>> list(Encoder().faults(batch, None))
        [1]
        """
        found: dict[int, str] = {}
        for row in range(len(batch)):
            one = batch.slice(row, row + 1)
            try:
                record = output_rows(one, fields)[0]
            except RecordError as exc:
                found[row] = f"event {batch.ids[row]!r}: {exc}"
                continue
            if fault := self._first_fault([f"event {batch.ids[row]!r}"], [record]):
                found[row] = fault
        return found

    def _first_fault(self, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str | None:
        for name, record in zip(names, records, strict=True):
            for field, value in record.items():
                try:
                    self._json.encode({field: value})
                except _FAILURES as exc:
                    return (
                        f"{name}, field {field!r}: wanted a value that JSON can hold, "
                        f"got {type(value).__name__}: {exc}. Convert it in a Map, or leave it out with select()."
                    )
        return None

    def _error(self, batch: Batch, fields: Sequence[str] | None) -> RecordError:
        found = self.faults(batch, fields)
        more = f" ({len(found)} such rows in a batch of {len(batch)})" if len(found) > 1 else ""
        return RecordError(next(iter(found.values()), f"a batch of {len(batch)} rows can't be written as JSON") + more)

    def _rows(self, batch: Batch, fields: Sequence[str] | None) -> list[Any]:
        columns = output_columns(batch, fields)
        if columns is None:
            return output_rows(batch, fields)
        names = tuple(columns)
        make = self._makers.get(names)
        if make is None:
            make = self._makers[names] = _maker(names)
        return list(map(make, *columns.values()))


def output_columns(batch: Batch, fields: Sequence[str] | None) -> Columns | None:
    """Return what is written of a batch by columns, the event's id first; None when its rows differ in their fields.

    Raises:
        RecordError: some row has no such field.

    >>> batch = Batch([{"x": 1, "id": 7}], times=[5], ids=["a"], watermarks=[0], watermark=0)
    >>> output_columns(batch, ["id", "timestamp"])
    {'_id': ['a'], 'id': [7], 'timestamp': [5]}
    """
    if fields is None:
        types = set(map(type, batch.values))
        if types == {type(None)}:
            own: tuple[str, ...] = ()
        elif len(types) == 1 and issubclass(struct := next(iter(types)), msgspec.Struct):
            own = struct.__struct_fields__
        else:
            return None
        columns = {name: batch.column(name) for name in dict.fromkeys((*own, *batch.fields))}
    else:
        columns = {}
        for name in fields:
            column = _select(batch, name)
            if column is not None:
                columns[name] = column
    return {"_id" if "id" in columns else "id": batch.ids, **columns}


def output_rows(batch: Batch, fields: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return what is written of a batch as one dict for each row, the event's id first.

    Raises:
        RecordError: some row has no such field.

    >>> output_rows(Batch([{"x": 1}], times=[5], ids=["a"], watermarks=[0], watermark=0), None)
    [{'id': 'a', 'x': 1}]
    """
    columns = output_columns(batch, fields)
    if columns is not None:
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = map(as_dict, batch.records())
    return [{"_id" if "id" in row else "id": id, **row} for id, row in zip(batch.ids, rows, strict=True)]


def to_plain(value: Any) -> Any:
    """Turn what msgspec does not know, NumPy's scalars and arrays, into plain values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    msg = f"a {type(value).__name__} is neither a number, text, list, dict, date nor struct"
    raise TypeError(msg)


def _select(batch: Batch, name: str) -> list[Any] | None:
    """Return a selected column; None for the event's own id, which is written in any case."""
    if name not in ("id", "key", "timestamp"):
        return batch.column(name)
    try:
        return batch.column(name)
    except RecordError:
        if name == "id":
            return None
    envelope: Iterator[Any] = iter(batch.keys if name == "key" else batch.times)
    return [as_dict(record).get(name, given) for record, given in zip(batch.records(), envelope, strict=True)]


def _maker(names: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function from a row's values to an object that is encoded with these names."""
    slots = [f"f{place}" for place in range(len(names))]
    try:
        return msgspec.defstruct(
            "Output", [(slot, Any) for slot in slots], rename=dict(zip(slots, names, strict=True)), gc=False
        )
    except ValueError:  # a name with quotes or control characters
        return lambda *values: dict(zip(names, values, strict=True))
