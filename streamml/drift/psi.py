"""Population stability index, with thresholds that follow from the sample sizes.

Without drift, PSI of two samples of `n` and `m` values in `B` bins is distributed about as
``(1/n + 1/m) * chi2(B - 1)`` (B. Yurdakul, "Statistical Properties of Population Stability Index", dissertation,
Western Michigan University, 2018). A fixed limit such as the folklore "PSI > 0.1" therefore cries wolf on small samples
(96 % of undrifted comparisons at n = m = 50 with 10 bins) and sleeps through drift on large ones.

What the rate means: it holds on average over reference samples, for independent values. One reference that is used
again and again keeps its own sampling error, so take one that is much larger than the live windows. Values which hang
together (many events of one card in a window) hold less information than their number and raise false alarms.
"""

from __future__ import annotations

from enum import Enum

import msgspec
import numpy as np
import numpy.typing as npt

from streamml.drift.bins import BinKind
from streamml.drift.chi2 import chi2_isf
from streamml.drift.profile import Profile

__all__ = ["MIN_EXPECTED", "MIN_PER_BIN", "MIN_SAMPLE", "DriftResult", "Verdict", "compare", "psi", "psi_threshold"]

MIN_SAMPLE = 50
"""Fewest values, in the reference and live, for a verdict: below it the threshold is no longer near the asked rate."""

MIN_PER_BIN = 4
"""Fewest values per compared bin, on average, for a verdict: with fewer, hardly anything would be found."""

MIN_EXPECTED = 2.0
"""Fewest values to expect in a bin, on the smaller side; rarer bins are pooled before they are compared."""

_PSEUDO_COUNT = 0.5


class Verdict(Enum):
    """What a comparison says."""

    DRIFT = "drift"
    STABLE = "stable"
    TOO_FEW = "too_few"


class DriftResult(msgspec.Struct, frozen=True):
    """Outcome of comparing one feature with its reference.

    Attributes:
        feature: Name of the feature.
        psi: Population stability index of the bins that were compared; 0.0 for `Verdict.TOO_FEW`.
        threshold: Limit above which it is drift; infinite for `Verdict.TOO_FEW`.
        n: Number of live values.
        verdict: Drift, stable, or too few values to tell.
    """

    feature: str
    psi: float
    threshold: float
    n: int
    verdict: Verdict


def psi(expected_counts: npt.ArrayLike, actual_counts: npt.ArrayLike) -> float:
    """Return the population stability index of two histograms over the same bins.

    Half a value is added to each bin of both, so an empty bin gives a finite answer. (Of the ways that were
    simulated, this one keeps the false alarms nearest to `psi_threshold`, and errs to the quiet side.)

    Args:
        expected_counts: Reference values per bin.
        actual_counts: Live values per bin.

    Raises:
        ValueError: The histograms differ in length, or hold negative or no counts.

    >>> psi([100, 100, 100], [100, 100, 100])
    0.0
    >>> round(psi([100, 100, 100], [150, 100, 50]), 3)
    0.181
    """
    expected = np.asarray(expected_counts, dtype=np.float64)
    actual = np.asarray(actual_counts, dtype=np.float64)
    if expected.shape != actual.shape or expected.ndim != 1:
        msg = f"psi: wanted two histograms over the same bins, got shapes {expected.shape} and {actual.shape}"
        raise ValueError(msg)
    if not (expected.sum() > 0 and actual.sum() > 0 and expected.min() >= 0 and actual.min() >= 0):
        msg = "psi: wanted counts of 0 and above and at least one value on each side, got a negative or empty histogram"
        raise ValueError(msg)
    p = (expected + _PSEUDO_COUNT) / (expected + _PSEUDO_COUNT).sum()
    q = (actual + _PSEUDO_COUNT) / (actual + _PSEUDO_COUNT).sum()
    return float(np.sum((p - q) * np.log(p / q)))


