"""The schema of output rows, for Beam's own relational transforms."""

from __future__ import annotations

from typing import Any

import msgspec
from apache_beam.typehints.row_type import RowTypeConstraint

from streamml.beam.settings import StageSettings
from streamml.errors import PlanError
from streamml.pipeline import Pipeline

__all__ = ["row_type"]

_ENVELOPE = {"id": str, "key": str, "timestamp": int}


def row_type(pipeline: Pipeline, settings: StageSettings) -> Any:
    """Return the type of `beam.Row`s with the selected fields of a pipeline, after the event's id.

    Raises:
        PlanError: no fields are selected, or the type of one is not known.
    """
    if pipeline.selected is None:
        msg = "KeyedStage(form='row'): a row has a fixed schema; name its fields with select="
        raise PlanError(msg)
    schema = pipeline.sources[0].schema
    known: dict[str, Any] = {**_ENVELOPE, **{field.name: field.type for field in msgspec.structs.fields(schema)}}
    known.update(settings.types)
    if missing := [name for name in pipeline.selected if name not in known]:
        msg = (
            f"KeyedStage(form='row'): the type of field {missing[0]!r} is not known, since an operator makes it; "
            f"say it with types={{{missing[0]!r}: float}}"
        )
        raise PlanError(msg)
    own_id = "_id" if "id" in schema.__struct_fields__ and "id" in pipeline.selected else "id"
    fields = {own_id: str, **{name: known[name] for name in pipeline.selected}}
    return RowTypeConstraint.from_fields(list(fields.items()))
