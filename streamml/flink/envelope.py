"""Rows on their way from one stage to the next: what a batch knows of a row, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streamml.connectors.encode import to_plain
from streamml.events import Event
from streamml.pickling import dumps, loads
from streamml.records import Batch
from streamml.times import MIN_TIME

__all__ = ["Envelopes"]

_PLAIN, _PICKLED = -1, -2
_Parts = tuple[int, msgspec.Raw, dict[str, Any], int, str, str, str | None, Any, int]


class Envelopes:
    """Encodes and decodes rows between two stages.

    A value is an event of one of the schemas, or plain data (dicts, lists, numbers, text, None; a tuple comes out as
    a list). What MessagePack
    can't hold is pickled, which is slower.

    Args:
        schemas: the event types of the pipeline's sources.
    """

    def __init__(self, schemas: Sequence[type[Event]]) -> None:
        self._number = {schema: number for number, schema in enumerate(schemas)}
        self._values = [msgspec.msgpack.Decoder(schema).decode for schema in schemas]
        self._plain = msgspec.msgpack.Decoder().decode
        self._encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode
        self._decode = msgspec.msgpack.Decoder(_Parts).decode

    def encode(self, batch: Batch) -> list[bytes]:
        """Return each row as bytes."""
        number, encode = self._number, self._encode
        names = list(batch.fields)
        columns = [batch.fields[name] for name in names]
        tags = batch.tags or [""] * len(batch)
        traces = batch.traces or [None] * len(batch)
        rows: list[bytes] = []
        for row, value in enumerate(batch.values):
            fields = {name: column[row] for name, column in zip(names, columns, strict=True)}
            envelope = (
                batch.times[row],
                batch.ids[row],
                tags[row],
                traces[row],
                batch.keys[row],
                batch.watermarks[row],
            )
            try:
                rows.append(encode((number.get(type(value), _PLAIN), value, fields, *envelope)))
            except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
                rows.append(encode((_PICKLED, dumps((value, fields)), {}, *envelope)))
        return rows

    def decode(self, payloads: Sequence[bytes], watermarks: Sequence[int], *, carried: bool = False) -> Batch:
        """Return the batch of the rows.

        Args:
            payloads: what `encode` returned.
            watermarks: the watermark before each row.
            carried: that which a row carries counts too; for rows in the order of the input.
        """
        rows = list(map(self._decode, payloads))
        values: list[Any] = []
        fields: list[dict[str, Any]] = []
        for number, raw, own, *_ in rows:
            if number == _PICKLED:
                value, own = loads(self._plain(raw))
            else:
                value = self._plain(raw) if number == _PLAIN else self._values[number](raw)
            values.append(value)
            fields.append(own)
        names = list(dict.fromkeys(name for own in fields for name in own))
        marks = list(watermarks)
        if carried:
            marks = list(map(max, marks, [row[8] for row in rows]))
        keys = [tuple(row[7]) if isinstance(row[7], list) else row[7] for row in rows]
        return Batch(
            values,
            times=[row[3] for row in rows],
            ids=[row[4] for row in rows],
            watermarks=marks,
            watermark=max(marks, default=MIN_TIME),
            keys=keys,
            tags=[row[5] for row in rows] if any(row[5] for row in rows) else None,
            traces=[row[6] for row in rows] if any(row[6] for row in rows) else None,
            fields={name: [own.get(name) for own in fields] for name in names},
        )
