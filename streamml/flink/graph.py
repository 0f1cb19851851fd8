"""Puts a pipeline's stages into a Flink job: batching in Java, a stage in Python, splitting in Java."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pyflink.common import Types
from pyflink.datastream import DataStream
from pyflink.java_gateway import get_gateway
from pyflink.util.java_utils import add_jars_to_context_class_loader, get_j_env_configuration

from streamml.errors import PlanError
from streamml.flink.functions import BYTES, KeyedStageFunction, StageFunction
from streamml.flink.host import HostPlan
from streamml.flink.jars import jar
from streamml.flink.settings import StageSettings, operator_configuration, require_process_mode
from streamml.keying import keeps_record_key, record_key
from streamml.pipeline import Pipeline, SourceSpec, StageSpec

__all__ = ["FORMS", "Graph", "add_jar"]

FORMS = {"text": ("TEXT", Types.STRING()), "bytes": ("BYTES", BYTES), "keyed": ("KEYED", Types.ROW([BYTES, BYTES]))}
"""Forms of output records: name in Java, and Flink's type."""

_BATCH = Types.ROW([Types.INT(), Types.ROW([BYTES, Types.INT()])])


class Graph:
    """A pipeline in a Flink job; built once for a set of streams.

    Args:
        pipeline: what to run.
        streams: a stream of raw records (bytes or strings) for each of its sources.
        settings: see `StageSettings`.
        form: what output records are, one of `FORMS`.
        uid: first part of operator names and uids, by default the pipeline's name.
        script: a stream of a test's script in place of `streams`; nothing is split then, see `results`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        streams: Mapping[str, DataStream],
        settings: StageSettings,
        *,
        form: str = "text",
        uid: str | None = None,
        script: Any = None,
    ) -> None:
        pipeline.check()
        if form not in FORMS:
            where = "form="
            raise PlanError.unknown(where, "form of output records", form, FORMS)
        self.pipeline = pipeline
        self._settings = settings
        self._form = form
        self._jvm = get_gateway().jvm
        self._uid = uid or pipeline.name
        self._script = script
        self._sides: dict[str, Any] = {}
        self.results: list[tuple[HostPlan, Any]] = []
        """What each Python stage gives back, joined."""
        first = script if script is not None else next(iter(streams.values()))._j_data_stream
        self._environment = first.getExecutionEnvironment()
        require_process_mode(self._environment)
        add_jar(self._environment)
        self._java = self._jvm.org.streamml.flink
        self._configuration = operator_configuration(self._environment, settings)
        self.main: Any = self._build({tag: stream._j_data_stream for tag, stream in streams.items()})

    def side(self, name: str) -> Any:
        """Return a side output as a Java stream.

        Raises:
            PlanError: no operator emits it.
        """
        if name not in self._sides:
            where = f"pipeline {self.pipeline.name!r}, side"
            raise PlanError.unknown(where, "side output", name, self._sides)
        return self._sides[name]

    def _build(self, streams: dict[str, Any]) -> Any:
        pipeline = self.pipeline
        first, *keyed = pipeline.stages
        reader = self._direct_reader()
        if reader is not None:
            stage, *rest = keyed
            stream = self._keyed(streams[pipeline.sources[0].tag], reader, stage, 1, pipeline.sources[0].tag, rest)
            keyed = rest
            number = 2
        elif self._script is not None:
            stream = self._front(self._script, first, None, keyed)
            number = 1
        else:
            stream = None
            for spec in pipeline.sources:
                each = self._front(streams[spec.tag], first, spec, keyed)
                stream = each if stream is None else stream.union(self._array(each))
            number = 1
        for place, stage in enumerate(keyed):
            stream = self._keyed(stream, self._java.KeyReader.ofRow(), stage, number + place, None, keyed[place + 1 :])
        return stream

    def _direct_reader(self) -> Any:
        """Return how Java finds the key of raw records, None where Python must see them first."""
        if self._script is not None:
            return None
        field = _direct_field(self.pipeline)
        if field is record_key:
            return self._java.KeyReader.recordKey()
        return self._java.KeyReader.jsonField(field) if field is not None else None

    def _front(self, stream: Any, stage: StageSpec, spec: SourceSpec | None, keyed: list[StageSpec]) -> Any:
        """Decode one source's records, run the operators before the first key, and assign keys."""
        name = f"{self._uid}/{spec.tag if spec is not None else 'script'}"
        batches = self._batches(stream, self._java.KeyReader.none(), 1, name)
        plan = self._plan(stage, spec.tag if spec is not None else None, keyed, ordered=True, scripted=spec is None)
        function = self._python(StageFunction(plan), "PROCESS")
        operator = self._java.BatchProcessOperator(
            self._configuration, function, _BATCH.get_java_type_info(), BYTES.get_java_type_info()
        )
        results = batches.transform(f"{name}: {_names(stage)}", BYTES.get_java_type_info(), operator)
        self._place(results, f"{name}/stage", stream.getParallelism())
        return self._split(results, plan, name, last=not keyed)

    def _keyed(
        self, stream: Any, reader: Any, stage: StageSpec, number: int, tag: str | None, rest: list[StageSpec]
    ) -> Any:
        groups = self.pipeline.key_groups
        parallelism = self._settings.parallelism or self._environment.getParallelism()
        if parallelism > groups:
            msg = (
                f"pipeline {self.pipeline.name!r}: parallelism {parallelism} is more than its {groups} key "
                f"groups, and some subtasks would get "
                "nothing. Take less, or more key_groups= (possible only while there is no state)."
            )
            raise PlanError(msg)
        name = f"{self._uid}/{stage.name}"
        batches = self._batches(stream, reader, groups, name)
        key_type = Types.ROW([Types.INT()]).get_java_type_info()
        grouped = batches.keyBy(self._jvm.KeyByKeySelector(), key_type)
        alone = stream.getParallelism() == 1
        plan = self._plan(stage, tag, rest, ordered=alone, carried=alone and number == 1 and tag is None)
        function = self._python(KeyedStageFunction(plan), "KEYED_PROCESS")
        operator = self._java.GroupProcessOperator(
            self._configuration, function, _BATCH.get_java_type_info(), BYTES.get_java_type_info()
        )
        results = grouped.transform(f"{name}: {_names(stage)}", BYTES.get_java_type_info(), operator)
        self._place(results, f"{name}/stage", parallelism)
        results.setMaxParallelism(groups)
        return self._split(results, plan, name, last=not rest)

    def _plan(
        self,
        stage: StageSpec,
        tag: str | None,
        rest: list[StageSpec],
        *,
        ordered: bool,
        carried: bool = False,
        scripted: bool = False,
    ) -> HostPlan:
        pipeline, settings = self.pipeline, self._settings
        return HostPlan(
            pipeline.name,
            stage,
            pipeline.sources,
            tag,
            following=rest[0] if rest else None,
            selected=None if rest else pipeline.selected,
            models=settings.models,
            groups=pipeline.key_groups,
            cache_bytes=settings.cache_bytes,
            timed=settings.timed,
            ordered=ordered,
            carried=carried,
            scripted=scripted,
            typed=self._script is not None,
            keyed=tag is not None and keeps_record_key(pipeline.stages, tag),
        )

    def _batches(self, stream: Any, reader: Any, groups: int, name: str) -> Any:
        settings = self._settings
        operator = self._java.KeyGroupBatchOperator(
            reader,
            self._java.KeyGroups.numbers(groups, groups),
            settings.batch_size,
            settings.batch_bytes,
            settings.latency,
        )
        batches = stream.transform(f"{name}: batches", _BATCH.get_java_type_info(), operator)
        # As many subtasks as there are before it: the order within a source partition is kept.
        return self._place(batches, f"{name}/batches", stream.getParallelism())

    def _split(self, results: Any, plan: HostPlan, name: str, *, last: bool) -> Any:
        self.results.append((plan, results))
        if last and self._script is not None:
            return results
        java_form, kind = FORMS[self._form]
        forms = self._java.UnbatchOperator.Form
        side_form = getattr(forms, java_form)
        main_form, main_kind = (side_form, kind) if last else (forms.KEYED, FORMS["keyed"][1])
        tags = [self._jvm.org.apache.flink.util.OutputTag(side, kind.get_java_type_info()) for side in plan.sides]
        operator = self._java.UnbatchOperator(main_form, side_form, self._list(tags))
        split = results.transform(f"{name}: records", main_kind.get_java_type_info(), operator)
        self._place(split, f"{name}/records", results.getParallelism())
        for side, tag in zip(plan.sides, tags, strict=True):
            stream = split.getSideOutput(tag)
            known = self._sides.get(side)
            self._sides[side] = stream if known is None else known.union(self._array(stream))
        return split

    def _python(self, function: Any, kind: str) -> Any:
        from pyflink.datastream.data_stream import _create_j_data_stream_python_function_info
        from pyflink.fn_execution import flink_fn_execution_pb2

        number = getattr(flink_fn_execution_pb2.UserDefinedDataStreamFunction, kind)
        return _create_j_data_stream_python_function_info(function, number)

    def _place(self, stream: Any, uid: str, parallelism: int) -> Any:
        """Name an operator for savepoints, and say how many subtasks it has."""
        stream.uid(f"streamml/{uid}")
        return stream.setParallelism(parallelism)

    def _list(self, items: list[Any]) -> Any:
        made = self._jvm.java.util.ArrayList()
        for item in items:
            made.add(item)
        return made

    def _array(self, stream: Any) -> Any:
        made = get_gateway().new_array(self._jvm.org.apache.flink.streaming.api.datastream.DataStream, 1)
        made[0] = stream
        return made


