"""Sketches: summaries of bounded size with a known error, whose answers a replay reproduces bit for bit.

What was measured on datasketches 5.2, and what follows from it:

- Its KLL sketch flips a random coin, so two runs over the same values differ beyond `k` values. `Kll` here is the same
  algorithm with its coin in the state: seeded by the first value's time, stored with the rest, drawn in order.
- Its HLL sketch estimates from the order of arrival, which bytes do not keep: a sketch that was stored and read
  differs slightly from one that was not. `Hll` reads the estimate off the registers alone, which depend on the set of
  values and on nothing else; so it is also the same however the values were split and merged.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import ceil
from types import ModuleType
from typing import Any

from streamml.errors import PlanError

__all__ = ["Hll", "Kll", "require_datasketches"]

_MASK = 2**64 - 1
_SMALLEST = 8  # values that any level of a KLL sketch may hold


@cache
def require_datasketches() -> ModuleType:
    """Return the datasketches package, imported when it is first needed.

    Raises:
        PlanError: it is not installed.
    """
    try:
        import datasketches
    except ImportError as exc:
        msg = (
            "distinct() counts with a sketch of the package datasketches, which can't be imported here "
            f"({exc}). Install it with: pip install 'streamml[sketches]'"
        )
        raise PlanError(msg) from exc
    module: ModuleType = datasketches
    return module


class Hll:
    """Number of distinct values (HyperLogLog): about `1.04 / sqrt(2**lg_k)` of relative standard error.

    Numbers that are equal are one value, as in Python (`1 == 1.0 == True`); text is never equal to a number.

    >>> hll = Hll(11)
    >>> for word in ["a", "b", "a", 1, 1.0]:
    ...     hll.add(word)
    >>> hll.estimate()
    3
    """

    __slots__ = ("_sketch", "lg_k")

    def __init__(self, lg_k: int, sketch: Any = None) -> None:
        self.lg_k = lg_k
        if sketch is None:
            module = require_datasketches()
            sketch = module.hll_sketch(lg_k, module.HLL_8)
        self._sketch = sketch

    def add(self, value: str | float) -> None:
        """Count a value in."""
        if isinstance(value, str):
            self._sketch.update("s" + value)  # datasketches leaves an empty string out
            return
        if isinstance(value, float):
            if not value.is_integer():
                self._sketch.update(value)
                return
            value = int(value)
        self._sketch.update(value if -(2**63) <= value < 2**63 else f"i{value}")

    def merge(self, other: Hll) -> Hll:
        """Return the sketch of the values of both."""
        module = require_datasketches()
        union = module.hll_union(self.lg_k)
        union.update(self._sketch)
        union.update(other._sketch)
        return Hll(self.lg_k, union.get_result(module.HLL_8))

    def estimate(self) -> int:
        """Return about how many distinct values were added."""
        union = require_datasketches().hll_union(self.lg_k)
        union.update(self._sketch)
        union.update(self._sketch)  # a union with itself forgets the order of arrival
        estimate: float = union.get_estimate()
        return round(estimate)

    def to_bytes(self) -> bytes:
        """Return the sketch as bytes."""
        data: bytes = self._sketch.serialize_compact()
        return data

    @classmethod
    def from_bytes(cls, lg_k: int, data: bytes) -> Hll:
        """Return the sketch that `to_bytes` wrote."""
        return cls(lg_k, require_datasketches().hll_sketch.deserialize(data))


class Kll:
    """Quantiles (KLL): exact up to `k` values, then within a rank error of about `2.66 / k` (1.3 % at 200).

    Values wait in levels; one on level `h` stands for `2**h` of those that came. When there are too many, the lowest
    level that is too full is sorted and every second of its values goes one level up; a coin says which.

    >>> kll = Kll(200)
    >>> for value in range(101):
    ...     kll.add(float(value), 0)
    >>> kll.quantile(0.5), kll.quantile(0.99)
    (50.0, 99.0)
    """

    __slots__ = ("_coin", "_high", "_levels", "_limit", "_low", "_size", "_view", "k", "n")

    def __init__(self, k: int) -> None:
        self.k = k
        self.n = 0
        self._levels: list[list[float]] = [[]]
        self._size = 0
        self._limit = k
        self._low = self._high = 0.0
        self._coin = 0
        self._view: tuple[list[float], list[int]] | None = None

    def add(self, value: float, time: int) -> None:
        """Take a value in; the first one's time seeds the coin, so that two tiles do not err alike."""
        if not self.n:
            self._low = self._high = value
            self._coin = time & _MASK
        elif value < self._low:
            self._low = value
        elif value > self._high:
            self._high = value
        self.n += 1
        self._levels[0].append(value)
        self._size += 1
        self._view = None
        if self._size > self._limit:
            self._compress()

    def merge(self, newer: Kll) -> Kll:
        """Return the sketch of the values of both; neither is changed."""
        both = Kll(self.k)
        if not self.n or not newer.n:
            some = self if self.n else newer
            both._low, both._high, both._coin = some._low, some._high, some._coin
        else:
            both._low, both._high = min(self._low, newer._low), max(self._high, newer._high)
            both._coin = _turn(self._coin) ^ newer._coin
        both.n = self.n + newer.n
        both._size = self._size + newer._size
        short, long = sorted((self._levels, newer._levels), key=len)
        both._levels = [[*a, *b] for a, b in zip(self._levels, newer._levels, strict=False)]
        both._levels += [level.copy() for level in long[len(short) :]]
        both._limit = sum(_capacities(self.k, len(long)))
        both._compress()
        return both

    def quantile(self, q: float) -> float | None:
        """Return the smallest value with at least the share `q` of all values up to it; None when there is none."""
        if not self.n:
            return None
        if q <= 0.0:
            return self._low
        if q >= 1.0:
            return self._high
        if self._view is None:
            found = [value for level in self._levels for value in level]
            weights = [1 << h for h, level in enumerate(self._levels) for _ in level]
            order = sorted(range(len(found)), key=found.__getitem__)
            self._view = ([found[i] for i in order], list(accumulate([weights[i] for i in order])))
        values, ranks = self._view
        return values[bisect_left(ranks, q * self.n)]

    def to_wire(self) -> list[Any]:
        """Return the sketch as plain data: count, least, greatest, coin, then each level as packed floats."""
        packed = [struct.pack(f"<{len(level)}d", *level) for level in self._levels]
        return [self.n, self._low, self._high, self._coin, *packed]

    @classmethod
    def from_wire(cls, k: int, wire: Sequence[Any]) -> Kll:
        """Return the sketch that `to_wire` wrote; it goes on exactly as the one that was written."""
        kll = cls(k)
        kll.n, kll._low, kll._high, kll._coin, *packed = wire
        kll._levels = [list(struct.unpack(f"<{len(level) // 8}d", level)) for level in packed]
        kll._size = sum(map(len, kll._levels))
        kll._limit = sum(_capacities(k, len(kll._levels)))
        return kll

    def _compress(self) -> None:
        levels = self._levels
        while self._size > self._limit:
            capacities = _capacities(self.k, len(levels))
            h = next(h for h, level in enumerate(levels) if len(level) > capacities[h])
            if h + 1 == len(levels):
                levels.append([])
                self._limit = sum(_capacities(self.k, len(levels)))
            level = levels[h]
            level.sort()
            odd = [level.pop()] if len(level) % 2 else []
            self._coin = _turn(self._coin)
            levels[h + 1] += level[self._coin >> 63 :: 2]
            self._size -= len(level) // 2
            levels[h] = odd


@cache
def _capacities(k: int, levels: int) -> tuple[int, ...]:
    """Return how many values each level may hold, the lowest first: a third less for each level further down."""
    return tuple(max(_SMALLEST, ceil(k * (2 / 3) ** (levels - 1 - h))) for h in range(levels))


def _turn(coin: int) -> int:
    return (coin * 6364136223846793005 + 1442695040888963407) & _MASK
