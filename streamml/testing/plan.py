"""From what a case runs to a pipeline whose sources are played from its script."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from streamml.contract import Context, Operator
from streamml.errors import PlanError
from streamml.events import TIME_UNITS, Event, roles
from streamml.pipeline import Pipeline
from streamml.records import Batch
from streamml.testing.script import Script, ScriptEvent

__all__ = ["Scripted", "plan"]

_GROUPS = 4
"""Key groups of a pipeline made for a script: few, since the timers of each are read at every start."""
_FOR_EVER = 2**61


class Scripted(Event, id="script_id", key="script_key", time="script_time"):
    """How an event of a script reaches operators that have no pipeline of their own."""

    script_id: str
    script_key: Any
    script_time: int
    script_fields: dict[str, Any]


class _Unpack(Operator):
    """Puts the fields of a script's event in its place, as a dict."""

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str] | None:
        return None

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        made = batch.with_fields({})
        made.values = [value.script_fields for value in batch.values]
        return made


def plan(
    operators: Sequence[Operator] | Pipeline, script: Script, *, watermarks: str
) -> tuple[Pipeline, Callable[[ScriptEvent], Any]]:
    """Return the pipeline to run, and how its sources encode an event.

    Raises:
        PlanError: the script names a source that the pipeline does not have, or `watermarks` is unknown.
    """
    if watermarks not in ("script", "pipeline"):
        where = "run, watermarks="
        raise PlanError.unknown(where, "kind of watermarks", watermarks, ("script", "pipeline"))
    if not isinstance(operators, Pipeline):
        return _of_operators(operators, script), _scripted
    tags = [spec.tag for spec in operators.sources]
    for tag in script.sources:
        if tag not in tags and not (tag == "main" and len(tags) == 1):
            where = "script, event(source=)"
            raise PlanError.unknown(where, "source of the pipeline", tag, tags)
    pipeline = operators
    if watermarks == "script":
        # A script's wall clock starts at 0, so no event is too far in its future.
        sources = tuple(dataclasses.replace(spec, max_future=_FOR_EVER) for spec in pipeline.sources)
        pipeline = dataclasses.replace(pipeline, schema=None, sources=sources)
    encoders = {spec.tag: _Payload(pipeline, spec.tag, spec.schema) for spec in pipeline.sources}
    if len(tags) == 1:
        encoders["main"] = encoders[tags[0]]
    return pipeline, lambda event: encoders[event.source](event)


def _of_operators(operators: Sequence[Operator], script: Script) -> Pipeline:
    pipeline = Pipeline("script", key_groups=_GROUPS, max_future=_FOR_EVER)
    for tag in script.sources:
        pipeline = pipeline.source(tag, Scripted)
    if any(isinstance(op, Operator) and (op.keyed or op.bound_states()) for op in operators):
        pipeline = pipeline.key_by("script_key")
    pipeline = pipeline.then(_Unpack(name="script"))
    for operator in operators:
        pipeline = pipeline.then(operator)
    return pipeline


def _scripted(event: ScriptEvent) -> Scripted:
    return Scripted(event.id or "", event.key, event.t, copy.deepcopy(event.fields))


class _Payload:
    """Makes the payload of an event for a schema: its fields, and id, key and time where they are wanted."""

    def __init__(self, pipeline: Pipeline, tag: str, schema: type[Event]) -> None:
        found = roles(schema)
        selector = next((stage.selector[tag] for stage in pipeline.stages if stage.selector is not None), found.key)
        self._key = selector if isinstance(selector, str) else found.key
        self._id = found.id
        self._time = found.time or ""
        self._per_unit = TIME_UNITS[found.time_unit]
        kinds = {field.name: field.type for field in msgspec.structs.fields(schema)}
        self._as_datetime = kinds[self._time] is datetime

    def __call__(self, event: ScriptEvent) -> Any:
        moment: Any = event.t / self._per_unit
        if self._as_datetime:
            moment = datetime.fromtimestamp(0, tz=UTC) + timedelta(milliseconds=event.t)
        elif moment == int(moment):
            moment = int(moment)
        given = {self._time: moment}
        if self._id is not None:
            given[self._id] = event.id
        if self._key is not None:
            given[self._key] = event.key
        payload = {**given, **event.fields}
        try:
            return msgspec.json.encode(payload)
        except (TypeError, ValueError, OverflowError):
            return payload
