"""The plan: sources, steps, keyed stages, side outputs, sinks.

Built by chaining, checked while it is built, run by any engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamml.contract import Operator
from streamml.errors import PlanError
from streamml.events import Event, roles
from streamml.state.table import KEY_GROUPS
from streamml.times import Duration, format_duration, to_millis

__all__ = ["JobConfig", "Pipeline", "SourceSpec", "StageSpec"]

KeySelector = str | Callable[[Any], Any] | Mapping[str, str | Callable[[Any], Any]]

RUNTIME_SIDES = ("late", "rejected")
"""Side outputs that a pipeline always has."""


@dataclass(frozen=True)
class JobConfig:
    """What the command line hands to a job's `pipeline(cfg)`.

    Attributes:
        models: folders that are searched for model bundles.
        params: the job's own settings, from `--param name=value`.
    """

    models: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)

    def param(self, name: str, default: Any) -> Any:
        """Return a setting, converted to the type of its default.

        >>> JobConfig(params={"limit": "7"}).param("limit", 5)
        7
        """
        if name not in self.params:
            return default
        text, kind = self.params[name], type(default)
        try:
            return text.lower() in ("1", "true", "yes", "on") if kind is bool else kind(text)
        except (TypeError, ValueError) as exc:
            msg = f"--param {name}={text}: wanted {kind.__name__}, such as {default!r}"
            raise PlanError(msg) from exc


@dataclass(frozen=True)
class SourceSpec:
    """One source of a pipeline.

    Attributes:
        tag: its name; events carry it.
        schema: the type that its records are decoded to.
        uri: where it is read from; None is filled in when the job is started.
        out_of_orderness: how far an event may lag behind the newest one of its partition and still be in time, ms.
        idleness: after how long without records a partition no longer holds the watermark back, ms of wall-clock time.
        max_future: an event further than this ahead of the wall clock is rejected, ms.
        max_jump: one event alone that is further than this ahead of all before it does not move the watermark, ms.
    """

    tag: str
    schema: type[Event]
    uri: str | None = None
    out_of_orderness: int = 0
    idleness: int = 30_000
    max_future: int = 86_400_000
    max_jump: int = 3_600_000


@dataclass(frozen=True)
class StageSpec:
    """A chain of operators under one key; the first one of a pipeline has no key and may be empty."""

    name: str
    selector: Mapping[str, str | Callable[[Any], Any]] | None
    operators: tuple[Operator, ...]

    def describe_key(self) -> str:
        """Return the key as text."""
        if self.selector is None:
            return ""
        texts = {
            tag: s if isinstance(s, str) else getattr(s, "__name__", "function") for tag, s in self.selector.items()
        }
        distinct = set(texts.values())
        return distinct.pop() if len(distinct) == 1 else ", ".join(f"{tag}.{text}" for tag, text in texts.items())


@dataclass(frozen=True)
class Pipeline:
    """A streaming job, independent of engines. Every method returns a new pipeline.

    Args:
        name: part of the id of every record that it emits.
        schema: the event type of its single source; leave it out and call `source` when there are several.
        out_of_orderness, idleness, max_future, max_jump: see `SourceSpec`, for all sources that do not say otherwise.
        key_groups: number of key groups; can't be changed once there is state.

    >>> from streamml.operators import Filter
    >>> class Click(Event, id="id", key="user", time="ts"):
    ...     id: str
    ...     user: str
    ...     ts: int
    >>> p = Pipeline("clicks", schema=Click, out_of_orderness="2s").then(Filter(lambda e: e.user != "bot")).select("id")
    >>> print(p.tree())
    pipeline clicks
    ├── source clicks: Click, out of order up to 2s, idle after 30s
    ├── filter
    └── sink: id
    """

    name: str
    schema: dataclasses.InitVar[type[Event] | None] = None
    out_of_orderness: Duration = 0
    idleness: Duration = "30s"
    max_future: Duration = "1d"
    max_jump: Duration = "1h"
    key_groups: int = KEY_GROUPS
    sources: tuple[SourceSpec, ...] = ()
    stages: tuple[StageSpec, ...] = (StageSpec("source", None, ()),)
    selected: tuple[str, ...] | None = None
    sink_uri: str | None = None
    side_uris: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self, schema: type[Event] | None) -> None:
        for option in ("out_of_orderness", "idleness", "max_future", "max_jump"):
            try:
                millis = to_millis(getattr(self, option), where=f"pipeline {self.name!r}, {option}=")
            except ValueError as exc:
                raise PlanError(str(exc)) from exc
            object.__setattr__(self, option, millis)
        if not self.name or "/" in self.name:
            msg = f"pipeline name: wanted a short name without '/', got {self.name!r}"
            raise PlanError(msg)
        if schema is not None:
            object.__setattr__(self, "sources", (self._source(self.name, schema),))

    def source(self, tag: str, schema: type[Event], *, uri: str | None = None, **options: Any) -> Pipeline:
        """Add a source; events of several sources meet in the keyed stages, told apart by `event.tag`."""
        if any(s.tag == tag for s in self.sources):
            msg = f"pipeline {self.name!r}: there is a source {tag!r} already; give each source a tag of its own"
            raise PlanError(msg)
        if self._touched():
            msg = f"pipeline {self.name!r}: source({tag!r}) must come before the first step"
            raise PlanError(msg)
        return self._with(sources=(*self.sources, self._source(tag, schema, uri=uri, **options)))

    def then(self, operator: Operator) -> Pipeline:
        """Add an operator to the current stage.

        Raises:
            PlanError: it needs a key and there is none, reads a field that nothing provides, or has the name of
            another one.
        """
        if not isinstance(operator, Operator):
            hint = " Did you forget to call its class?" if isinstance(operator, type) else ""
            msg = f"pipeline {self.name!r}, then: wanted an operator such as Dedupe(ttl='1h'), got {operator!r}.{hint}"
            raise PlanError(msg)
        self._open("then", operator.name)
        if any(op.name == operator.name for op in self.operators):
            msg = (
                f"pipeline {self.name!r}: two operators are named {operator.name!r}; give one of them another name "
                f"({type(operator).__name__}(..., name=...)): names are part of record ids and of stored state"
            )
            raise PlanError(msg)
        stage = self.stages[-1]
        if (operator.keyed or operator.bound_states()) and stage.selector is None:
            msg = (
                f"pipeline {self.name!r}: {type(operator).__name__} needs a key; call key_by(field) before "
                f"then({operator.name})"
            )
            raise PlanError(msg)
        if operator.defines("on_timer") and not operator.keyed:
            msg = f"{type(operator).__name__} defines on_timer, so it must be a KeyedOperator: timers belong to a key"
            raise PlanError(msg)
        self._check_fields(f"{type(operator).__name__}(name={operator.name!r})", operator.reads())
        grown = dataclasses.replace(stage, operators=(*stage.operators, operator))
        return self._with(stages=(*self.stages[:-1], grown))

    def key_by(
        self, selector: str | Callable[[Any], Any] | None = None, /, *, name: str | None = None, **by_tag: Any
    ) -> Pipeline:
        """Start a keyed stage: by a field, by a function of the event, or for each source by one (`tag=field`).

        Called again, it changes the key for what follows.
        """
        self._open("key_by", str(selector))
        tags = [s.tag for s in self.sources]
        if (selector is None) == (not by_tag):
            msg = (
                f"pipeline {self.name!r}, key_by: wanted one field or function, or one for each source "
                f"({', '.join(tags)})"
            )
            raise PlanError(msg)
        if by_tag and set(by_tag) != set(tags):
            odd = sorted(set(by_tag) ^ set(tags))
            msg = (
                f"pipeline {self.name!r}, key_by: needs exactly one entry for each source ({', '.join(tags)}); "
                f"check {', '.join(odd)}"
            )
            raise PlanError(msg)
        chosen: dict[str, Any] = by_tag or {tag: selector for tag in tags}
        for tag, each in chosen.items():
            if isinstance(each, str):
                self._check_fields(f"key_by({each!r})", [each], tag)
            elif not callable(each):
                msg = f"pipeline {self.name!r}, key_by: wanted the name of a field or a function, got {each!r}"
                raise PlanError(msg)
        stage = StageSpec(name or f"stage{len(self.stages)}", chosen, ())
        return self._with(stages=(*self.stages, stage))

    def select(self, *fields: str) -> Pipeline:
        """Name the fields of the main output; the last step."""
        self._open("select", str(fields))
        self._check_fields("select", [f for f in fields if f not in ("id", "key", "timestamp", "tag")])
        return self._with(selected=fields)

    def sink(self, uri: str) -> Pipeline:
        """Say where the main output goes; the command line may say otherwise."""
        return self._with(sink_uri=uri)

    def side(self, name: str, uri: str) -> Pipeline:
        """Say where a side output goes.

        Raises:
            PlanError: no operator emits it.
        """
        if name not in self.sides:
            where = f"pipeline {self.name!r}, side"
            raise PlanError.unknown(where, "side output", name, self.sides)
        return self._with(side_uris={**self.side_uris, name: uri})

    @property
    def operators(self) -> tuple[Operator, ...]:
        """All operators in order."""
        return tuple(op for stage in self.stages for op in stage.operators)

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of all side outputs."""
        return tuple(dict.fromkeys((*RUNTIME_SIDES, *(side for op in self.operators for side in op.sides))))

    @property
    def fields(self) -> frozenset[str] | None:
        """Fields that an event has after the last step, whatever its source; None if that is not known."""
        known = [self._fields_of(s.tag) for s in self.sources]
        if not known or None in known:
            return None
        return frozenset.intersection(*known)  # type: ignore[arg-type]

    def check(self) -> None:
        """Check what can be checked only when the pipeline is complete; engines call it first.

        Raises:
            PlanError: there is no source.
        """
        if not self.sources:
            msg = f"pipeline {self.name!r} has no source: pass schema=, or call source(tag, schema)"
            raise PlanError(msg)

    def tree(self) -> str:
        """Return the plan as a tree."""
        lines: list[tuple[int, str]] = [(0, _describe_source(s)) for s in self.sources]
        for stage in self.stages:
            depth = 0
            if stage.selector is not None:
                lines.append((0, f"key by {stage.describe_key()}"))
                depth = 1
            lines += [(depth, _describe_operator(op)) for op in stage.operators]
        lines.append((0, "sink: " + (", ".join(self.selected) if self.selected else "all fields")))
        text = [f"pipeline {self.name}"]
        for i, (depth, line) in enumerate(lines):
            rest = [d for d, _ in lines[i + 1 :]]
            last_here = next((d for d in rest if d <= depth), -1) < depth
            outer = "│   " if depth and 0 in rest else "    " if depth else ""
            text.append(f"{outer}{'└──' if last_here else '├──'} {line}")
        return "\n".join(text)

    def mermaid(self) -> str:
        """Return the plan as a Mermaid flowchart."""
        lines = ["flowchart LR"]
        lines += [f'  s{i}[("{s.tag}")] --> n0' for i, s in enumerate(self.sources)]
        number = 0
        lines.append(f'  n0(["{self.name}"])')
        for stage in self.stages:
            edge = f'-->|"{stage.describe_key()}"|' if stage.selector is not None else "-->"
            for op in stage.operators:
                lines.append(f'  n{number} {edge} n{number + 1}["{op.name}"]')
                edge = "-->"
                number += 1
                lines += [f'  n{number} -.->|{side}| {side}[/"{side}"/]' for side in op.sides]
        lines.append(f'  n{number} --> sink[("sink")]')
        return "\n".join(lines)

    def _source(self, tag: str, schema: type[Event], **options: Any) -> SourceSpec:
        if not (isinstance(schema, type) and issubclass(schema, Event)):
            msg = (
                f"pipeline {self.name!r}, source {tag!r}: the schema must be a subclass of streamml.Event, got "
                f"{schema!r}"
            )
            raise PlanError(msg)
        if roles(schema).time is None:
            msg = f"schema {schema.__name__}: no time field; declare it: class {schema.__name__}(Event, time='ts', ...)"
            raise PlanError(msg)
        merged: dict[str, Any] = {"uri": options.pop("uri", None)}
        for option in ("out_of_orderness", "idleness", "max_future", "max_jump"):
            merged[option] = to_millis(options.pop(option, getattr(self, option)), where=f"source {tag!r}, {option}=")
        if options:
            where = f"source {tag!r}"
            raise PlanError.unknown(where, "option", next(iter(options)), merged)
        return SourceSpec(tag, schema, **merged)

    def _fields_of(self, tag: str) -> frozenset[str] | None:
        schema = next(s.schema for s in self.sources if s.tag == tag)
        known: frozenset[str] | None = frozenset(schema.__struct_fields__)
        for operator in self.operators:
            known = operator.fields_after(known)
        return known

    def _check_fields(self, where: str, names: Sequence[str] | Any, tag: str | None = None) -> None:
        known = self._fields_of(tag) if tag is not None else self.fields
        if known is not None:
            for name in names:
                if name not in known:
                    place = f"pipeline {self.name!r}, {where}"
                    raise PlanError.unknown(place, "field", name, known)

    def _open(self, call: str, what: str) -> None:
        if self.selected is not None:
            msg = f"pipeline {self.name!r}: {call}({what}) comes after select; select must be the last step"
            raise PlanError(msg)
        if not self.sources:
            msg = (
                f"pipeline {self.name!r}: {call}({what}) needs a source first: pass schema=, or call "
                "source(tag, schema)"
            )
            raise PlanError(msg)

    def _touched(self) -> bool:
        return len(self.stages) > 1 or bool(self.stages[0].operators) or self.selected is not None

    def _with(self, **changes: Any) -> Pipeline:
        return dataclasses.replace(self, schema=None, **changes)


def _describe_source(source: SourceSpec) -> str:
    return (
        f"source {source.tag}: {source.schema.__name__}, out of order up to "
        f"{format_duration(source.out_of_orderness)}, "
        f"idle after {format_duration(source.idleness)}"
    )


def _describe_operator(operator: Operator) -> str:
    adds = ", ".join(operator.adds())
    sides = ", ".join(operator.sides)
    return operator.name + (f" + {adds}" if adds else "") + (f"  ⇢ {sides}" if sides else "")
