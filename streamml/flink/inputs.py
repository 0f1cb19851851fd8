"""What a PyFlink program's own streams hold, as JSON: dicts, rows, tuples, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from pyflink.common import Row, RowKind, Types
from pyflink.datastream import DataStream, MapFunction

from streamml.connectors.encode import to_plain
from streamml.errors import PlanError, suggest
from streamml.events import Event
from streamml.flink.functions import BYTES

__all__ = ["ToJson", "json_stream"]

_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_WANTED = (
    "JSON as Types.STRING() or Types.PRIMITIVE_ARRAY(Types.BYTE()); Types.ROW_NAMED(...), Types.ROW(...) or "
    "Types.TUPLE(...) of the schema's fields; or Python objects (dicts, rows, tuples, events) without a type"
)


class ToJson(MapFunction):
    """Turns a Python object into JSON.

    What JSON can't hold becomes an object that says so, which fits no plain field: the record is rejected with its
    content, and the job runs on.

    Args:
        names: fields of the schema as they are called in JSON, for values that come by position.
        by_position: rows have no names of their own.

    >>> ToJson(["id", "n"]).map(("a", 1)), ToJson(["id", "n"]).map({"id": "a"}), ToJson(["id"]).map("{}")
    (b'{"id":"a","n":1}', b'{"id":"a"}', b'{}')
    >>> ToJson(["id", "n"]).map({"id": "a", "n": print})
    b'{"id":"a","n":{"not JSON":"<built-in function print>"}}'
    """

    def __init__(self, names: Sequence[str], *, by_position: bool = False) -> None:
        self._names = tuple(names)
        self._by_position = by_position

    def map(self, value: Any) -> bytes:
        """Return the JSON of an object; bytes and text are JSON already."""
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, Row) and value.get_row_kind() != RowKind.INSERT:
            return msgspec.json.encode(f"{value.get_row_kind()} of a changelog: {value}")
        try:
            return msgspec.json.encode(self._object(value), enc_hook=_plain)
        except _UNENCODABLE:
            return msgspec.json.encode(repr(value))

    def _object(self, value: Any) -> Any:
        if isinstance(value, Row):
            if hasattr(value, "_fields") and not self._by_position:
                return value.as_dict()
            value = tuple(value)
        if isinstance(value, tuple) and len(value) <= len(self._names):
            return dict(zip(self._names, value, strict=False))
        return value


def json_stream(stream: DataStream, schema: type[Event], name: str) -> DataStream:
    """Return a stream as one of JSON, itself where it is one.

    Args:
        stream: what `keyed_stage` was given.
        schema: what its records are.
        name: first part of the name of the step that turns objects into JSON.

    Raises:
        PlanError: it is a stream of something else, or its fields are not those of the schema.
    """
    java = stream._j_data_stream.getType()
    kind = java.getClass().getSimpleName()
    fields = {field.encode_name: field for field in msgspec.structs.fields(schema)}
    if java.equals(BYTES.get_java_type_info()) or java.equals(Types.STRING().get_java_type_info()):
        return stream
    by_position = False
    if kind in ("RowTypeInfo", "ExternalTypeInfo", "TupleTypeInfo"):
        names = _names(stream)
        by_position = names is None or names == [f"f{n}" for n in range(len(names))]
        given = list(fields)[: java.getArity()] if by_position else names or []
        _check(schema, fields, given, java.getArity() if by_position else 0, name)
    elif kind != "PickledByteArrayTypeInfo":
        msg = f"keyed_stage {name!r}: a stream of {java.toString()}; wanted {_WANTED}"
        raise PlanError(msg)
    made = stream.map(ToJson(list(fields), by_position=by_position), output_type=BYTES)
    made.set_parallelism(stream._j_data_stream.getParallelism()).name(f"{name}: to JSON")
    return made


def _names(stream: DataStream) -> list[str] | None:
    """Return the names of a row's fields, None for a tuple."""
    kind = stream.get_type()
    kind = getattr(kind, "_type_info", kind)  # of a table's stream
    return list(kind.get_field_names()) if hasattr(kind, "get_field_names") else None


def _check(schema: type[Event], fields: dict[str, Any], given: list[str], arity: int, name: str) -> None:
    if arity > len(fields):
        msg = (
            f"keyed_stage {name!r}: values of {arity} fields by position, but {schema.__name__} has {len(fields)} "
            f"({', '.join(fields)}); name them with Types.ROW_NAMED([...], [...])"
        )
        raise PlanError(msg)
    missing = [each for each, field in fields.items() if field.required and each not in given]
    if missing:
        hint = suggest(missing[0], [each for each in given if each not in fields])
        msg = (
            f"keyed_stage {name!r}: the stream's rows ({', '.join(given)}) lack {', '.join(missing)} of "
            f"{schema.__name__}. {hint}"
        )
        raise PlanError(msg)


def _plain(value: Any) -> Any:
    if isinstance(value, Row):
        return value.as_dict() if hasattr(value, "_fields") else list(value)
    try:
        return to_plain(value)
    except (TypeError, NotImplementedError):
        return {"not JSON": repr(value)}
