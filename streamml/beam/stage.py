"""Our operators in a Beam pipeline: `KeyedStage`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam

from streamml.beam.graph import Graph
from streamml.beam.rows import row_type
from streamml.beam.settings import StageSettings
from streamml.contract import Operator
from streamml.errors import PlanError
from streamml.events import Event, roles
from streamml.pipeline import Pipeline

__all__ = ["KeyedStage", "StageResult", "transform"]

_KEY_GROUPS = 64


class StageResult:
    """What comes out of `KeyedStage`.

    Attributes:
        main: the main output, a PCollection.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.main: Any = graph.main

    @property
    def late(self) -> Any:
        """Events that came too late, with how late they were."""
        return self.side("late")

    @property
    def rejected(self) -> Any:
        """Records that could not be handled, with the reason."""
        return self.side("rejected")

    def side(self, name: str) -> Any:
        """Return a side output, a PCollection of dicts.

        Raises:
            PlanError: no operator emits it.
        """
        return self._graph.side(name)


class _Stage(beam.PTransform):
    """Base of `KeyedStage`: a pipeline of one source as a transform."""

    def __init__(self, pipeline: Pipeline, settings: StageSettings) -> None:
        super().__init__()
        if settings.form == "row":
            row_type(pipeline, settings)
        self.pipeline = pipeline
        self._settings = settings

    def default_label(self) -> str:
        """Return the operators' names."""
        return f"{self.pipeline.name}: {' > '.join(operator.name for operator in self.pipeline.operators)}"

    def expand(self, pcoll: Any) -> StageResult:
        """Build the transforms."""
        tag = self.pipeline.sources[0].tag
        return StageResult(Graph(self.pipeline, {tag: pcoll}, self._settings, f"{type(self).__name__} {self.label!r}"))


class KeyedStage(_Stage):
    """Run operators under one key inside a Beam pipeline.

    State and timers are Beam's. In an unbounded pipeline rows of a key are handled in the order in which the runner
    brings them, which Beam does not promise to be that of the source; `order="event_time"` keeps each row until the
    watermark has reached its time, and sorts. In a bounded pipeline, which is read in any order, rows are always
    handled by event time, and nothing is late.

    Args:
        operators: the chain, in order.
        schema: what the records are; a record that does not fit goes to `rejected`.
        key: a field, or a function of the event. By default the schema's key.
        name: part of record ids; by default the schema's name in lower case.
        select: fields of the main output, None for all.
        key_groups: number of key groups, the limit of the stage's parallelism; can't be changed once there is state.
        order: `arrival` or `event_time`; see above.
        form: what output records are: `dict`, `json` (bytes), or `row`, a `beam.Row` with a schema, which needs
            `select=`.
        types: types of derived fields, for `form="row"`.
        watermark_step: how finely the watermark is followed; see docs/beam.md.
        batch_size: most records that are handed on at once.
        models: folders that are searched for model bundles, as the workers see them.

    Raises:
        PlanError: the operators don't fit together or to the schema; on use, the input's type is unknown or no record.

    >>> from streamml.operators import Dedupe
    >>> class Click(Event, id="id", key="user", time="ts"):
    ...     id: str
    ...     user: str
    ...     ts: int
    >>> KeyedStage([Dedupe(ttl="1h")], schema=Click).pipeline.sides
    ('late', 'rejected', 'duplicates')
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        *,
        schema: type[Event],
        key: str | Callable[[Any], Any] | None = None,
        name: str | None = None,
        select: Sequence[str] | None = None,
        key_groups: int = _KEY_GROUPS,
        **options: Any,
    ) -> None:
        selector = key if key is not None else roles(schema).key
        if selector is None:
            msg = (
                f"KeyedStage: {schema.__name__} declares no key; pass key=, or class {schema.__name__}(Event, key=...)"
            )
            raise PlanError(msg)
        pipeline = Pipeline(name or schema.__name__.lower(), schema=schema, key_groups=key_groups).key_by(selector)
        super().__init__(_with(pipeline, operators, select), StageSettings.of(**options))


def transform(
    operator: Operator,
    *,
    schema: type[Event],
    key: str | Callable[[Any], Any] | None = None,
    name: str | None = None,
    select: Sequence[str] | None = None,
    **options: Any,
) -> _Stage:
    """Return one operator as a transform; one that needs no key runs without one.

    Args:
        operator: the operator.
        schema: see `KeyedStage`, as for the others.
        key: the key; by default the schema's, if the operator needs one.
        name: part of record ids.
        select: fields of the main output.
        options: `order`, `form`, `watermark_step`, `batch_size`, `key_groups`, `models` as for `KeyedStage`.

    >>> from streamml.operators import Filter
    >>> class Click(Event, id="id", key="user", time="ts"):
    ...     id: str
    ...     user: str
    ...     ts: int
    >>> transform(Filter(lambda e: e.user != "bot"), schema=Click).default_label()
    'click: filter'
    """
    if operator.keyed or operator.states() or key is not None:
        return KeyedStage([operator], schema=schema, key=key, name=name, select=select, **options)
    options.pop("key_groups", None)
    pipeline = Pipeline(name or schema.__name__.lower(), schema=schema)
    return _Stage(_with(pipeline, [operator], select), StageSettings.of(**options))


def _with(pipeline: Pipeline, operators: Sequence[Operator], select: Sequence[str] | None) -> Pipeline:
    for operator in operators:
        pipeline = pipeline.then(operator)
    return pipeline if select is None else pipeline.select(*select)
