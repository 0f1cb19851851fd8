"""A compiled set of named aggregates: one list of accumulators, fed, merged and read in one call each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import float_info
from typing import Any, NoReturn

from streamml.errors import PlanError, RecordError, StateError
from streamml.operators.aggregates import (
    Aggregate,
    Count,
    Greatest,
    LastTimes,
    Least,
    Newest,
    Part,
    Sum,
    the_mean,
    the_newest,
    the_time_since,
    the_value,
)

__all__ = ["Aggregation"]

_FORMAT = "v1"
_HUGE = float_info.max

# The commonest parts and results as source text, so that `add`, `merge` and `results` are one plain function each
# without a call per part. {i} is the part's place, a{i} its accumulator (the older one), b{i} the newer one, {x} the
# value. The methods of the classes are the definition; a test compares each text with its method.
_ADD: dict[type[Part], str] = {
    Count: "accs[{i}] = a{i} + 1",
    Sum: "accs[{i}] = a{i} + {x}",
    Least: "if a{i} is None or {x} < a{i}: accs[{i}] = float({x})",
    Greatest: "if a{i} is None or {x} > a{i}: accs[{i}] = float({x})",
    Newest: "if time >= a{i}[0]: accs[{i}] = (time, float({x}))",
    LastTimes: "accs[{i}] = (a{i}[1], time) if a{i}[1] is None or time >= a{i}[1] else add{i}(a{i}, None, time)",
}
_MERGE: dict[type[Part], str] = {
    Count: "a{i} + b{i}",
    Sum: "a{i} + b{i}",
    Least: "b{i} if a{i} is None or (b{i} is not None and b{i} < a{i}) else a{i}",
    Greatest: "b{i} if a{i} is None or (b{i} is not None and b{i} > a{i}) else a{i}",
    Newest: "b{i} if b{i}[1] is not None and b{i}[0] >= a{i}[0] else a{i}",
}
_RESULT: dict[Callable[..., Any], str] = {
    the_value: "{0}",
    the_mean: "({1} / {0} if {0} else None)",
    the_newest: "{0}[1]",
    the_time_since: "(float(time - {0}[0]) if {0}[1] == time and {0}[0] is not None"
    " else finish{k}({0}, time, start, end))",
}


class Aggregation:
    """Named aggregates over the same events.

    Order of calls for each event: `check(row)`, which raises before anything has changed, then `add`. Accumulators are
    a list that belongs to the caller; `add` changes it, nothing else does.

    Attributes:
        inputs: fields whose values make a row, in this order.
        names: names of the results, in the order given.
        dtypes: type of each result, in the same order.
        parts: the shared accumulators, in the order of the list.
        plain: True if accumulators are their own wire form, so that `to_wire` and `from_wire` need not be called.
        signature: stable text about the accumulators; stored ones fit only where it is the same.

    >>> from streamml.operators.aggregates import count, maximum, mean
    >>> stats = Aggregation({"n": count(), "mean": mean("amount"), "max": maximum("amount")})
    >>> stats.inputs, stats.signature
    (('amount',), 'v1|count|greatest(amount)|sum(amount)')
    >>> accs = stats.new()
    >>> for amount in (1.0, 2.0, 6.0):
    ...     stats.add(accs, (amount,), 0)
    >>> stats.results(accs, 0, 0, 1000)
    (3, 3.0, 6.0)

    Args:
        fields: aggregates by the name of their result.

    Raises:
        PlanError: there is none, a name is empty, or a value is not an aggregate.
    """

    add: Callable[[list[Any], Sequence[Any], int], None]
    """Add one event to the accumulators: its row (the values of `inputs`, checked) and its time."""
    merge: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    """Return new accumulators of the events of both, the older ones first; the inputs stay as they are."""
    results: Callable[[Sequence[Any], int, int, int], tuple[Any, ...]]
    """Return the results in the order of `names` for (accumulators, time, start, end), see `Aggregate`."""
    step: Callable[[list[Any], Sequence[Any], int, int, int], tuple[Any, ...]]
    """Add one event and return the results.

    `add` and `results` in one call, for (accumulators, row, time, start, end).
    """

    def __init__(self, fields: Mapping[str, Aggregate]) -> None:
        self.fields = dict(fields)
        _check_fields(self.fields)
        self.names = tuple(self.fields)
        aggregates = tuple(self.fields.values())
        self.dtypes = tuple(aggregate.dtype for aggregate in aggregates)
        unique = dict.fromkeys(part for aggregate in aggregates for part in aggregate.parts)
        # Ordered by label: stored state does not depend on the order or on the names of the results.
        self.parts: tuple[Part, ...] = tuple(sorted(unique, key=lambda part: part.label))
        self.inputs: tuple[str, ...] = tuple(dict.fromkeys(part.reads for part in unique if part.reads is not None))
        self.plain = all(part.plain for part in self.parts)
        self.signature = "|".join([_FORMAT, *(part.label for part in self.parts)])
        numeric = {part.reads for part in self.parts if not part.text}
        self._text = tuple(name not in numeric for name in self.inputs)
        self._any_text = any(self._text)
        self._inits = tuple(part.init for part in self.parts)
        self._fresh = [init() for init in self._inits] if self.plain else None
        self.add, self.merge, self.results, self.step = _compile(self.parts, aggregates, self.inputs)

    def __reduce__(self) -> tuple[type[Aggregation], tuple[dict[str, Aggregate]]]:
        return Aggregation, (self.fields,)

    def new(self) -> list[Any]:
        """Return the accumulators of no event."""
        if self._fresh is not None:  # plain accumulators can't be changed in place, so all may start from the same ones
            return self._fresh.copy()
        return [init() for init in self._inits]

    def check(self, row: Sequence[Any]) -> None:
        """Refuse a row that `add` can't take.

        A number is a finite `float`, an `int` or a `bool`; NumPy's are refused, since sums of them are not plain.
        `distinct` takes text too.

        Raises:
            RecordError: the value of some field is not a number; names the field.
        """
        if self._any_text:
            self._check_text(row)
            return
        for value in row:
            kind = type(value)
            if kind is float:
                if value - value == 0.0:  # neither NaN nor infinite
                    continue
            elif (kind is int and -_HUGE <= value <= _HUGE) or kind is bool:
                continue
            self._refuse(row)

    def to_wire(self, accs: Sequence[Any]) -> list[Any]:
        """Return the accumulators as data that msgpack can write."""
        if self.plain:
            return list(accs)
        return [part.to_wire(acc) for part, acc in zip(self.parts, accs, strict=True)]

    def from_wire(self, wire: Sequence[Any]) -> list[Any]:
        """Return the accumulators that `to_wire` gave.

        Raises:
            StateError: there are more or fewer of them than parts.
        """
        if len(wire) != len(self.parts):
            msg = (
                f"stored aggregates: wanted {len(self.parts)} accumulators ({self.signature}), got {len(wire)}. "
                "They were written for other aggregates: restore the pipeline that wrote them, or start with new state."
            )
            raise StateError(msg)
        if self.plain:
            return list(wire)
        return [part.from_wire(acc) for part, acc in zip(self.parts, wire, strict=True)]

    def _check_text(self, row: Sequence[Any]) -> None:
        for value, text in zip(row, self._text, strict=True):
            if not _is_number(value) and not (text and type(value) is str):
                self._refuse(row)

    def _refuse(self, row: Sequence[Any]) -> NoReturn:
        for name, value, text in zip(self.inputs, row, self._text, strict=True):
            if _is_number(value) or (text and type(value) is str):
                continue
            users = [key for key, agg in self.fields.items() if any(part.reads == name for part in agg.parts)]
            wanted = "text or a finite number" if text else "a finite number (a plain int or float)"
            kind = type(value)
            module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            msg = (
                f"field {name!r}, of which {', '.join(users)} is taken: wanted {wanted}, got {repr(value)[:80]} "
                f"({module}{kind.__qualname__}). "
                "Filter such events out or give the field a default before this operator."
            )
            raise RecordError(msg)
        msg = f"a row of aggregates: wanted the values of {self.inputs}, got {row!r}"
        raise RecordError(msg)


def _is_number(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return bool(value - value == 0.0)
    return (kind is int and -_HUGE <= value <= _HUGE) or kind is bool


def _check_fields(fields: Mapping[str, Aggregate]) -> None:
    if not fields:
        msg = "aggregates: wanted at least one, such as {'n': count()}, got none"
        raise PlanError(msg)
    for name, aggregate in fields.items():
        if not isinstance(name, str) or not name:
            msg = f"aggregates: wanted a name for the result of {aggregate!r}, got {name!r}"
            raise PlanError(msg)
        if not isinstance(aggregate, Aggregate):
            shown = getattr(aggregate, "__name__", None)
            hint = f"Did you mean {shown}(...)?" if shown else "Write it as count() or mean('amount')."
            msg = f"aggregates, {name!r}: wanted an aggregate, got {aggregate!r}. {hint}"
            raise PlanError(msg)


def _compile(
    parts: tuple[Part, ...], aggregates: tuple[Aggregate, ...], inputs: tuple[str, ...]
) -> tuple[Any, Any, Any, Any]:
    """Return the functions `add`, `merge`, `results` and `step`.

    Only numbers of parts and inputs enter their source.
    """
    scope: dict[str, Any] = {}
    add, merge, results = [], [], []
    for i, part in enumerate(parts):
        x = "None" if part.reads is None else f"x{inputs.index(part.reads)}"
        scope[f"add{i}"], scope[f"merge{i}"] = part.add, part.merge
        add.append(_ADD.get(type(part), "accs[{i}] = add{i}(a{i}, {x}, time)").format(i=i, x=x))
        merge.append(_MERGE.get(type(part), "merge{i}(a{i}, b{i})").format(i=i))
    for k, aggregate in enumerate(aggregates):
        own = [f"a{parts.index(part)}" for part in aggregate.parts]
        scope[f"finish{k}"] = aggregate.finish
        text = _RESULT.get(aggregate.finish, f"finish{k}({', '.join(own)}, time, start, end)")
        results.append(text.format(*own, k=k))
    accs = "".join(f"a{i}, " for i in range(len(parts)))
    row = "".join(f"x{j}, " for j in range(len(inputs)))
    lines = [
        "def add(accs, row, time):",
        f" {accs} = accs",
        *([f" {row} = row"] if inputs else []),
        *(f" {line}" for line in add),
        "def merge(older, newer):",
        f" {accs} = older",
        f" {accs.replace('a', 'b')} = newer",
        f" return [{', '.join(merge)}]",
        "def results(accs, time, start, end):",
        f" {accs} = accs",
        f" return ({', '.join(results)},)",
        "def step(accs, row, time, start, end):",
        f" {accs} = accs",
        *([f" {row} = row"] if inputs else []),
        *(f" {line}" for line in add),
        f" {accs} = accs",
        f" return ({', '.join(results)},)",
    ]
    exec("\n".join(lines), scope)
    return scope["add"], scope["merge"], scope["results"], scope["step"]
