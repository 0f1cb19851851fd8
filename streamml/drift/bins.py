"""How one feature's values fall into bins; the layout that profiles keep and live counts follow."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from enum import Enum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["BinKind", "FeatureBins", "fit_bins", "to_numbers"]

Counts = npt.NDArray[np.int64]
_LARGEST = float(np.finfo(np.float32).max)


class BinKind(Enum):
    """What the bins of a feature are."""

    RANGES = "ranges"  # open-ended ranges between `edges`; a bin holds its upper edge
    NUMBERS = "numbers"  # one bin for each of the few numbers in `edges`, and one for all others
    LABELS = "labels"  # one bin for each text in `labels`, and one for all others


class FeatureBins(msgspec.Struct, frozen=True):
    """The bins of one feature and how many reference values fell into each.

    The last bin counts missing values (NaN and None). In front of it there is the bin above the last edge or,
    where bins are single values, the bin of all values which the reference did not have.

    Attributes:
        kind: What the bins are.
        edges: Numbers in rising order: inner limits of ranges, or the values themselves.
        labels: Texts in rising order, for `BinKind.LABELS` only.
        counts: Reference values per bin; as long as the edges (or labels) plus two.
    """

    kind: BinKind
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = self.edges == tuple(sorted(set(self.edges))) and self.labels == tuple(sorted(set(self.labels)))
        limits = len(self.edges) + len(self.labels)
        if not rising or len(self.counts) != limits + 2 or min(self.counts) < 0:
            msg = (
                f"bins of kind {self.kind.value!r}: wanted limits that rise and two counts more than limits, each at "
                f"least 0; got {limits} limits and counts {list(self.counts)}; the profile was edited: fit it again"
            )
            raise ValueError(msg)

    @property
    def n(self) -> int:
        """Number of reference values, missing ones included."""
        return sum(self.counts)

    def index(self, value: float | str | None) -> int:
        """Return the bin of one value."""
        missing = len(self.counts) - 1
        if value is None or value != value:
            return missing
        if self.kind is BinKind.LABELS:
            text = str(value)
            at = bisect_left(self.labels, text)
            return at if at < len(self.labels) and self.labels[at] == text else missing - 1
        number = float(min(max(float(value), -_LARGEST), _LARGEST))
        if self.kind is BinKind.RANGES:
            return bisect_left(self.edges, number)
        number = float(np.float32(number))
        at = bisect_left(self.edges, number)
        return at if at < len(self.edges) and self.edges[at] == number else missing - 1

    def count(self, values: npt.NDArray[Any]) -> Counts:
        """Return how many of the values fall into each bin; equal to counting `index` of each."""
        if self.kind is BinKind.LABELS:
            found = np.array([self.index(v) for v in values.tolist()], dtype=np.int64)
            return np.bincount(found, minlength=len(self.counts)).astype(np.int64)
        numbers = to_numbers(values)
        missing = len(self.counts) - 1
        if self.kind is BinKind.NUMBERS:
            numbers = numbers.astype(np.float32).astype(np.float64)
        edges = np.asarray(self.edges, dtype=np.float64)
        at = np.searchsorted(edges, numbers, side="left")
        if self.kind is BinKind.NUMBERS:
            known = np.append(edges, np.nan)[at] == numbers
            at = np.where(known, at, missing - 1)
        at = np.where(np.isnan(numbers), missing, at)
        return np.bincount(at, minlength=len(self.counts)).astype(np.int64)


def to_numbers(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the values as float64, None as NaN, infinities as the largest finite float32.

    Raises:
        ValueError: The values are neither numbers nor truth values.
    """
    if values.dtype.kind not in "biufO":
        msg = f"wanted numbers, truth values or text, got dtype {values.dtype}; convert it (times: to seconds as float)"
        raise ValueError(msg)
    return np.clip(values.astype(np.float64), -_LARGEST, _LARGEST)


def fit_bins(values: npt.NDArray[Any], bins: int) -> FeatureBins:
    """Choose the bins of one feature from its reference values, and count them.

    Text gets a bin per label, the `bins` commonest when there are more. Numbers with at most `bins` different
    values (compared as float32, so that the width of a live column does not matter) get a bin per value; other
    numbers get ranges of about equal share between quantiles, equal quantiles merged.

    >>> fit_bins(np.array(["de", "fr", "de"]), 10).labels
    ('de', 'fr')
    >>> fit_bins(np.arange(100.0), 4).edges
    (24.0, 49.0, 74.0)
    """
    if values.dtype.kind in "UO":
        present_values = [v for v in values.tolist() if v is not None and v == v]
        if all(isinstance(v, str) for v in present_values):
            return _counted(BinKind.LABELS, (), _commonest(present_values, bins), values)
    numbers = to_numbers(values)
    present = numbers[~np.isnan(numbers)]
    few = np.unique(present.astype(np.float32).astype(np.float64))
    if len(few) <= bins:
        return _counted(BinKind.NUMBERS, tuple(few.tolist()), (), values)
    shares = np.arange(1, bins) / bins
    # The inverted CDF gives values of the sample itself, so that ties stay in one bin.
    edges = np.unique(np.quantile(present, shares, method="inverted_cdf"))
    return _counted(BinKind.RANGES, tuple(edges.tolist()), (), values)


def _counted(kind: BinKind, edges: tuple[float, ...], labels: tuple[str, ...], values: npt.NDArray[Any]) -> FeatureBins:
    empty = FeatureBins(kind, edges, labels, (0,) * (len(edges) + len(labels) + 2))
    return msgspec.structs.replace(empty, counts=tuple(empty.count(values).tolist()))


def _commonest(labels: Iterable[str], most: int) -> tuple[str, ...]:
    shares: dict[str, int] = {}
    for label in labels:
        shares[label] = shares.get(label, 0) + 1
    return tuple(sorted(sorted(shares, key=lambda label: (-shares[label], label))[:most]))
