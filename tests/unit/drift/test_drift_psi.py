import re

import numpy as np
import pytest
from scipy.stats import binom, chi2

from streamml.drift import Profile, Verdict, compare, psi, psi_threshold

pytestmark = pytest.mark.slow

REPEATS = 2000
RATE = 0.05


def alarms(n: int, m: int, rate: float, repeats: int, shift: float = 0.0, seed: int = 0) -> tuple[int, int]:
    """Return how often `compare` and the folklore limit alarm; the profile is fitted anew each time."""
    rng = np.random.default_rng([seed, n, m])
    ours = folklore = 0
    for _ in range(repeats):
        profile = Profile.fit({"x": rng.normal(size=n)})
        live = profile.bin_counts("x", rng.normal(shift, size=m))
        result = compare(profile, "x", live, rate)
        ours += result.verdict is Verdict.DRIFT
        folklore += psi(profile["x"].counts, live) > 0.1
    return ours, folklore


@pytest.mark.parametrize(
    ("n", "m"), [(50, 50), (100, 100), (200, 200), (500, 500), (5000, 5000), (5000, 50), (50, 5000), (5000, 500)]
)
def test_false_alarms_come_at_the_requested_rate(n: int, m: int) -> None:
    ours, _ = alarms(n, m, RATE, REPEATS if n + m < 9000 else 1000)
    repeats = REPEATS if n + m < 9000 else 1000
    # Never more often than asked (within binomial chance), and at least 3/4 as often, except where 5 values are
    # expected per bin: there the half values added to each bin cost up to half of the alarms.
    least = 0.4 if min(n, m) < 100 else 0.75
    assert ours <= binom.ppf(0.999, repeats, RATE)
    assert ours >= binom.ppf(0.001, repeats, RATE * least)


def test_the_folklore_limit_is_far_off() -> None:
    assert alarms(50, 50, RATE, 300)[1] / 300 > 0.9
    assert alarms(200, 200, RATE, 300)[1] / 300 > 0.2
    drifted, folklore = alarms(5000, 5000, RATE, 200, shift=0.15)
    assert drifted == 200
    assert folklore == 0


@pytest.mark.parametrize(("n", "shift"), [(100, 0.8), (500, 0.4), (5000, 0.12)])
def test_a_shift_is_detected(n: int, shift: float) -> None:
    assert alarms(n, n, 0.01, 200, shift=shift)[0] > 0.9 * 200


def null_share(shares: list[float], n: int, m: int, rate: float, repeats: int) -> float:
    rng = np.random.default_rng(len(shares))
    labels = np.array([f"{i:02}" for i in range(len(shares))])
    found = 0
    for _ in range(repeats):
        reference = np.repeat(labels, rng.multinomial(n, shares))
        profile = Profile.fit({"x": reference}, bins=len(shares))
        live = np.repeat(labels, rng.multinomial(m, shares))
        found += compare(profile, "x", profile.bin_counts("x", live), rate).verdict is Verdict.DRIFT
    return found / repeats


@pytest.mark.parametrize(("n", "m"), [(60, 60), (200, 200), (1000, 60), (1000, 500)])
def test_rare_labels_raise_no_false_alarms(n: int, m: int) -> None:
    """With a head of two labels and a long tail, the tail is pooled."""
    repeats = 800
    share = null_share([0.5, 0.3] + [0.02] * 10, n, m, RATE, repeats)
    assert binom.ppf(0.001, repeats, RATE * 0.3) <= share * repeats <= binom.ppf(0.999, repeats, RATE)


def test_several_features_share_the_rate() -> None:
    rng = np.random.default_rng(5)
    families = 300
    alarmed = 0
    for _ in range(families):
        profile = Profile.fit({f"f{i}": rng.normal(size=300) for i in range(20)})
        alarmed += any(
            compare(profile, f, profile.bin_counts(f, rng.normal(size=300)), RATE, 20).verdict is Verdict.DRIFT
            for f in profile.features
        )
    assert binom.ppf(0.001, families, RATE * 0.5) <= alarmed <= binom.ppf(0.999, families, RATE)


def test_too_few_values_give_no_verdict() -> None:
    profile = Profile.fit({"x": np.arange(1000.0)})
    for m, verdict in ((0, Verdict.TOO_FEW), (49, Verdict.TOO_FEW), (50, Verdict.DRIFT)):
        result = compare(profile, "x", profile.bin_counts("x", np.full(m, 2000.0)), 0.01)
        assert (result.verdict, result.n) == (verdict, m)
    small = Profile.fit({"x": np.arange(49.0)})
    assert compare(small, "x", small.bin_counts("x", np.arange(1000.0)), 0.01).verdict is Verdict.TOO_FEW
    fine = Profile.fit({"x": np.arange(1000.0)}, bins=50)
    assert compare(fine, "x", fine.bin_counts("x", np.arange(100.0)), 0.01).verdict is Verdict.TOO_FEW


def test_a_constant_is_stable_until_it_changes() -> None:
    profile = Profile.fit({"x": np.full(100, 3.0)})
    same = compare(profile, "x", profile.bin_counts("x", np.full(100, 3.0)), 0.01)
    assert (same.psi, same.threshold, same.verdict) == (0.0, 0.0, Verdict.STABLE)
    assert compare(profile, "x", profile.bin_counts("x", np.full(100, 4.0)), 0.01).verdict is Verdict.DRIFT


def test_a_flood_of_missing_values_is_drift() -> None:
    rng = np.random.default_rng(3)
    profile = Profile.fit({"x": rng.normal(size=1000)})
    live = rng.normal(size=500)
    live[:40] = np.nan
    assert compare(profile, "x", profile.bin_counts("x", live), 0.001).verdict is Verdict.DRIFT


def test_the_threshold_is_the_formula() -> None:
    assert psi_threshold(200, 300, 10, 0.02, 4) == pytest.approx((1 / 200 + 1 / 300) * chi2.isf(0.005, 9), rel=1e-12)


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [
        ([1, 2], [1, 2, 3], "got shapes (2,) and (3,)"),
        ([1, 2], [0, 0], "at least one value on each side"),
        ([1, -2, 3], [1, 1, 1], "counts of 0 and above"),
    ],
)
def test_bad_histograms_are_explained(expected: list[int], actual: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        psi(expected, actual)


def test_other_bad_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match=re.escape("false_alarm_rate=1.5")):
        psi_threshold(10, 10, 10, 1.5)
    with pytest.raises(ValueError, match=re.escape("feature 'x': wanted 4 counts, got shape (2,)")):
        compare(Profile.fit({"x": [1, 2]}), "x", [1, 2], 0.01)