def psi_threshold(
    n_reference: float, n_actual: float, bins: int, false_alarm_rate: float, comparisons: int = 1
) -> float:
    """Return the PSI that undrifted samples exceed with the given probability.

    The quantile of ``(1/n_reference + 1/n_actual) * chi2(bins - 1)`` (Yurdakul 2018); it holds for bins fitted as
    quantiles of the reference itself too. With several comparisons, the probability that any of them is a false
    alarm stays below the rate (Bonferroni).

    Args:
        n_reference: Number of reference values.
        n_actual: Number of live values.
        bins: Number of bins that were compared.
        false_alarm_rate: Share of undrifted comparisons that may alarm, between 0 and 1.
        comparisons: Number of features (or windows) that share the rate.

    Raises:
        ValueError: An argument is out of its range.

    >>> round(psi_threshold(100_000, 1_000, bins=10, false_alarm_rate=0.01), 4)
    0.0219
    >>> round(psi_threshold(100_000, 1_000, bins=10, false_alarm_rate=0.01, comparisons=20), 4)
    0.03
    """
    if not (n_reference > 0 and n_actual > 0 and bins >= 1 and comparisons >= 1 and 0.0 < false_alarm_rate < 1.0):
        msg = (
            "psi_threshold: wanted counts above 0, bins and comparisons of at least 1, a rate between 0 and 1; got "
            f"n_reference={n_reference}, n_actual={n_actual}, bins={bins}, comparisons={comparisons}, "
            f"false_alarm_rate={false_alarm_rate}"
        )
        raise ValueError(msg)
    if bins == 1:
        return 0.0
    return (1.0 / n_reference + 1.0 / n_actual) * chi2_isf(false_alarm_rate / comparisons, bins - 1)


def compare(
    profile: Profile, feature: str, actual_counts: npt.ArrayLike, false_alarm_rate: float, comparisons: int = 1
) -> DriftResult:
    """Judge live counts of one feature against its reference.

    There is no verdict (`Verdict.TOO_FEW`) below `MIN_SAMPLE` values on either side, below `MIN_PER_BIN` values per
    compared bin, or when most values lie in rare bins. Bins where fewer than `MIN_EXPECTED` values are to be expected
    on the smaller side are pooled: rare labels, missing values, values which the reference did not have.

    Args:
        profile: Reference profile.
        feature: Name of the feature.
        actual_counts: Live values per bin, from `Profile.bin_counts` (sums of several calls too).
        false_alarm_rate: Share of undrifted comparisons that may alarm, between 0 and 1.
        comparisons: Number of features that are compared at a time and share the rate.

    >>> import numpy as np
    >>> profile = Profile.fit({"amount": np.arange(1000.0)})
    >>> live = profile.bin_counts("amount", np.arange(500.0, 1500.0))
    >>> compare(profile, "amount", live, false_alarm_rate=0.01).verdict
    <Verdict.DRIFT: 'drift'>
    >>> compare(profile, "amount", live // 40, false_alarm_rate=0.01).verdict
    <Verdict.TOO_FEW: 'too_few'>
    """
    bins = profile[feature]
    expected = np.asarray(bins.counts, dtype=np.float64)
    actual = np.asarray(actual_counts, dtype=np.float64)
    if actual.shape != expected.shape:
        msg = (
            f"compare: feature {feature!r}: wanted {len(expected)} counts, got shape {actual.shape}; "
            "count with bin_counts of this profile (another version of it has other bins)"
        )
        raise ValueError(msg)
    n, m = float(expected.sum()), float(actual.sum())
    too_few = DriftResult(feature, 0.0, float("inf"), int(m), Verdict.TOO_FEW)
    if min(n, m) < MIN_SAMPLE:
        return too_few
    # What to expect follows from both sides together. Choosing bins by the reference alone would choose those where
    # it happens to be high, and nearly double the false alarms of features with many rare labels.
    share = min(n, m) / (n + m)
    rare = (expected + actual) * share < MIN_EXPECTED
    mostly_rare = float((expected + actual)[rare].sum()) > (n + m) / 2
    if bins.kind is not BinKind.RANGES:
        rare[-2] = True  # values the reference missed: their reference count is 0 by chance, their pool's is fair
    p, q = expected[~rare], actual[~rare]
    pool, live_pool = float(expected[rare].sum()), float(actual[rare].sum())
    # A pool that the smaller side is too small to have seen says nothing; only the added half value would speak.
    unseen = (live_pool if m <= n else pool) == 0 and (pool + live_pool) * share < _PSEUDO_COUNT
    if not unseen:
        p, q = np.append(p, pool), np.append(q, live_pool)
    if mostly_rare or min(n, m) < MIN_PER_BIN * len(p):
        return too_few
    value = psi(p, q)
    threshold = psi_threshold(p.sum(), q.sum(), len(p), false_alarm_rate, comparisons)
    return DriftResult(feature, value, threshold, int(m), Verdict.DRIFT if value > threshold else Verdict.STABLE)
