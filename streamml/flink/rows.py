"""Outputs of a stage as rows with declared types, for what comes next in a PyFlink program or in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pyflink.common import Row, Types
from pyflink.common.typeinfo import BasicArrayTypeInfo, BasicType, BasicTypeInfo, ListTypeInfo, TypeInformation
from pyflink.datastream import DataStream, MapFunction, RuntimeContext

from streamml.errors import PlanError, RecordError

__all__ = ["ToRow", "row_stream"]

_PYTHON: dict[BasicType, Any] = {
    BasicType.STRING: str,
    BasicType.BOOLEAN: bool,
    **dict.fromkeys((BasicType.BYTE, BasicType.SHORT, BasicType.INT, BasicType.LONG), int),
    **dict.fromkeys((BasicType.FLOAT, BasicType.DOUBLE), float),
}


class ToRow(MapFunction):
    """Reads the fields of a JSON record; one that is missing is None.

    Args:
        fields: Python types of the fields.
        where: the stage and its output, for messages.

    >>> to_row = ToRow({"id": str, "n": int}, "clicks, main")
    >>> to_row.open(None)
    >>> to_row.map('{"n":2,"more":true}')
    <Row(None, 2)>
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = dict(fields)
        self._where = where

    def open(self, runtime_context: RuntimeContext | None) -> None:
        """Build the decoder, which can't be sent to the workers."""
        slots = [f"f{place}" for place in range(len(self._fields))]
        shape = msgspec.defstruct(
            "Output",
            [(slot, kind | None, None) for slot, kind in zip(slots, self._fields.values(), strict=True)],
            rename=dict(zip(slots, self._fields, strict=True)),
        )
        self._decode = msgspec.json.Decoder(shape).decode

    def map(self, value: str) -> Row:
        """Return the row of a record.

        Raises:
            RecordError: a value is not of the declared type.
        """
        try:
            return Row(*msgspec.structs.astuple(self._decode(value)))
        except msgspec.MsgspecError as exc:
            msg = f"{self._where}: {exc}; declare its type as it is: {value[:200]}"
            raise RecordError(msg) from exc


def row_stream(stream: DataStream, types: Mapping[str, TypeInformation], where: str) -> DataStream:
    """Return a stream of JSON text as one of `Types.ROW_NAMED`.

    Raises:
        PlanError: a type is none of those that JSON has.
    """
    fields = {name: _python_type(name, kind, where) for name, kind in types.items()}
    made = stream.map(ToRow(fields, where), output_type=Types.ROW_NAMED(list(types), list(types.values())))
    return made.set_parallelism(stream._j_data_stream.getParallelism()).name(f"{where}: rows")


def _python_type(name: str, kind: Any, where: str) -> Any:
    if isinstance(kind, BasicTypeInfo) and kind._basic_type in _PYTHON:
        return _PYTHON[kind._basic_type]
    element = getattr(kind, "elem_type", None) or getattr(kind, "_element_type", None)
    if isinstance(kind, ListTypeInfo | BasicArrayTypeInfo) and element is not None:
        return list[_python_type(name, element, where)]  # type: ignore[misc]
    msg = (
        f"{where}, rows, field {name!r}: wanted a type that JSON has (Types.STRING(), BOOLEAN(), BYTE(), SHORT(), "
        f"INT(), LONG(), FLOAT(), DOUBLE(), or LIST and BASIC_ARRAY of these), got {kind!r}"
    )
    raise PlanError(msg)