def _direct_field(pipeline: Pipeline) -> Any:
    """Return the JSON name of the field that Java can key by, or `record_key`; None where it can't."""
    first, *keyed = pipeline.stages
    if first.operators or not keyed or len(pipeline.sources) > 1:
        return None
    spec = pipeline.sources[0]
    selector = (keyed[0].selector or {}).get(spec.tag)
    if not isinstance(selector, str):
        return record_key if selector is record_key else None
    names = {field.name: (field.encode_name, field.type) for field in msgspec.structs.fields(spec.schema)}
    name, kind = names.get(selector, ("", None))
    return name if kind in (str, int) else None


def _names(stage: StageSpec) -> str:
    return " > ".join(operator.name for operator in stage.operators) or "decode"


def add_jar(environment: Any) -> None:
    """Add our jar to the job of a Java environment, once."""
    configuration = get_j_env_configuration(environment)
    option = get_gateway().jvm.org.apache.flink.configuration.PipelineOptions.JARS
    known = configuration.getOptional(option)
    urls = list(known.get()) if known.isPresent() else []
    url = jar().resolve().as_uri()
    if url not in urls:
        made = get_gateway().jvm.java.util.ArrayList()
        for each in [*urls, url]:
            made.add(each)
        configuration.set(option, made)
        add_jars_to_context_class_loader([url])
