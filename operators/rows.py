"""The input rows of aggregates from the columns of a batch, and columns from their results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from math import isnan
from typing import Any

from streamml.errors import RecordError
from streamml.operators.aggregation import Aggregation
from streamml.records import Batch

__all__ = ["checked_rows", "columns", "kept"]

_FINITE = frozenset((float, int))
_SAFE = 1e300


def checked_rows(batch: Batch, aggregation: Aggregation) -> tuple[dict[int, RecordError], Sequence[Sequence[Any]]]:
    """Return which rows the aggregates can't take, with the reason, and the input rows of all."""
    names = aggregation.inputs
    if not names:
        return {}, list(repeat((), len(batch)))
    columns = [batch.column(name) for name in names]
    rows = list(zip(*columns, strict=True))
    numbers = all(
        set(map(type, column)) <= _FINITE and min(column) > -_SAFE and max(column) < _SAFE for column in columns
    )
    # NaN compares false with everything, so min and max can miss it; a sum can't.
    if numbers and not any(isnan(sum(column)) for column in columns):
        return {}, rows
    bad: dict[int, RecordError] = {}
    for number, row in enumerate(rows):
        try:
            aggregation.check(row)
        except RecordError as exc:
            bad[number] = exc
    return bad, rows


def columns(aggregation: Aggregation, results: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the columns of results that were made row by row."""
    if not results:
        return {name: [] for name in aggregation.names}
    return dict(zip(aggregation.names, map(list, zip(*results, strict=True)), strict=True))


def kept(batch: Batch, lost: list[int]) -> Batch:
    """Return the batch without the rows that were lost."""
    if not lost:
        return batch
    gone = set(lost)
    return batch.take([row for row in range(len(batch)) if row not in gone])
