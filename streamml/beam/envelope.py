"""Rows on their way from one step of a Beam pipeline to the next: a batch as one array of bytes.

Beam's cost is per element, so what goes from the front to a keyed stage, and from one stage to the next, is not a row
but the rows of one key group.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import msgspec

from streamml.errors import RecordError
from streamml.events import Event
from streamml.pickling import dumps, loads
from streamml.records import Batch
from streamml.times import MIN_TIME

__all__ = ["Envelopes"]

_PLAIN, _BY_CODE = -1, -2
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, RecursionError)


class Envelopes:
    """Encodes and decodes batches between two steps.

    Events of one schema travel as MessagePack, so a worker need not be able to import their class; everything else is
    pickled.

    Args:
        schemas: the event types of the pipeline's sources.
    """

    def __init__(self, schemas: Sequence[type[Event]]) -> None:
        self._number = {schema: number for number, schema in enumerate(schemas)}
        self._decoders: list[Any] = []
        for schema in schemas:
            rows: Any = list[schema]  # type: ignore[valid-type]
            self._decoders.append(msgspec.msgpack.Decoder(rows).decode)
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, batch: Batch, *, marks: bool = False) -> bytes:
        """Return a batch as bytes: values, envelope and derived fields.

        Args:
            batch: the rows.
            marks: the watermarks before them go along; without it they stay behind.

        Raises:
            RecordError: a value can't travel, such as an open file.
        """
        kinds = set(map(type, batch.values))
        number = self._number.get(next(iter(kinds)), _PLAIN) if len(kinds) == 1 else _PLAIN
        values: Any = batch.values
        if number != _PLAIN:
            try:
                values = self._encode(batch.values)
            except _UNENCODABLE:  # an integer of more than 64 bits and the like
                number = _PLAIN
        columns: tuple[Any, ...] = (
            number,
            values,
            batch.times,
            batch.ids,
            batch.keys,
            batch.tags,
            batch.traces,
            batch.fields,
        )
        columns = (*columns, batch.watermarks if marks else None)
        try:
            return pickle.dumps(columns, pickle.HIGHEST_PROTOCOL)
        except _UNPICKLABLE:  # classes of the main script and the like
            pass
        try:
            return pickle.dumps((_BY_CODE, dumps(columns)))
        except _UNPICKLABLE as exc:
            msg = f"a value can't be sent to the next stage: {exc}. Convert it in a Map before the key."
            raise RecordError(msg) from exc

    def decode(self, data: bytes) -> Batch:
        """Return the batch of what `encode` returned.

        Without marks its watermarks are those of a stream that has seen nothing.
        """
        columns = pickle.loads(data)
        if columns[0] == _BY_CODE:
            columns = loads(columns[1])
        number, values, times, ids, keys, tags, traces, fields, marks = columns
        return Batch(
            values if number == _PLAIN else self._decoders[number](values),
            times=times,
            ids=ids,
            watermarks=marks or [MIN_TIME] * len(times),
            watermark=MIN_TIME,
            keys=keys,
            tags=tags,
            traces=traces,
            fields=fields,
        )
