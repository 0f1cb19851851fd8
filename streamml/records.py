"""The record envelope: `Record` is one row, `Batch` the same rows by columns.

Operators that work event by event see a `Record`; vectorised ones see a `Batch`. Columns are plain Python lists of
equal length, so that a row's value is the same object in both forms and nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Self

import msgspec

from streamml.errors import RecordError, suggest

__all__ = ["Batch", "Record", "as_dict"]


class Record:
    """One event with its envelope.

    Fields are read as attributes, or as `event["name"]`: derived ones first, then the value's own. A field that has
    the name of one of these attributes is read as `event["name"]`.

    Attributes:
        value: the decoded event (an `Event`, a dict, or whatever a `Map` made); None for a window's result.
        key: the key of the current keyed stage, None before the first `key_by`.
        timestamp: event time, milliseconds since the epoch.
        id: deterministic identity; the same input gives the same id in a replay.
        fields: derived fields, added by operators.
        tag: name of the source that it came from.
        trace: W3C trace context (`traceparent`) if the source carried one.
        row: its row in the batch that it came from, -1 if a timer made it.
    """

    __slots__ = ("fields", "id", "key", "row", "tag", "timestamp", "trace", "value")

    def __init__(
        self,
        value: Any,
        *,
        key: Any = None,
        timestamp: int = 0,
        id: str = "",
        fields: dict[str, Any] | None = None,
        tag: str = "",
        trace: str | None = None,
        row: int = -1,
    ) -> None:
        self.value = value
        self.key = key
        self.timestamp = timestamp
        self.id = id
        self.fields = fields if fields is not None else {}
        self.tag = tag
        self.trace = trace
        self.row = row

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            pass
        value = self.value
        try:
            return value[name] if isinstance(value, dict) else getattr(value, name)
        except (KeyError, AttributeError):
            msg = f"event {self.id!r} has no field {name!r}. {suggest(name, as_dict(self))}"
            raise AttributeError(msg) from None

    def __getitem__(self, name: str) -> Any:
        """Return a field, also one that has the name of an attribute of the envelope (such as `value`)."""
        if name in self.fields:
            return self.fields[name]
        value = self.value
        try:
            return value[name] if isinstance(value, dict) else getattr(value, name)
        except (KeyError, AttributeError):
            return getattr(self, name)

    def __repr__(self) -> str:
        return f"Record(id={self.id!r}, key={self.key!r}, timestamp={self.timestamp}, {as_dict(self)})"

    def with_fields(self, **fields: Any) -> Self:
        """Return a copy with derived fields added or replaced; the event itself is never changed.

        >>> Record({"x": 1}, id="a").with_fields(y=2).y
        2
        """
        return self._copy(self.value, {**self.fields, **fields})

    def with_value(self, value: Any) -> Self:
        """Return a copy that carries another value and no derived field."""
        return self._copy(value, {})

    def _copy(self, value: Any, fields: dict[str, Any]) -> Self:
        return type(self)(
            value,
            key=self.key,
            timestamp=self.timestamp,
            id=self.id,
            fields=fields,
            tag=self.tag,
            trace=self.trace,
            row=self.row,
        )


def as_dict(record: Record) -> dict[str, Any]:
    """Return all fields of a record, derived ones over the value's own.

    >>> as_dict(Record({"x": 1}, fields={"y": 2}))
    {'x': 1, 'y': 2}
    """
    value = record.value
    if value is None:
        return dict(record.fields)
    if isinstance(value, dict):
        return {**value, **record.fields}
    if isinstance(value, msgspec.Struct):
        return {**{name: getattr(value, name) for name in value.__struct_fields__}, **record.fields}
    return {"value": value, **record.fields}


class Batch:
    """A micro-batch of rows by columns, in the order of arrival.

    Attributes:
        values, keys, times, ids, tags, traces: columns of the envelope, see `Record`.
        fields: derived columns by name.
        watermarks: for each row the watermark in force when it arrived, never falling; what the row is judged late by.
        watermark: the watermark after the last row.
        entries: for each row the state entry of its key (only inside a keyed stage).
    """

    __slots__ = ("entries", "fields", "ids", "keys", "tags", "times", "traces", "values", "watermark", "watermarks")

    def __init__(
        self,
        values: list[Any],
        *,
        times: list[int],
        ids: list[str],
        watermarks: list[int],
        watermark: int,
        keys: list[Any] | None = None,
        tags: list[str] | None = None,
        traces: list[str | None] | None = None,
        fields: dict[str, list[Any]] | None = None,
        entries: list[Any] | None = None,
    ) -> None:
        self.values = values
        self.times = times
        self.ids = ids
        self.watermarks = watermarks
        self.watermark = watermark
        self.keys = keys if keys is not None else [None] * len(values)
        self.tags = tags
        self.traces = traces
        self.fields = fields if fields is not None else {}
        self.entries = entries

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> list[Any]:
        """Return one field of every row, derived or the value's own.

        Raises:
            RecordError: some row has no such field.
        """
        column = self.fields.get(name)
        if column is not None:
            return column
        values = self.values
        try:
            if values and isinstance(values[0], dict):
                return list(map(itemgetter(name), values))
            return list(map(attrgetter(name), values))
        except (AttributeError, KeyError, TypeError) as exc:
            known = set(self.fields)
            if values and isinstance(values[0], msgspec.Struct):
                known |= set(values[0].__struct_fields__)
            msg = f"a batch of {len(values)} events has no field {name!r} in every row. {suggest(name, known)}"
            raise RecordError(msg) from exc

    def take(self, rows: Sequence[int]) -> Batch:
        """Return the batch of these rows, in this order."""
        if not rows:
            return Batch([], times=[], ids=[], watermarks=[], watermark=self.watermark, entries=[])
        if len(rows) == 1:
            pick: Any = lambda column, row=rows[0]: [column[row]]  # noqa: E731
        else:
            getter = itemgetter(*rows)
            pick = lambda column: list(getter(column))  # noqa: E731
        return Batch(
            pick(self.values),
            times=pick(self.times),
            ids=pick(self.ids),
            watermarks=pick(self.watermarks),
            watermark=self.watermark,
            keys=pick(self.keys),
            tags=None if self.tags is None else pick(self.tags),
            traces=None if self.traces is None else pick(self.traces),
            fields={name: pick(column) for name, column in self.fields.items()},
            entries=None if self.entries is None else pick(self.entries),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Return the batch of the rows from `start` up to `stop`."""
        if start == 0 and stop >= len(self.values):
            return self
        cut = slice(start, stop)
        return Batch(
            self.values[cut],
            times=self.times[cut],
            ids=self.ids[cut],
            watermarks=self.watermarks[cut],
            watermark=self.watermark,
            keys=self.keys[cut],
            tags=None if self.tags is None else self.tags[cut],
            traces=None if self.traces is None else self.traces[cut],
            fields={name: column[cut] for name, column in self.fields.items()},
            entries=None if self.entries is None else self.entries[cut],
        )

    def with_fields(self, columns: Mapping[str, list[Any]]) -> Batch:
        """Return the same rows with derived columns added or replaced."""
        return Batch(
            self.values,
            times=self.times,
            ids=self.ids,
            watermarks=self.watermarks,
            watermark=self.watermark,
            keys=self.keys,
            tags=self.tags,
            traces=self.traces,
            fields={**self.fields, **columns},
            entries=self.entries,
        )

    def record(self, row: int) -> Record:
        """Return one row as a `Record`."""
        record = Record.__new__(Record)
        record.value = self.values[row]
        record.key = self.keys[row]
        record.timestamp = self.times[row]
        record.id = self.ids[row]
        record.fields = {name: column[row] for name, column in self.fields.items()} if self.fields else {}
        record.tag = "" if self.tags is None else self.tags[row]
        record.trace = None if self.traces is None else self.traces[row]
        record.row = row
        return record

    def records(self) -> list[Record]:
        """Return all rows as records."""
        return [self.record(row) for row in range(len(self.values))]

    @classmethod
    def of(
        cls, records: Sequence[Record], watermarks: list[int], watermark: int, entries: list[Any] | None = None
    ) -> Batch:
        """Build a batch from records; a derived field that some rows lack is None in them."""
        names: dict[str, None] = {}
        for record in records:
            names.update(dict.fromkeys(record.fields))
        return cls(
            [r.value for r in records],
            times=[r.timestamp for r in records],
            ids=[r.id for r in records],
            watermarks=watermarks,
            watermark=watermark,
            keys=[r.key for r in records],
            tags=[r.tag for r in records] if any(r.tag for r in records) else None,
            traces=[r.trace for r in records] if any(r.trace for r in records) else None,
            fields={name: [r.fields.get(name) for r in records] for name in names},
            entries=entries,
        )

    @classmethod
    def concat(cls, batches: Iterable[Batch]) -> Batch | None:
        """Join batches in order; None if there is nothing to join."""
        parts = [b for b in batches if len(b)]
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        names = dict.fromkeys(name for part in parts for name in part.fields)
        joined = cls(
            [value for part in parts for value in part.values],
            times=[time for part in parts for time in part.times],
            ids=[id for part in parts for id in part.ids],
            watermarks=[watermark for part in parts for watermark in part.watermarks],
            watermark=parts[-1].watermark,
            keys=[key for part in parts for key in part.keys],
            fields={name: [v for part in parts for v in part.fields.get(name) or [None] * len(part)] for name in names},
        )
        if any(part.tags for part in parts):
            joined.tags = [tag for part in parts for tag in part.tags or [""] * len(part)]
        if any(part.traces for part in parts):
            joined.traces = [trace for part in parts for trace in part.traces or [None] * len(part)]
        if all(part.entries is not None for part in parts):
            joined.entries = [entry for part in parts for entry in part.entries or ()]
        return joined
