"""Does a canary keep its limits? Sequential tests that may be asked at any time.

Every test here is *anytime-valid*: a canary that keeps its limits is found guilty with a probability of at most
`Guard.false_alarms` over a stream of any length, however often one looks. A fixed-sample test that is looked at again
and again finds every canary guilty in the end.

- Shares (failures, disagreement): crossed when the canary's lower limit is above the champion's upper limit by more
  than the guard allows (see `sequential.py` for the limits).
- Slowdown: crossed when in surely more than half of the calls for the same rows the canary takes more than `slowdown`
  times as long, which shows soon. And for its slowest calls: a time of which it is sure that at most 1 % of the
  champion's calls are slower is at least its p99; crossed when surely more than 1 % of the canary's calls are slower
  than `slowdown` times that.
- Drift: population stability index (PSI) over quantile bins of the champion's scores, looked at when the sample has
  doubled; look `k` may spend a share of 1 / (k * (k + 1)) of the false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from streamml.drift.bins import FeatureBins, fit_bins
from streamml.drift.psi import MIN_EXPECTED, psi
from streamml.errors import ModelError
from streamml.models.rollout import Guard
from streamml.models.sequential import evidence, psi_limit, share_limits, surely_above

__all__ = ["Watch"]

_FORMAT = 1
_STEP = math.log(1.02)  # times are counted in classes 2 % wide
_TAIL = 0.01  # what lies above the p99
_FIT = 1_000  # scores of the champion that the bins are made from; they are not counted
_FIRST_LOOK = 200  # scores on the smaller side


class _State(msgspec.Struct):
    """All that a watch remembers; a few hundred numbers."""

    format: int = _FORMAT
    failed: tuple[int, int, int, int] = (0, 0, 0, 0)  # champion's failed and rows, canary's failed and rows
    differing: tuple[int, int] = (0, 0)
    times: tuple[dict[int, int], dict[int, int]] = msgspec.field(default_factory=lambda: ({}, {}))
    pairs: tuple[int, int] = (0, 0)  # pairs of calls in which the canary was slower than the limit, and all
    fitting: list[float] = []
    bins: FeatureBins | None = None
    scores: tuple[list[int], list[int]] = ([], [])
    looks: int = 0
    next_look: int = _FIRST_LOOK
    drift: float = 0.0
    crossed: str | None = None


class Watch:
    """Compares one canary with the champion, by the limits of a guard.

    Feed it increments and ask for the `verdict`, at any pace. The share of false alarms is split evenly over the limits
    that are watched. What is assumed: rows (and calls) fail, differ or are slow independently of each other, at rates
    which may change in time for both versions alike. Rows that hang together (one key with thousands of poisoned
    events) count for more than they are.

    Args:
        guard: the limits.

    >>> watch = Watch(Guard(errors=0.001))
    >>> watch.errors(0, 20_000, 3, 1_000)
    >>> watch.verdict()
    >>> watch.errors(0, 20_000, 17, 1_000)
    >>> print(watch.verdict())
    errors: 1 % of the canary's 2,000 rows failed (surely over 0.258 %), of the champion's 40,000 0 % (surely under \
0.0354 %); the limit is 0.1 % more than the champion
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        limits = (guard.errors, guard.slowdown, guard.disagreement, guard.drift)
        self._alpha = guard.false_alarms / max(1, sum(limit is not None for limit in limits))
        self._state = _State()
        self._changed = {"errors", "slowdown", "disagreement", "drift"}

    def errors(self, champion_failed: int, champion_rows: int, canary_failed: int, canary_rows: int) -> None:
        """Add rows of both versions, and how many of them failed."""
        a, b, c, d = self._state.failed
        self._state.failed = (a + champion_failed, b + champion_rows, c + canary_failed, d + canary_rows)
        self._changed.add("errors")

    def times(self, champion: Sequence[float], canary: Sequence[float]) -> None:
        """Add model seconds per row of single calls; lists of the same length are pairs of calls.

        Compare like with like: a small batch costs more per row than a large one. Give times of calls with about the
        same number of rows on both sides, best of calls for the same rows.
        """
        if len(champion) == len(canary) and self.guard.slowdown is not None:
            slower, pairs = self._state.pairs
            limit = self.guard.slowdown
            slower += sum(mine > limit * theirs for theirs, mine in zip(champion, canary, strict=True))
            self._state.pairs = (slower, pairs + len(canary))
        for kept, seconds in zip(self._state.times, (champion, canary), strict=True):
            for value in seconds:
                at = math.ceil(math.log(max(value, 1e-9)) / _STEP)
                kept[at] = kept.get(at, 0) + 1
        self._changed.add("slowdown")

    def agreements(self, differing: int, rows: int) -> None:
        """Add rows that both versions scored, and how many of them differ by more than the guard's tolerance."""
        a, b = self._state.differing
        self._state.differing = (a + differing, b + rows)
        self._changed.add("disagreement")

    def scores(self, champion: Sequence[float], canary: Sequence[float]) -> None:
        """Add scores of both versions, for drift; the champion's first 1,000 make the bins and don't count."""
        state = self._state
        if state.bins is None:
            state.fitting += champion
            if len(state.fitting) >= _FIT:
                state.bins = fit_bins(np.asarray(state.fitting, dtype=np.float64), 10)
                state.scores = ([0] * len(state.bins.counts), [0] * len(state.bins.counts))
                state.fitting = []
            return
        for counts, values in zip(state.scores, (champion, canary), strict=True):
            if len(values):
                added = state.bins.count(np.asarray(values, dtype=np.float64)).tolist()
                counts[:] = [a + b for a, b in zip(counts, added, strict=True)]
        self._changed.add("drift")

    def verdict(self) -> str | None:
        """Return None, or which limit was crossed, with figures. A limit that was crossed stays crossed."""
        state, changed = self._state, sorted(self._changed)
        self._changed.clear()
        for limit in changed:
            if state.crossed is None and getattr(self.guard, limit) is not None:
                state.crossed = getattr(self, f"_{limit}")()
        return state.crossed

    def figures(self) -> dict[str, float]:
        """Return the rows seen and what is compared, as far as it is known yet."""
        failed, rows, canary_failed, canary_rows = self._state.failed
        found: dict[str, float] = {"champion_rows": rows, "canary_rows": canary_rows}
        if rows and canary_rows:
            found |= {"champion_errors": failed / rows, "canary_errors": canary_failed / canary_rows}
        champion, canary = self._state.times
        if champion and canary:
            found["slowdown"] = math.exp((_p99(canary) - _p99(champion)) * _STEP)
        differing, compared = self._state.differing
        if compared:
            found["disagreement"] = differing / compared
        if self._state.looks:
            found["drift"] = self._state.drift
        return found

    def state(self) -> bytes:
        """Return all that it remembers."""
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, guard: Guard, state: bytes) -> Watch:
        """Return a watch that goes on from a `state`.

        >>> watch = Watch(Guard())
        >>> watch.errors(1, 100, 2, 10)
        >>> Watch.restore(Guard(), watch.state()).figures() == watch.figures()
        True

        Raises:
            ModelError: the state is not of this version.
        """
        watch = cls(guard)
        try:
            watch._state = msgspec.msgpack.decode(state, type=_State)
        except msgspec.DecodeError as exc:
            msg = f"Watch.restore: the state can't be read ({exc}); drop it, and the canary is watched from now on"
            raise ModelError(msg) from exc
        if watch._state.format != _FORMAT:
            msg = (
                f"Watch.restore: wanted a state of format {_FORMAT}, got {watch._state.format}; drop it, and the "
                "canary is watched from now on"
            )
            raise ModelError(msg)
        return watch

    def _errors(self) -> str | None:
        failed, rows, canary_failed, canary_rows = self._state.failed
        limit, alpha = self.guard.errors or 0.0, self._alpha / 2
        if not canary_rows or canary_failed / canary_rows <= limit + (failed / rows if rows else 1.0):
            return None
        most = share_limits(failed, rows, alpha)[1]
        if not surely_above(canary_failed, canary_rows, most + limit, alpha):
            return None
        least = share_limits(canary_failed, canary_rows, alpha)[0]
        return (
            f"errors: {_percent(canary_failed / canary_rows)} of the canary's {canary_rows:,} rows failed (surely over "
            f"{_percent(least)}), of the champion's {rows:,} {_percent(failed / rows)} (surely under {_percent(most)})"
            f"; the limit is {_percent(limit)} more than the champion"
        )

    def _slowdown(self) -> str | None:
        champion, canary = self._state.times
        slower, pairs = self._state.pairs
        limit, alpha, calls = self.guard.slowdown or 1.0, self._alpha / 3, sum(champion.values())
        if surely_above(slower, pairs, 0.5, alpha):
            return (
                f"slowdown: in {slower:,} of {pairs:,} pairs of calls for the same rows the canary took more than "
                f"{limit:g} times as long as the champion, so in more than half of all"
            )
        slowest, above = None, 0  # a class of which it is sure that at most 1 % of the champion's calls are above it
        for at in sorted(champion, reverse=True):
            if above / calls >= _TAIL or evidence(above, calls, _TAIL) < -math.log(alpha):
                break
            slowest, above = at, above + champion[at]
        if slowest is None:
            return None
        bar = slowest + math.log(limit) / _STEP
        slow, canary_calls = sum(n for at, n in canary.items() if at - 1 >= bar), sum(canary.values())
        if not surely_above(slow, canary_calls, _TAIL, alpha):
            return None
        return (
            f"slowdown: the canary's p99 is {_time(_p99(canary))} a row over {canary_calls:,} calls, the champion's "
            f"{_time(_p99(champion))} (surely under {_time(slowest)}) over {calls:,}; {_percent(slow / canary_calls)} "
            f"of the canary's calls took more than {limit:g} times that, the limit for its p99"
        )

    def _disagreement(self) -> str | None:
        differing, rows = self._state.differing
        limit = self.guard.disagreement or 0.0
        if not surely_above(differing, rows, limit, self._alpha):
            return None
        return (
            f"disagreement: {_percent(differing / rows)} of {rows:,} rows differ from the champion by more than "
            f"{self.guard.tolerance:g} (surely over {_percent(share_limits(differing, rows, self._alpha)[0])}); the "
            f"limit is {_percent(limit)}"
        )

    def _drift(self) -> str | None:
        state, limit = self._state, self.guard.drift or 0.0
        champion, canary = (np.asarray(counts, dtype=np.float64) for counts in state.scores)
        n, m = float(champion.sum()), float(canary.sum())
        if min(n, m) < state.next_look:
            return None
        state.looks += 1
        state.next_look = 2 * int(min(n, m))
        rare = (champion + canary) * min(n, m) / (n + m) < MIN_EXPECTED
        p, q = (np.append(counts[~rare], counts[rare].sum()) for counts in (champion, canary))
        state.drift = psi(p, q)
        alpha = self._alpha / (state.looks * (state.looks + 1))
        threshold = psi_limit(limit, 1 / n + 1 / m, len(p) - 1, alpha)
        if state.drift <= threshold:
            return None
        return (
            f"drift: the PSI of the canary's {m:,.0f} scores against the champion's {n:,.0f} is {state.drift:.3f}; "
            f"chance explains {threshold:.3f} where the limit of {limit:g} is kept"
        )


def _p99(times: dict[int, int]) -> int:
    """Return the class that holds the p99."""
    left = math.ceil(sum(times.values()) * (1 - _TAIL))
    return next(at for at in sorted(times) if (left := left - times[at]) <= 0)


def _time(at: float) -> str:
    return f"{math.exp(at * _STEP) * 1000:.3g} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
