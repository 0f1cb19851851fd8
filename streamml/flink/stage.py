"""Our operators in a PyFlink program: `keyed_stage`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import DataStream

from streamml.contract import Operator
from streamml.errors import PlanError
from streamml.events import Event, roles
from streamml.flink.graph import Graph
from streamml.flink.inputs import json_stream
from streamml.flink.rows import row_stream
from streamml.flink.settings import StageSettings
from streamml.keying import record_key
from streamml.pipeline import Pipeline
from streamml.state.table import KEY_GROUPS
from streamml.times import Duration, to_millis

__all__ = ["Stage", "keyed_stage"]


class Stage:
    """What comes out of `keyed_stage`: streams of JSON, or of rows.

    Attributes:
        main: the main output.
    """

    def __init__(self, graph: Graph, form: str) -> None:
        self._graph = graph
        self._form = form
        self.main = DataStream(graph.main)

    def side(self, name: str) -> DataStream:
        """Return a side output: `late`, `rejected`, or one that an operator declares.

        Raises:
            PlanError: no operator emits it.
        """
        return DataStream(self._graph.side(name))

    def rows(self, types: Mapping[str, TypeInformation], side: str | None = None) -> DataStream:
        """Return an output as rows of declared types, which the Table API takes as they are.

        A field that a record lacks is None. A value of another type than declared fails the job: no record of it is
        lost unseen.

        Args:
            types: Flink's type of each field, such as `{"tx_id": Types.STRING(), "n": Types.LONG()}`.
            side: a side output, None for the main output.

        Raises:
            PlanError: no operator emits that side output, a type is none that JSON has, or `form=` is not `text`.
        """
        if self._form != "text":
            msg = f"stage {self._graph.pipeline.name!r}, rows: made of outputs with form='text', not {self._form!r}"
            raise PlanError(msg)
        stream = self.main if side is None else self.side(side)
        name, output = self._graph.pipeline.name, side or "main"
        return row_stream(stream, types, f"{name}, {output}")


def keyed_stage(
    stream: DataStream,
    operators: Sequence[Operator],
    *,
    schema: type[Event],
    key: str | Callable[[Any], Any] | None = None,
    name: str | None = None,
    select: Sequence[str] | None = None,
    form: str = "text",
    latency: Duration = "50ms",
    batch_size: int = 1024,
    parallelism: int | None = None,
    key_groups: int = KEY_GROUPS,
    models: Sequence[str] = (),
) -> Stage:
    """Run operators under one key inside a PyFlink program.

    State, timers, checkpoints, savepoints and rescaling are Flink's own. The stream's watermarks (a
    `WatermarkStrategy` on the source) are
    what decides when timers fire and what is late. Operator uids come from `name`, so a savepoint survives changes
    elsewhere
    in the program. Needs Python's process mode, which is PyFlink's default.

    Args:
        stream: JSON as strings or bytes (`Types.STRING()`, `Types.PRIMITIVE_ARRAY(Types.BYTE())`); rows or tuples
            with type information, whose named fields are those of the schema in JSON, and whose fields without names
            (`Types.ROW`, `Types.TUPLE`) are the schema's in their order; or, where no type was declared, Python
            objects: dicts, rows, tuples, events. What is not JSON costs a step in Python for each record.
        operators: the chain, in order.
        schema: what the records are; a record that does not fit goes to the side output `rejected`.
        key: a field, or a function of the event, which costs one more way through Python. By default the schema's key.
        name: part of record ids, operator names and uids; by default the schema's name in lower case.
        select: fields of the main output, None for all.
        form: what output records are: `text`, `bytes`, or `keyed`, rows of (key, JSON) in bytes.
        latency: how long a record may wait for others of its key group.
        batch_size: most records in a batch.
        parallelism: number of subtasks of the stage; by default the environment's.
        key_groups: number of key groups, the limit of its parallelism; can't be changed once there is state.
        models: folders that are searched for model bundles, as the workers see them.

    Raises:
        PlanError: the operators don't fit together or to the schema, the stream holds something else or its rows lack
            fields of the schema, or the environment asks for thread mode.
    """
    selector = key if key is not None else roles(schema).key
    if selector is None:
        msg = f"keyed_stage: {schema.__name__} declares no key; pass key=, or class {schema.__name__}(Event, key=...)"
        raise PlanError(msg)
    if selector is record_key:
        msg = (
            "keyed_stage(key=record_key): records of a DataStream have no key; give a field, or a function of the event"
        )
        raise PlanError(msg)
    pipeline = Pipeline(name or schema.__name__.lower(), schema=schema, key_groups=key_groups).key_by(selector)
    for operator in operators:
        pipeline = pipeline.then(operator)
    if select is not None:
        pipeline = pipeline.select(*select)
    settings = StageSettings(
        batch_size=batch_size,
        latency=to_millis(latency, where="keyed_stage(latency=)"),
        parallelism=parallelism,
        models=tuple(models),
    )
    records = json_stream(stream, schema, pipeline.name)
    return Stage(Graph(pipeline, {pipeline.sources[0].tag: records}, settings, form=form), form)
