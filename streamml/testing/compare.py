"""The one comparison of what came out with what was expected; it owns every rule about order and rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streamml.records import as_dict
from streamml.testing.case import Expected, Row
from streamml.testing.result import Result

__all__ = ["compare", "expected_of", "same"]

TOLERANCE = 1e-9
"""Relative difference that two floats may have."""


def compare(result: Result, expected: Expected) -> list[str]:
    """Return the differences as text; empty if there are none.

    The main output: for each key the same records in the same order, whatever the order across keys. A record: key,
    event time, exactly the expected fields, and the id if one is expected. Side outputs: likewise by name, key and
    operator (two operators of a chain see a micro-batch one after the other), but of a record only the fields that are
    expected; one that is not expected must be empty. Floats may differ by a relative 1e-9; NaN equals NaN.

    >>> compare(Result(sides={"late": [{"key": "k", "id": "a"}]}), Expected())
    ["side 'late', key ('k', None), 0: not expected: {'key': 'k', 'id': 'a'}"]
    """
    got = _by_key((record.key, _row(record)) for record in result.main)
    wanted = _by_key((row.key, row) for row in expected.main)
    found = _differences("main", got, wanted, _same_row)
    for name in dict.fromkeys((*expected.sides, *result.sides)):
        if name not in result.sides:
            found.append(f"side {name!r}: there is no such side output")
            continue
        found += _differences(f"side {name!r}", *_sides(result.sides[name], expected.sides.get(name, ())), _same_part)
    return found


def expected_of(result: Result) -> Expected:
    """Return a result as an expectation, so that two runs can be compared."""
    return Expected([_row(record) for record in result.main], result.sides)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal up to rounding."""
    if isinstance(one, float) and isinstance(other, int | float) and not isinstance(other, bool):
        return (one != one and other != other) or math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(other, float) and isinstance(one, int) and not isinstance(one, bool):
        return same(other, one)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _row(record: Any) -> Row:
    return Row(record.key, record.timestamp, as_dict(record), record.id)


def _by_key(items: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for key, item in items:
        found.setdefault(_hashable(key), []).append(item)
    return found


def _sides(
    got: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Group side records by key and operator; what is expected of an unnamed one is of the only one that there is."""
    names: dict[Any, set[Any]] = {}
    for record in got:
        names.setdefault(_hashable(record.get("key")), set()).add(record.get("operator"))

    def place(record: Mapping[str, Any]) -> Any:
        key = record.get("key")
        known = names.get(_hashable(key), set())
        return key, record.get("operator", next(iter(known)) if len(known) == 1 else None)

    return _by_key((place(record), record) for record in got), _by_key((place(record), record) for record in wanted)


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list | tuple) else key


def _same_row(got: Row, wanted: Row) -> bool:
    return (
        got.timestamp == wanted.timestamp
        and (wanted.id is None or got.id == wanted.id)
        and same(dict(got.fields), dict(wanted.fields))
    )


def _same_part(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in got and same(got[name], value) for name, value in wanted.items())


def _differences(
    where: str, got: Mapping[Any, Sequence[Any]], wanted: Mapping[Any, Sequence[Any]], equal: Any
) -> list[str]:
    found: list[str] = []
    for key in dict.fromkeys((*wanted, *got)):
        mine, theirs = got.get(key, ()), wanted.get(key, ())
        for number in range(max(len(mine), len(theirs))):
            place = f"{where}, key {key!r}, {number}"
            if number >= len(mine):
                found.append(f"{place}: missing: {theirs[number]!r}")
            elif number >= len(theirs):
                found.append(f"{place}: not expected: {mine[number]!r}")
            elif not equal(mine[number], theirs[number]):
                found.append(f"{place}: wanted {theirs[number]!r}, got {mine[number]!r}")
    return found
