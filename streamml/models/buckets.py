"""Batches of inputs of variable length: rows of about the same length are padded to one length and scored together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array

__all__ = ["Bucket", "Buckets"]


class Bucket(NamedTuple):
    """Rows that are scored together.

    Attributes:
        rows: their places in what was given.
        batch: their values, padded to one length: `[rows, length, ...]`.
        lengths: their own lengths, as int64.
    """

    rows: list[int]
    batch: Array
    lengths: Array


class Buckets:
    """Groups arrays by length, so that short rows are not padded to the longest of the batch.

    A pure function: what a row is padded to depends on the row alone, so its score does not depend on its neighbours.

    Args:
        lengths: lengths to pad to, rising; longer rows are refused.
        pad: value of the padding.

    >>> buckets = Buckets((2, 4), pad=-1)
    >>> for bucket in buckets.groups([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]):
    ...     print(bucket.rows, bucket.batch.tolist(), bucket.lengths.tolist())
    [1, 2] [[4, -1], [5, 6]] [1, 2]
    [0] [[1, 2, 3, -1]] [3]
    """

    def __init__(self, lengths: Sequence[int], pad: Any = 0) -> None:
        self.lengths = tuple(lengths)
        self.pad = pad
        if not self.lengths or self.lengths[0] < 1 or list(self.lengths) != sorted(set(self.lengths)):
            msg = f"Buckets: wanted rising lengths of at least 1, such as (16, 32, 64), got {list(lengths)}"
            raise ModelError(msg)

    def groups(self, arrays: Sequence[Array]) -> list[Bucket]:
        """Return the rows by bucket, shortest first, in each in the order given.

        Args:
            arrays: one array a row; the first dimension is the one of variable length.

        Raises:
            ModelError: a row is longer than the longest bucket, or the rows differ in type or in other dimensions.
        """
        found: dict[int, list[int]] = {}
        for row, array in enumerate(arrays):
            if array.ndim < 1 or array.dtype != arrays[0].dtype or array.shape[1:] != arrays[0].shape[1:]:
                like = ", ".join(["?", *map(str, arrays[0].shape[1:])])
                msg = (
                    f"Buckets: row {row}: wanted {arrays[0].dtype}[{like}] as in row 0, got "
                    f"{array.dtype}{list(array.shape)}; convert it"
                )
                raise ModelError(msg)
            at = bisect_left(self.lengths, len(array))
            if at == len(self.lengths):
                msg = (
                    f"Buckets: row {row}: wanted at most {self.lengths[-1]} values, got {len(array)}; cut it, or add a "
                    "longer bucket"
                )
                raise ModelError(msg)
            found.setdefault(self.lengths[at], []).append(row)
        return [self._bucket(arrays, found[length], length) for length in sorted(found)]

    def run(
        self, arrays: Sequence[Array], call: Callable[[Array, Array], Array], *, by_position: bool = False
    ) -> list[Array]:
        """Call once per bucket with its padded batch and lengths; return the results of the rows in the order given.

        Args:
            arrays: one array a row.
            call: takes a batch and the lengths of its rows, returns an array with one result per row.
            by_position: the results have one value for each position, so what stands for padding is cut off.

        Raises:
            ModelError: the rows don't fit, or the call does not return one result per row.

        >>> double = Buckets((2, 4)).run([np.array([1, 2, 3]), np.array([4])], lambda x, n: 2 * x, by_position=True)
        >>> [row.tolist() for row in double]
        [[2, 4, 6], [8]]
        """
        found: dict[int, Array] = {}
        for bucket in self.groups(arrays):
            results = np.asarray(call(bucket.batch, bucket.lengths))
            wanted = bucket.batch.shape[: 1 + by_position]
            if results.shape[: len(wanted)] != wanted:
                msg = f"Buckets: wanted results whose shape begins with {list(wanted)}, got {list(results.shape)}"
                raise ModelError(msg)
            for row, length, result in zip(bucket.rows, bucket.lengths.tolist(), results, strict=True):
                found[row] = result[:length] if by_position else result
        return [found[row] for row in range(len(arrays))]

    def _bucket(self, arrays: Sequence[Array], rows: list[int], length: int) -> Bucket:
        first = arrays[rows[0]]
        batch = np.full((len(rows), length, *first.shape[1:]), self.pad, first.dtype)
        for place, row in enumerate(rows):
            batch[place, : len(arrays[row])] = arrays[row]
        return Bucket(rows, batch, np.array([len(arrays[row]) for row in rows], np.int64))
