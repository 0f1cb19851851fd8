"""How many rows to score at once: for a latency target, and for the memory that there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from streamml.errors import ModelError, ModelMemoryError
from streamml.models.signature import Array

__all__ = ["BatchSize", "Chunks"]

T = TypeVar("T")

_WINDOW = 512  # batches that are remembered
_HALF_LIFE = 64  # batches after which one weighs half in the fit
_QUANTILE = 0.99
_SETTLED = 32  # batches after which the fit is made anew every _PAUSE batches only
_PAUSE = 16
_TAIL = 2.0  # pauses that come whatever the size can't be bought off: they make a batch smaller by this factor at most
_GROW, _SHRINK = 0.1, 0.02  # a size that would change by less stays
_STEADY = 0.05  # how far, relatively, a fit trusts itself to change the shape of the line at a time
_FAR, _ODD = 1.5, 8  # so many batches in a row, so far off the line in one direction, mean that the cost has changed
_FIXED = 4.0  # a batch's fixed cost is at most this many times that of its rows, whatever the target
_OVERHEAD = 0.05  # share of a batch's fixed cost that is worth no larger batch, where there is a backlog


class BatchSize:
    """Chooses the most rows of the next micro-batch, so that 99 % of events keep a latency target.

    The cost of a batch is fitted as `a + b * rows` over the last batches, newer ones counting more; what batches took
    beyond that is kept as the 99th percentile of the ratio. The size is the largest whose 99th percentile is half the
    target: an event waits for the batch under way at most, and is then in the next one. Pauses of the machine come
    whatever the size, so for their sake a batch is at most halved. No size is tried that is more
    than twice the largest batch seen. It is an upper bound: a caller takes the rows that are there and never waits for
    more, so an event that comes alone is a batch of one.

    Where the fixed cost alone comes near the target, a small batch would cost nearly all throughput and save hardly any
    latency: the rows make up a fifth of a batch's cost at least.

    With a backlog that can't be worked off within the target, latency is lost whatever the size, and it is throughput
    that gets it back: the batch then grows until its fixed cost is 5 % of it.

    Args:
        target_ms: latency in milliseconds that 99 % of events should keep.
        low: smallest size.
        high: largest size.
        start: first size, `low` where it is left out.

    >>> batch = BatchSize(20.0)
    >>> for _ in range(100):  # a batch costs 2 ms, and 0.1 ms a row: 80 rows in 10 ms
    ...     batch.done(batch.size, 0.002 + 0.0001 * batch.size)
    >>> batch.size
    80
    """

    def __init__(self, target_ms: float, low: int = 1, high: int = 4096, *, start: int | None = None) -> None:
        if not (target_ms > 0 and 1 <= low <= high and (start is None or low <= start <= high)):
            msg = (
                "BatchSize: wanted a target above 0 and 1 <= low <= start <= high, got "
                f"target_ms={target_ms}, low={low}, start={start}, high={high}"
            )
            raise ModelError(msg)
        self.size = low if start is None else start
        """The most rows of the next batch."""
        self._budget = target_ms / 2000
        self._low, self._high = low, high
        self._rows, self._seconds = np.zeros(_WINDOW), np.zeros(_WINDOW)
        self._count = 0
        self._cost = (0.0, 0.0)
        self._p99 = 1.0
        self._odd: list[float] = []
        self._most = low  # the largest batch seen

    @property
    def cost(self) -> tuple[float, float]:
        """The fitted cost: seconds for a batch, seconds for each row."""
        return self._cost

    def done(self, rows: int, seconds: float, waiting: int = 0) -> None:
        """Take note of a batch.

        Args:
            rows: its rows.
            seconds: how long it took, from taking its rows to handing out the results.
            waiting: rows that wait, as far as that is known.
        """
        if rows < 1:
            return
        self._notice_shift(seconds / (self._cost[0] + self._cost[1] * rows) if any(self._cost) else 1.0)
        at = self._count % _WINDOW
        self._rows[at], self._seconds[at] = rows, max(seconds, 1e-9)
        self._count += 1
        self._most = max(self._most, rows)
        if self._count < _SETTLED or self._count % _PAUSE == 0:
            self._fit()
        a, b = self._cost
        wanted = max(self._budget / self._p99 - a, a / _FIXED) / b if b else float(self._high)
        if waiting * (a / self.size + b) > 2 * self._budget:
            wanted = max(wanted, a / b / _OVERHEAD if b else float(self._high))
        if self._most < 4 * self._low:
            wanted = 2.0 * self._most  # batches of one size would never tell fixed cost from that of a row
        size = int(max(self._low, min(wanted + 1e-6, 2 * self._most, self._high)))
        if not -_SHRINK * self.size <= size - self.size <= _GROW * self.size or size == self._high:
            self.size = size

    def _notice_shift(self, ratio: float) -> None:
        """Forget batches of another time: several in a row that cost far more, or far less, than the line says.

        Taken together, dear small batches and cheap large ones of before would look like a high fixed cost.
        """
        far = ratio > _FAR or ratio < 1 / _FAR
        if far and self._odd and (ratio > 1) == (self._odd[0] > 1):
            self._odd.append(ratio)
        else:
            self._odd = [ratio] if far else []
        if len(self._odd) == _ODD:
            level = sorted(self._odd)[_ODD // 2]
            self._cost = (level * self._cost[0], level * self._cost[1])
            self._count, self._odd = 0, []

    def _fit(self) -> None:
        """Fit the line by least squares of relative errors; those beyond threefold count as threefold only."""
        seen = min(self._count, _WINDOW)
        rows, seconds = self._rows[:seen], self._seconds[:seen]
        last = (self._count - 1) % _WINDOW
        share = 0.5 ** ((last - np.arange(seen)) % _WINDOW / _HALF_LIFE)
        share /= share.sum()
        a, b = self._cost if any(self._cost) else (0.0, seconds[last] / rows[last])
        guess = a + b * rows
        ratio = np.clip(seconds / guess, 1 / 3, 3.0)
        y, weights = ratio * guess, share / guess**2
        # Batches of about one size tell little but the level. Two points far apart hold the shape that the line had,
        # the more so the noisier the batches are.
        apart = np.array([self._low, 2.0 * max(self.size, self._most)])
        held = float(share @ ratio) * (a + b * apart)
        x, y = np.append(rows, apart), np.append(y, held)
        a, b = _line(x, y, np.append(weights, [1e-6 / held[1] ** 2] * 2))
        noise = float(weights @ (y[:-2] - a - b * rows) ** 2)
        a, b = _line(x, y, np.append(weights, [(noise / _STEADY**2 / seen + 1e-6) / held[1] ** 2] * 2))
        self._cost = (a, b)
        self._p99 = min(max(1.0, float(np.quantile(seconds / (a + b * rows), _QUANTILE))), _TAIL)


class Chunks:
    """Splits batches that are too large for the memory, and remembers the size that was not.

    A call that ends in `ModelMemoryError` is made again in halves, and no call is larger from then on. After
    `patience` calls of that size a size a quarter larger is tried; each time that fails, the patience doubles.

    Args:
        patience: calls after which a larger size is tried.

    >>> def call(start, stop):
    ...     if stop - start > 3:
    ...         raise ModelMemoryError("model m: out of memory")
    ...     return list(range(start, stop))
    >>> chunks = Chunks()
    >>> chunks.run(8, call), chunks.limit
    ([[0, 1], [2, 3], [4, 5], [6, 7]], 2)
    """

    def __init__(self, patience: int = 1000) -> None:
        self.limit: int | None = None
        """Most rows of a call; None while no call was too large."""
        self._patience = patience
        self._calls = 0
        self._trying = False

    def run(self, rows: int, call: Callable[[int, int], T]) -> list[T]:
        """Call with `(start, stop)` over all rows, in as few parts as the memory takes; return the results in order.

        Raises:
            ModelMemoryError: one row alone is too large.
        """
        found: list[T] = []
        at = 0
        while at < rows:
            part = min(rows - at, self.limit or rows)
            try:
                found.append(call(at, at + part))
            except ModelMemoryError:
                if part == 1:
                    raise
                self._patience *= 2 if self._trying else 1
                self.limit, self._calls, self._trying = part // 2, 0, False
                continue
            at += part
            if part == self.limit:
                self._calls, self._trying = self._calls + 1, False
                if self._calls >= self._patience:
                    self.limit, self._calls, self._trying = max(part + 1, part * 5 // 4), 0, True
        return found


def _line(x: Array, y: Array, weights: Array) -> tuple[float, float]:
    """Return the line `a + b * x` of least weighted squares with a and b of at least 0."""
    total = weights.sum()
    x_mean, y_mean = weights @ x / total, weights @ y / total
    spread = weights @ (x - x_mean) ** 2
    b = weights @ ((x - x_mean) * (y - y_mean)) / spread
    a = y_mean - b * x_mean
    if a < 0.0:
        return 0.0, float(weights @ (x * y) / (weights @ x**2))
    return (float(y_mean), 0.0) if b < 0.0 else (float(a), float(b))
