"""The guard's tests: how often they find an innocent canary guilty, and how soon they find a guilty one.

False alarms are measured where they are most likely: with a canary that is exactly at its limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from statistics import NormalDist, median

import numpy as np
import pytest
from scipy.stats import binom

from streamml.errors import ModelError
from streamml.models.guards import Watch
from streamml.models.rollout import Guard
from streamml.models.sequential import psi_limit, share_limits

Rng = np.random.Generator
ROWS = 20_000
RUNS = int(os.environ.get("STREAMML_GUARD_RUNS", "60"))
_NORMAL = NormalDist()


def shares_over_deciles(shift: float) -> np.ndarray:
    """Shares of a shifted normal variable between the deciles of the unshifted one."""
    limits = [_NORMAL.inv_cdf(i / 10) for i in range(1, 10)]
    return np.diff([0.0, *(_NORMAL.cdf(limit - shift) for limit in limits), 1.0])


def shift_for(psi: float) -> float:
    """The shift at which the true PSI over the champion's deciles is this."""
    low, high = 0.0, 3.0
    p = shares_over_deciles(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        q = shares_over_deciles(middle)
        low, high = (middle, high) if np.sum((p - q) * np.log(p / q)) < psi else (low, middle)
    return low


def errors_at_limit(rng: Rng, alpha: float) -> int | None:
    """The champion fails on 1 % of rows, the canary on 0.1 % more."""
    watch = Watch(Guard(errors=0.001, slowdown=None, false_alarms=alpha))
    champion, canary = rng.binomial(200, 0.010, ROWS // 50), rng.binomial(50, 0.011, ROWS // 50)
    for at, (a, b) in enumerate(zip(champion.tolist(), canary.tolist(), strict=True), 1):
        watch.errors(a, 200, b, 50)
        if watch.verdict():
            return at * 50
    return None


def bursts_at_limit(rng: Rng, alpha: float) -> int | None:
    """Now and then half of all rows fail, of both versions alike."""
    watch = Watch(Guard(errors=0.001, slowdown=None, false_alarms=alpha))
    rate = np.where(rng.random(ROWS // 50) < 0.03, 0.5, 0.001)
    champion, canary = rng.binomial(200, rate), rng.binomial(50, rate + 0.001)
    for at, (a, b) in enumerate(zip(champion.tolist(), canary.tolist(), strict=True), 1):
        watch.errors(a, 200, b, 50)
        if watch.verdict():
            return at * 50
    return None


def disagreement_at_limit(rng: Rng, alpha: float) -> int | None:
    watch = Watch(Guard(errors=None, slowdown=None, disagreement=0.02, false_alarms=alpha))
    for at, differing in enumerate(rng.binomial(10, 0.02, ROWS // 10).tolist(), 1):
        watch.agreements(differing, 10)
        if watch.verdict():
            return at * 10
    return None


def slowdown_at_limit(rng: Rng, alpha: float) -> int | None:
    """The canary's p99 is exactly 3 times the champion's."""
    watch = Watch(Guard(errors=None, slowdown=3.0, false_alarms=alpha))
    champion, canary = np.exp(rng.normal(-9, 0.5, ROWS)), 3 * np.exp(rng.normal(-9, 0.5, ROWS))
    for at in range(0, ROWS, 100):
        watch.times(champion[at : at + 100].tolist(), canary[at : at + 100].tolist())
        if watch.verdict():
            return at + 100
    return None


def drift_at_limit(rng: Rng, alpha: float, limit: float = 0.1) -> int | None:
    watch = Watch(Guard(errors=None, slowdown=None, drift=limit, false_alarms=alpha))
    champion, canary = rng.normal(0, 1, ROWS + 1_000), rng.normal(shift_for(limit), 1, ROWS)
    watch.scores(champion[:1_000].tolist(), [])
    for at in range(0, ROWS, 500):
        watch.scores(champion[1_000 + at : 1_500 + at].tolist(), canary[at : at + 500].tolist())
        if watch.verdict():
            return at + 500
    return None


def no_drift(rng: Rng, alpha: float) -> int | None:
    return drift_at_limit(rng, alpha, 0.0)


AT_LIMIT = [errors_at_limit, bursts_at_limit, disagreement_at_limit, slowdown_at_limit, drift_at_limit, no_drift]


@pytest.mark.parametrize("stream", AT_LIMIT)
def test_canary_at_its_limit_is_rarely_found_guilty(stream: Callable[[Rng, float], int | None]) -> None:
    rng = np.random.default_rng(11)
    alarms = sum(stream(rng, 0.2) is not None for _ in range(25))
    assert alarms <= 12, "0.2 would give more than that in 1 of 1,000 tests"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("stream", AT_LIMIT)
def test_false_alarms_over_20_000_rows(stream: Callable[[Rng, float], int | None], alpha: float) -> None:
    """More alarms than that would come from the stated rate in 1 of 1,000 tests; all 2,000 runs take half an hour."""
    rng = np.random.default_rng(12)
    alarms = sum(stream(rng, alpha) is not None for _ in range(RUNS))
    print(f"{stream.__name__}: {alarms} of {RUNS} at {alpha}")
    assert alarms <= binom.ppf(0.999, RUNS, alpha)


def rows_until_caught(run: Callable[[Watch, Rng], int], guard: Guard, seed: int) -> list[int]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(15):
        watch, rows = Watch(guard), 0
        while watch.verdict() is None:
            rows += run(watch, rng)
            assert rows < 100_000
        found.append(rows)
    return found


def test_failing_canary_is_caught_within_thousands_of_its_rows() -> None:
    def run(watch: Watch, rng: Rng) -> int:
        watch.errors(0, 20 * 19, int(rng.binomial(20, 0.01)), 20)
        return 20

    found = rows_until_caught(run, Guard(), 3)
    assert 200 < median(found) < 2_000 and max(found) < 6_000


@pytest.mark.parametrize(("factor", "most"), [(5, 4_000), (10, 1_600)])
def test_slow_canary_is_caught_within_thousands_of_calls(factor: float, most: int) -> None:
    def run(watch: Watch, rng: Rng) -> int:
        watch.times(np.exp(rng.normal(-9, 0.5, 10)).tolist(), (factor * np.exp(rng.normal(-9, 0.5, 10))).tolist())
        return 10

    assert median(rows_until_caught(run, Guard(), 4)) < most


def test_canary_with_other_scores_is_caught_within_hundreds() -> None:
    def run(watch: Watch, rng: Rng) -> int:
        watch.scores(rng.normal(0, 1, 500).tolist(), rng.normal(1, 1, 50).tolist())
        return 50

    assert median(rows_until_caught(run, Guard(drift=0.1), 5)) < 1_000


def test_disagreeing_canary_is_caught() -> None:
    watch = Watch(Guard(disagreement=0.05))
    watch.agreements(200, 1_000)
    assert re.match(r"disagreement: 20 % of 1,000 rows differ .* the limit is 5 %", watch.verdict() or "")


def test_limits_that_are_not_set_are_not_watched() -> None:
    watch = Watch(Guard(errors=None, slowdown=None))
    watch.errors(0, 10_000, 1_000, 1_000)
    watch.times([1e-5] * 5_000, [1.0] * 5_000)
    watch.agreements(1_000, 1_000)
    for _ in range(10):
        watch.scores([0.1] * 1_000, [0.9] * 1_000)
    assert watch.verdict() is None


def test_few_rows_prove_nothing() -> None:
    watch = Watch(Guard())
    watch.errors(0, 50, 1, 1)
    watch.times([1e-5] * 50, [1.0])
    assert watch.verdict() is None


def test_crossed_limit_stays_crossed() -> None:
    watch = Watch(Guard())
    watch.errors(0, 20_000, 100, 1_000)
    said = watch.verdict()
    watch.errors(0, 0, 0, 10_000_000)
    assert said is not None and watch.verdict() == said


def test_verdict_does_not_depend_on_how_often_it_is_asked_for() -> None:
    rng = np.random.default_rng(6)
    asked, once = Watch(Guard(slowdown=None)), Watch(Guard(slowdown=None))
    for failed in rng.binomial(100, 0.0005, 200).tolist():
        for watch in (asked, once):
            watch.errors(0, 1_000, failed, 100)
        assert asked.verdict() is None
    assert once.verdict() is None and asked.figures() == once.figures()


def test_restored_watch_goes_on_as_the_unbroken_one() -> None:
    """Cut at every step; the sentences and figures after it are those of the watch that was not cut."""
    rng = np.random.default_rng(7)
    guard = Guard(disagreement=0.5, drift=1.6)
    whole, cut = Watch(guard), Watch(guard)
    for _ in range(60):
        failed, slow, scores = int(rng.binomial(100, 0.004)), 0.07 * rng.random(20), rng.normal(1.5, 1, 100)
        before = rng.normal(0, 1, 100)
        for watch in (whole, cut):
            watch.errors(0, 1_000, failed, 100)
            watch.times([0.01] * 30, slow.tolist())
            watch.agreements(failed, 100)
            watch.scores(before.tolist(), scores.tolist())
        cut = Watch.restore(guard, cut.state())
        assert cut.verdict() == whole.verdict()
        assert cut.figures() == whole.figures()
    assert whole.verdict() is not None


def test_state_is_small() -> None:
    rng = np.random.default_rng(8)
    watch = Watch(Guard(drift=0.1))
    for _ in range(100):
        watch.times(np.exp(rng.normal(-9, 1, 1_000)).tolist(), np.exp(rng.normal(-9, 1, 1_000)).tolist())
        watch.scores(rng.normal(0, 1, 1_000).tolist(), rng.normal(0, 1, 1_000).tolist())
    assert len(watch.state()) < 10_000


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x81\xa6format\x09"])
def test_foreign_state_is_refused(state: bytes) -> None:
    with pytest.raises(ModelError, match=r"Watch.restore: .*drop it"):
        Watch.restore(Guard(), state)


def test_figures_say_what_is_compared() -> None:
    watch = Watch(Guard())
    watch.errors(1, 100, 1, 10)
    watch.times([0.001] * 100, [0.002] * 100)
    watch.agreements(1, 4)
    figures = watch.figures()
    assert figures["slowdown"] == pytest.approx(2, rel=0.03)
    assert figures == {
        "champion_rows": 100,
        "canary_rows": 10,
        "champion_errors": 0.01,
        "canary_errors": 0.1,
        "slowdown": figures["slowdown"],
        "disagreement": 0.25,
    }


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.999])
def test_limits_of_a_share_hold_it_at_all_times(share: float) -> None:
    """100 streams, looked at 60 times each: 20 % may leave the limits at some time."""
    rng = np.random.default_rng(9)
    left = 0
    for _ in range(100):
        counts = np.cumsum(rng.binomial(50, share, 60)).tolist()
        limits = (share_limits(count, 50 * at, 0.2) for at, count in enumerate(counts, 1))
        left += any(not low <= share <= high for low, high in limits)
    assert left <= 33, "0.2 would give more than that in 1 of 1,000 tests"


def test_limits_of_a_share_close_in_on_it() -> None:
    widths = [high - low for low, high in (share_limits(n // 100, n, 0.001) for n in (100, 10_000, 1_000_000))]
    assert widths[0] > 5 * widths[1] > 25 * widths[2]
    assert share_limits(0, 0, 0.001) == (0.0, 1.0)


def test_psi_limit_bounds_simulated_psi() -> None:
    """The noncentral chi-squared tail, drawn instead of computed."""
    rng = np.random.default_rng(10)
    for limit in (0.0, 0.1, 0.5):
        scale = 1 / 500 + 1 / 5_000
        drawn = scale * rng.noncentral_chisquare(9, limit / scale, 200_000)
        assert np.mean(drawn > psi_limit(limit, scale, 9, 0.01)) <= 0.01
