"""Aggregates computed from the list of the events that count, by their definition."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamml.errors import RecordError
from streamml.records import Record
from streamml.times import MIN_TIME, to_millis

__all__ = ["Seen", "check", "evaluate"]


@dataclass(frozen=True)
class Seen:
    """An event that counts: its time and its inputs; lists of them are in order of arrival."""

    time: int
    inputs: Mapping[str, Any]


def _call(aggregate: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """Read an aggregate from its repr, which is the call that builds it."""
    call = ast.parse(repr(aggregate), mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    values = [ast.literal_eval(value) for value in call.args]
    return call.func.id, values, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


def check(row: Record, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of aggregates; raises where one is not a finite number (text too for `distinct`)."""
    inputs = {}
    for aggregate in fields.values():
        name, given, _ = _call(aggregate)
        if not given:
            continue
        value = row[given[0]]
        text = name == "distinct" and isinstance(value, str)
        if not text and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            raise RecordError(value)
        inputs[given[0]] = value
    return inputs


def evaluate(fields: Mapping[str, Any], seen: Sequence[Seen], time: int, start: int, end: int) -> dict[str, Any]:
    """Return the aggregates of the events that are seen, as of a time, in a window."""
    return {name: _one(aggregate, seen, time, start, end) for name, aggregate in fields.items()}


def _one(aggregate: Any, seen: Sequence[Seen], time: int, start: int, end: int) -> Any:
    name, given, words = _call(aggregate)
    values = [event.inputs[given[0]] for event in seen] if given else []
    times = sorted(event.time for event in seen)
    match name:
        case "count":
            return len(seen)
        case "total":
            return math.fsum(values)
        case "mean":
            return math.fsum(values) / len(values) if values else None
        case "variance":
            if len(values) <= words["ddof"]:
                return None
            middle = math.fsum(values) / len(values)
            return math.fsum((value - middle) ** 2 for value in values) / (len(values) - words["ddof"])
        case "minimum":
            return float(min(values)) if values else None
        case "maximum":
            return float(max(values)) if values else None
        case "last":
            return float(max(enumerate(seen), key=lambda n: (n[1].time, n[0]))[1].inputs[given[0]]) if seen else None
        case "since_last":
            before = times[-1] if times and time > times[-1] else times[-2] if len(times) > 1 else None
            return -1.0 if before is None else float(max(time - before, 0))
        case "ewma":
            half = to_millis(words["half_life"])
            weights = [2.0 ** ((event.time - times[-1]) / half) for event in seen]
            total = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
            return total / math.fsum(weights) if seen else None
        case "rate":
            return _rate(times, to_millis(words["per"]), time, start, end)
        case "distinct":
            return len(set(values))
        case "quantile":
            ranked = sorted(values)
            return float(ranked[max(math.ceil(given[1] * len(ranked)) - 1, 0)]) if ranked else None
    msg = f"no reference for the aggregate {aggregate!r}"
    raise NotImplementedError(msg)


def _rate(times: Sequence[int], per: int, time: int, start: int, end: int) -> float:
    if not times:
        return 0.0
    begin = times[0] if start <= MIN_TIME else start
    shortest = min(per, end - start) if end > start else per
    return len(times) * per / max(min(time, end) - begin, shortest)
