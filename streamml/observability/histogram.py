"""The metric objects which the hot loop holds: counters, gauges and histograms."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Counter", "Gauge", "Histogram", "HistogramState"]


class Counter:
    """A number that only grows. One thread writes it; any thread may read it.

    >>> events = Counter()
    >>> events.inc()
    >>> events.inc(41)
    >>> events.value
    42.0
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, n: float = 1) -> None:
        """Add `n`, which must not be negative."""
        if n < 0:
            msg = f"a counter only grows, got inc({n}); use a gauge for what goes down"
            raise ValueError(msg)
        self.value += n


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def inc(self, n: float = 1) -> None:
        """Add `n`, which may be negative."""
        self.value += n


@dataclass(frozen=True, slots=True)
class HistogramState:
    """A copy of a histogram at one moment.

    Attributes:
        buckets: Upper edges of the buckets, in rising order; a bucket holds its edge. One open bucket follows.
        counts: Values per bucket, not cumulated; one more than edges.
        sum: Sum of the values.
        low: Least value seen; infinite if there is none.
        high: Greatest value seen.
    """

    buckets: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    low: float
    high: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Estimate a quantile from the buckets; off by a bucket's width (10 % by default) at most. NaN if empty.

        Args:
            q: Share of the values below the result, from 0 to 1.
        """
        if not 0.0 <= q <= 1.0:
            msg = f"quantile: wanted a share from 0 to 1, got {q}; the 99th percentile is quantile(0.99)"
            raise ValueError(msg)
        rank = q * self.count
        below = 0
        for i, n in enumerate(self.counts):
            if n and below + n >= rank:
                # Never outside what was seen, so the open buckets at both ends have limits too.
                low = max(self.buckets[i - 1] if i else self.low, self.low)
                high = min(self.buckets[i] if i < len(self.buckets) else self.high, self.high)
                part = (rank - below) / n
                return low * (high / low) ** part if low > 0.0 and high > low else low + (high - low) * part
            below += n
        return math.nan


class Histogram:
    """Counts of values in buckets. One thread writes it; any thread may read it.

    >>> latency = Histogram([0.001, 0.01, 0.1, 1.0])
    >>> latency.observe(0.005)
    >>> latency.observe(0.05, n=2)
    >>> latency.observe_many([0.5, 0.7])
    >>> latency.state().counts
    (0, 1, 2, 2, 0)
    """

    __slots__ = ("_counts", "_edges", "_high", "_low", "_sum", "buckets")

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = tuple(buckets)
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            msg = f"histogram: wanted upper edges in rising order, got {list(self.buckets)[:5]}; see log_buckets"
            raise ValueError(msg)
        self._edges = np.asarray(self.buckets, dtype=np.float64)
        self._counts = [0] * (len(self.buckets) + 1)
        self._sum = 0.0
        self._low = math.inf
        self._high = -math.inf

    def observe(self, value: float, n: int = 1) -> None:
        """Count a value `n` times."""
        self._counts[bisect_left(self.buckets, value)] += n
        self._sum += value * n
        if value < self._low:
            self._low = value
        if value > self._high:
            self._high = value

    def observe_many(self, values: npt.ArrayLike) -> None:
        """Count each value once; for a batch, cheaper than a loop of `observe`."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return
        found = np.bincount(np.searchsorted(self._edges, array, side="left"))
        for i in np.flatnonzero(found).tolist():
            self._counts[i] += int(found[i])
        self._sum += float(array.sum())
        self._low = min(self._low, float(array.min()))
        self._high = max(self._high, float(array.max()))

    def quantile(self, q: float) -> float:
        """Estimate a quantile, see `HistogramState.quantile`.

        >>> latency = Histogram([0.01 * 1.1**i for i in range(50)])
        >>> latency.observe_many([0.02, 0.03, 0.04])
        >>> 0.027 < latency.quantile(0.5) < 0.033
        True
        """
        return self.state().quantile(q)

    def state(self) -> HistogramState:
        """Return an unchanging copy."""
        return HistogramState(self.buckets, tuple(self._counts), self._sum, self._low, self._high)
