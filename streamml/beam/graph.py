"""A pipeline as Beam transforms."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner

from streamml.beam.elements import check_elements
from streamml.beam.functions import BoundedStageFn, FrontFn, KeyedStageFn
from streamml.beam.host import HostPlan
from streamml.beam.prism import NO_SPLIT
from streamml.beam.reading import ReadFn
from streamml.beam.rows import row_type
from streamml.beam.settings import StageSettings
from streamml.beam.splits import Split
from streamml.errors import PlanError, UnsupportedError
from streamml.pipeline import Pipeline, StageSpec

__all__ = ["Graph", "Stages"]

_MAIN = "main"
_GROUPED = tuple[int, bytes]
_EARLIEST = TimestampCombiner.OUTPUT_AT_EARLIEST


class Graph:
    """A pipeline in a Beam pipeline; built once for a set of inputs, inside a transform of its own.

    Args:
        pipeline: what to run.
        inputs: for each of its sources a PCollection of records, or of splits to be read as a stream (`Split`); or one
            of records for all of the test kit's (`scripted`).
        settings: see `StageSettings`.
        where: how messages name it.
    """

    def __init__(self, pipeline: Pipeline, inputs: Mapping[str, Any], settings: StageSettings, where: str) -> None:
        pipeline.check()
        self.pipeline = pipeline
        self._where = where
        for each in inputs.values():
            if each.element_type is not Split:
                check_elements(each, where)
        self._bounded = all(each.is_bounded and each.element_type is not Split for each in inputs.values())
        self._settings = _ordered(settings, self._bounded, where)
        self._root = next(iter(inputs.values())).pipeline
        self._root.options.view_as(DebugOptions).add_experiment(NO_SPLIT)
        self.parts: dict[str, list[Any]] = {name: [] for name in pipeline.sides}
        """Side outputs of each step, by name; joining them loses their order."""
        self.main: Any = self._build(inputs)
        self._sides = {name: self._typed(parts, name) for name, parts in self.parts.items()}

    def side(self, name: str) -> Any:
        """Return a side output as a PCollection of dicts.

        Raises:
            PlanError: no operator emits it.
        """
        if name not in self._sides:
            where = f"{self._where}, side"
            raise PlanError.unknown(where, "side output", name, self._sides)
        return self._sides[name]

    def _build(self, inputs: Mapping[str, Any]) -> Any:
        first, *keyed = self.pipeline.stages
        parts = []
        for tag, records in inputs.items():
            plan = self._plan(first, None if self._settings.scripted else tag, keyed)
            label = f"front {tag}" if len(inputs) > 1 else "front"
            if records.element_type is Split:
                plan = dataclasses.replace(plan, marks=True)
                parts.append(self._step(records, plan, ReadFn(plan), label, last=not keyed))
            else:
                parts.append(self._step(records, plan, FrontFn(plan), label, last=not keyed))
        stream = parts[0] if len(parts) == 1 else tuple(parts) | "inputs" >> beam.Flatten()
        for place, stage in enumerate(keyed):
            plan = self._plan(stage, None, keyed[place + 1 :])
            stream = self._keyed(stream, plan, stage.name, last=place == len(keyed) - 1)
        return stream

    def _keyed(self, stream: Any, plan: HostPlan, name: str, *, last: bool) -> Any:
        if self._bounded:
            held = stream | f"{name} held" >> beam.WindowInto(GlobalWindows(), timestamp_combiner=_EARLIEST)
            grouped = held | f"{name} by key group" >> beam.GroupByKey()
            return self._step(grouped, plan, BoundedStageFn(plan), name, last=last)
        if self._settings.points:
            seeds = self._root | f"{name} groups" >> beam.Create(
                [(group, b"") for group in range(plan.groups)]
            ).with_output_types(_GROUPED)
            stream = (stream, seeds) | f"{name} with groups" >> beam.Flatten()
        return self._step(stream, plan, KeyedStageFn(plan), name, last=last)

    def _step(self, stream: Any, plan: HostPlan, function: Any, label: str, *, last: bool) -> Any:
        scripted = self._settings.scripted
        kind: Any = _GROUPED if not last else bytes if scripted else self._form()
        transform = beam.ParDo(function).with_output_types(kind)
        made = stream | label >> transform.with_outputs(*plan.sides, main=_MAIN)
        for side in plan.sides:
            self.parts[side].append(made[side])
        return self._windowed(made[_MAIN], label)

    def _windowed(self, made: Any, label: str) -> Any:
        """Take back what `_keyed` did to the windowing to hold the watermark before a bounded input's results."""
        return made | f"{label} out" >> beam.WindowInto(GlobalWindows()) if self._bounded else made

    def _form(self) -> Any:
        form = self._settings.form
        if form == "row":
            return row_type(self.pipeline, self._settings)
        return dict[str, Any] if form == "dict" else bytes

    def _typed(self, parts: list[Any], label: str) -> Any:
        typed = [
            self._windowed(part, f"{label} {place}")
            | f"{label} {place}" >> beam.Map(_same).with_output_types(dict[str, Any])
            for place, part in enumerate(parts)
        ]
        return typed[0] if len(typed) == 1 else tuple(typed) | label >> beam.Flatten()

    def _plan(self, stage: StageSpec, tag: str | None, rest: list[StageSpec]) -> HostPlan:
        pipeline = self.pipeline
        return HostPlan(
            token=uuid.uuid4().hex,
            pipeline=pipeline.name,
            stage=stage,
            sources=pipeline.sources,
            settings=self._settings,
            tag=tag,
            following=rest[0] if rest else None,
            selected=None if rest else pipeline.selected,
            groups=pipeline.key_groups,
        )


class Stages(beam.PTransform):
    """A whole pipeline as one transform: of a PCollection, or of a dict of one for each source; gives its `Graph`."""

    def __init__(self, pipeline: Pipeline, settings: StageSettings, where: str) -> None:
        super().__init__()
        self._pipeline, self._settings, self._where = pipeline, settings, where

    def expand(self, inputs: Any) -> Graph:
        """Build the transforms."""
        named = inputs if isinstance(inputs, dict) else {self._pipeline.sources[0].tag: inputs}
        return Graph(self._pipeline, named, self._settings, self._where)


def _same(record: Any) -> Any:
    return record


def _ordered(settings: StageSettings, bounded: bool, where: str) -> StageSettings:
    """Fill in the order of rows."""
    if settings.order is None:
        return dataclasses.replace(settings, order="event_time" if bounded else "arrival")
    if bounded and settings.order == "arrival":
        msg = (
            f"{where}: order='arrival' in a bounded pipeline, which Beam reads in any order; leave order= out, "
            "and rows are handled by event time"
        )
        raise UnsupportedError(msg)
    return settings
