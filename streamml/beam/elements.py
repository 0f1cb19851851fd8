"""Which elements a stage takes, and how they become payloads that a schema decodes."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint

from streamml.errors import PlanError

__all__ = ["check_elements", "to_payload"]

_KINDS = "bytes or str that hold JSON, dict, beam.Row, a NamedTuple, a dataclass or a msgspec Struct"


def to_payload(element: Any) -> Any:
    """Return JSON as bytes, everything else as a dict.

    >>> to_payload('{"x": 1}'), to_payload(beam.Row(x=1, y="a"))
    (b'{"x": 1}', {'x': 1, 'y': 'a'})
    """
    if isinstance(element, bytes | dict):
        return element
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, beam.Row):
        return element.as_dict()
    if isinstance(element, tuple) and hasattr(element, "_asdict"):
        return element._asdict()
    if isinstance(element, msgspec.Struct):
        return {name: getattr(element, name) for name in element.__struct_fields__}
    if dataclasses.is_dataclass(element):
        return {field.name: getattr(element, field.name) for field in dataclasses.fields(element)}
    return dict(element) if isinstance(element, Mapping) else element


def check_elements(pcoll: Any, where: str) -> None:
    """Refuse a PCollection whose elements can't be records, or in which nobody knows what they are.

    Raises:
        PlanError: what it is, and what to do.
    """
    if not isinstance(pcoll, beam.pvalue.PCollection):
        msg = f"{where}: wanted a PCollection, got {type(pcoll).__name__}; write events | KeyedStage(...)"
        raise PlanError(msg)
    windowing = pcoll.windowing.windowfn
    if not isinstance(windowing, beam.window.GlobalWindows):
        msg = (
            f"{where}: the input is in {type(windowing).__name__}; state would start anew in each of its windows. "
            "Put beam.WindowInto(beam.window.GlobalWindows()) before it, and use Window(...) among the operators"
        )
        raise PlanError(msg)
    kind = pcoll.element_type
    if kind is None or isinstance(kind, typehints.AnyTypeConstraint):
        msg = (
            f"{where}: the type of the input's elements is not known ({pcoll.producer.full_label} says Any). "
            f"Say it where they are made, such as beam.Map(...).with_output_types(dict); wanted {_KINDS}"
        )
        raise PlanError(msg)
    if not _is_record(kind):
        msg = (
            f"{where}: wanted elements that are {_KINDS}; got {kind}. Put a beam.Map before it that makes one of these"
        )
        raise PlanError(msg)


def _is_record(kind: Any) -> bool:
    if isinstance(kind, RowTypeConstraint | typehints.DictConstraint):
        return True
    if isinstance(kind, typehints.UnionConstraint):
        return all(map(_is_record, kind.union_types))
    plain = typing.get_origin(kind) or kind
    if not isinstance(plain, type):
        return False
    return issubclass(plain, bytes | str | dict | Mapping | beam.Row | msgspec.Struct) or (
        hasattr(plain, "_fields") or dataclasses.is_dataclass(plain)
    )
