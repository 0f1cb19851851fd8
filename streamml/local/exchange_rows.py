"""The rows of a batch as bytes, on their way through an exchange; they come out as they went in."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import msgspec
import msgspec.inspect as shape

from streamml.errors import RecordError
from streamml.events import Event
from streamml.records import Batch
from streamml.times import MIN_TIME

__all__ = ["RowCodec"]

_SCALARS = frozenset((int, float, str, bool, bytes, type(None)))
_PLAIN, _PICKLED = -1, -2
_SIMPLE = (shape.IntType, shape.FloatType, shape.StrType, shape.BoolType, shape.NoneType, shape.BytesType)
_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, AttributeError, pickle.PicklingError)
_UNREADABLE = (
    msgspec.MsgspecError,
    pickle.UnpicklingError,
    EOFError,
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
)


class _Columns(msgspec.Struct, array_like=True):
    """The columns of a batch; `kind` says how its values are encoded."""

    watermarks: list[int]
    places: list[bytes]
    times: list[int]
    keys: list[Any]
    ids: list[str]
    tags: list[str] | None
    traces: list[str | None] | None
    kind: int
    values: bytes
    plain: dict[str, list[Any]]
    pickled: bytes


class RowCodec:
    """Encodes and decodes batches by columns.

    Scalars, and events of schemas made of scalars, are MessagePack; whatever else a step may have made is pickled, so
    that a tuple stays a tuple and an instant keeps its time zone.

    Args:
        schemas: the event types of the pipeline's sources.

    >>> class Click(Event, id="id", time="ts"):
    ...     id: str
    ...     ts: int
    >>> codec = RowCodec([Click])
    >>> batch = Batch([Click("a", 7)], times=[7], ids=["p/a"], watermarks=[5], watermark=6, fields={"where": [(1, 2)]})
    >>> back = codec.decode(codec.encode(batch, [b"place"]))
    >>> back.values, back.fields, back.watermarks, back.entries, back.keys
    ([Click(id='a', ts=7)], {'where': [(1, 2)]}, [5], [b'place'], [None])
    """

    def __init__(self, schemas: Sequence[type[Event]]) -> None:
        simple = [schema for schema in dict.fromkeys(schemas) if _simple(schema)]
        self._kinds: dict[type, int] = {schema: number for number, schema in enumerate(simple)}
        self._values = [msgspec.msgpack.Decoder(list[schema]).decode for schema in simple]  # type: ignore[valid-type]
        self._plain = msgspec.msgpack.Decoder(list[Any]).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Columns).decode

    def encode(self, batch: Batch, places: list[bytes]) -> bytes:
        """Return the rows, each with its place in the order of the input (see `streamml.local.exchange_order`).

        Raises:
            RecordError: a value can neither be written as MessagePack nor be pickled.
        """
        plain: dict[str, list[Any]] = {}
        pickled: dict[str | None, list[Any]] = {}  # the keys have no name
        keys = batch.keys
        if not _SCALARS.issuperset(map(type, keys)):
            pickled[None], keys = keys, []
        for name, column in batch.fields.items():
            scalars = _SCALARS.issuperset(map(type, column))
            plain[name] = column if scalars else []  # which keeps the fields in order
            if not scalars:
                pickled[name] = column
        columns = (batch.watermarks, places, batch.times, keys, batch.ids, batch.tags, batch.traces)
        try:
            kind, values = self._encode_values(batch.values)
            rest = pickle.dumps(pickled, 5) if pickled else b""
            return self._encode((*columns, kind, values, plain, rest))
        except OverflowError:  # an int of more than 64 bits
            return self._all_pickled(batch, columns)
        except _FAILURES as exc:
            raise _unfit(exc) from exc

    def decode(self, data: bytes) -> Batch:
        """Return the rows; the places are in the column `entries`, which a keyed stage fills anew.

        Raises:
            RecordError: they are not what a pipeline with these event types wrote.
        """
        try:
            found = self._decode(data)
            fields: dict[Any, list[Any]] = found.plain | (pickle.loads(found.pickled) if found.pickled else {})
            keys = fields.pop(None, found.keys)
            if found.kind == _PICKLED:
                values = pickle.loads(found.values)
            else:
                values = (self._plain if found.kind == _PLAIN else self._values[found.kind])(found.values)
        except (*_UNREADABLE, IndexError) as exc:
            msg = f"rows in an exchange can't be read: {type(exc).__name__}: {exc}"
            raise RecordError(msg) from exc
        return Batch(
            values,
            times=found.times,
            ids=found.ids,
            watermarks=found.watermarks,
            watermark=found.watermarks[-1] if found.watermarks else MIN_TIME,
            keys=keys,
            tags=found.tags,
            traces=found.traces,
            fields=fields,
            entries=found.places,
        )

    def _encode_values(self, values: list[Any]) -> tuple[int, bytes]:
        types = set(map(type, values))
        if _SCALARS.issuperset(types):
            return _PLAIN, self._encode(values)
        if len(types) == 1 and (kind := self._kinds.get(types.pop())) is not None:
            return kind, self._encode(values)
        return _PICKLED, pickle.dumps(values, 5)

    def _all_pickled(self, batch: Batch, columns: tuple[Any, ...]) -> bytes:
        try:
            rest = pickle.dumps({None: batch.keys} | batch.fields, 5)
            return self._encode((*columns, _PICKLED, pickle.dumps(batch.values, 5), {}, rest))
        except _FAILURES as exc:
            raise _unfit(exc) from exc


def _unfit(exc: Exception) -> RecordError:
    return RecordError(
        f"a row that goes to another worker must be plain data or be picklable: {type(exc).__name__}: {exc}. "
        "Emit plain values before key_by, or run the job with one process"
    )


def _simple(schema: type[Event]) -> bool:
    """Return whether MessagePack gives back every value of a schema as it was."""
    described = shape.type_info(schema)
    assert isinstance(described, shape.StructType)
    return all(
        isinstance(part, _SIMPLE)
        for field in described.fields
        for part in (field.type.types if isinstance(field.type, shape.UnionType) else (field.type,))
    )
