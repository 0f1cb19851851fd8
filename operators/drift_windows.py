"""What `DriftMonitor` keeps: counts per bin of the windows that are not judged yet; and how any value is counted."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamml.drift import BinKind, FeatureBins

__all__ = ["Counts", "Tally", "Windows", "bin_names", "layout_of"]

Counts: TypeAlias = npt.NDArray[np.int64]


class Windows:
    """The windows that are not judged yet: the counts of each feature, by the window's start.

    Attributes:
        layout: what was counted into which bins, see `layout_of`.
        counts: counts per bin for each feature.
    """

    __slots__ = ("counts", "layout")

    def __init__(self, layout: str = "", counts: dict[int, list[Counts]] | None = None) -> None:
        self.layout = layout
        self.counts = counts if counts is not None else {}

    def to_wire(self) -> Any:
        """Return it as plain data, the same for the same counts."""
        return [self.layout, [[start, [c.tolist() for c in self.counts[start]]] for start in sorted(self.counts)]]

    @staticmethod
    def from_wire(wire: Any) -> Windows:
        """Rebuild it."""
        layout, windows = wire
        return Windows(layout, {start: [np.array(c, np.int64) for c in counts] for start, counts in windows})


class Tally:
    """Counts the values of one feature into its bins. Takes any value; what does not fit the bins counts as missing."""

    def __init__(self, bins: FeatureBins) -> None:
        self._bins = bins
        self._size = len(bins.counts)
        self._text = bins.kind is BinKind.LABELS
        self._plain = frozenset((str, NoneType) if self._text else (float, int, bool, NoneType))
        self._labels: dict[Any, int] = {label: at for at, label in enumerate(bins.labels)}
        self._labels[None] = self._size - 1

    def one(self, value: Any) -> Counts:
        """Count one value."""
        counts = np.zeros(self._size, np.int64)
        counts[self._bins.index(_as_text(value) if self._text else _as_number(value))] = 1
        return counts

    def many(self, values: list[Any]) -> Counts:
        """Count values; equal to the sum of `one` of each."""
        if set(map(type, values)) <= self._plain:
            if self._text:
                counts = np.zeros(self._size, np.int64)
                for label, n in Counter(values).items():
                    counts[self._labels.get(label, self._size - 2)] += n
                return counts
            try:
                return self._bins.count(np.asarray(values))
            except OverflowError:  # a whole number that no float can hold
                pass
        counts = np.zeros(self._size, np.int64)
        for value in values:
            counts += self.one(value)
        return counts


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def _as_text(value: Any) -> str | None:
    missing = value is None or (isinstance(value, float | np.floating) and math.isnan(value))
    return None if missing else str(value)


def layout_of(size: int, features: Mapping[str, FeatureBins]) -> str:
    """Return a short text that differs where counts can't be added up: other windows, features or bins."""
    bins = [[name, b.kind.value, b.edges, b.labels] for name, b in features.items()]
    return hashlib.sha256(msgspec.json.encode([size, bins])).hexdigest()[:16]


def bin_names(bins: FeatureBins) -> list[str]:
    """Say what each bin holds.

    >>> from streamml.drift import Profile
    >>> bin_names(Profile.fit({"amount": range(1000)}, bins=3)["amount"])
    ['up to 333.0', '333.0 to 666.0', 'above 666.0', 'missing']
    """
    if bins.kind is BinKind.RANGES:
        between = [f"{low} to {high}" for low, high in zip(bins.edges, bins.edges[1:], strict=False)]
        return [f"up to {bins.edges[0]}", *between, f"above {bins.edges[-1]}", "missing"]
    return [*map(str, bins.edges), *bins.labels, "other", "missing"]
