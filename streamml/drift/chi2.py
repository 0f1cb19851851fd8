"""Quantiles of the chi-squared distribution, without scipy.

The regularised incomplete gamma function is summed as a power series left of its mean and as a continued fraction
right of it; the quantile is then found by Newton steps on a log-log scale, kept inside a bracket by bisection.
"""

from __future__ import annotations

import math
from functools import lru_cache

__all__ = ["chi2_cdf", "chi2_isf", "chi2_ppf", "chi2_sf"]

_EPSILON = 1e-16
_TINY = 1e-300


def chi2_cdf(x: float, df: float) -> float:
    """Return the probability that a chi-squared variable with ``df`` degrees of freedom is at most ``x``.

    >>> round(chi2_cdf(2.0, 2), 6)
    0.632121
    """
    return _lower_and_upper(df / 2, x / 2)[0]


def chi2_sf(x: float, df: float) -> float:
    """Return the probability that a chi-squared variable with ``df`` degrees of freedom is above ``x``.

    >>> round(chi2_sf(2.0, 2), 6)
    0.367879
    """
    return _lower_and_upper(df / 2, x / 2)[1]


def chi2_ppf(p: float, df: float) -> float:
    """Return the ``x`` which a chi-squared variable stays below with probability ``p``.

    Args:
        p: Probability of the lower tail, from 0 to 1.
        df: Degrees of freedom, above 0; need not be whole.

    Raises:
        ValueError: ``p`` is not a probability or ``df`` is not above 0.

    >>> round(chi2_ppf(0.95, 9), 6)
    16.918978
    """
    # Above one half, 1 - p is exact in floating point, and the small tail is the one to solve for.
    return chi2_isf(1.0 - p, df) if p >= 0.5 else _quantile(p, df, upper=False)


@lru_cache(maxsize=1024)  # one rate and a few numbers of bins, asked for at each comparison
def chi2_isf(q: float, df: float) -> float:
    """Return the ``x`` which a chi-squared variable exceeds with probability ``q``; exact for tiny ``q``.

    >>> round(chi2_isf(1e-9, 9), 4)
    60.6603
    """
    return _quantile(q, df, upper=True) if q <= 0.5 else _quantile(1.0 - q, df, upper=False)


def _quantile(tail: float, df: float, *, upper: bool) -> float:
    if not 0.0 <= tail <= 1.0:
        msg = f"chi2 quantile: the probability must be from 0 to 1, got {tail!r}; pass a probability, not a percentage"
        raise ValueError(msg)
    if not (df > 0.0 and math.isfinite(df)):
        msg = f"chi2 quantile: degrees of freedom must be above 0, got {df!r}; pass the number of bins minus one"
        raise ValueError(msg)
    if tail == 0.0:
        return math.inf if upper else 0.0
    a, target, side = df / 2, math.log(tail), int(upper)
    log_x = math.log(max(a, 0.1))
    low, high = -math.inf, math.inf
    for _ in range(200):
        x = math.exp(log_x)
        mass = _lower_and_upper(a, x)[side]
        error = (math.log(mass) if mass > 0.0 else -math.inf) - target
        if (error > 0.0) == upper:
            low = log_x
        else:
            high = log_x
        # d log(tail) / d log(x) = +-x * density(x) / tail
        slope = math.exp(a * log_x - x - math.lgamma(a)) / mass if mass > 0.0 else 0.0
        step = error / slope if slope > 0.0 else math.inf
        following = log_x + step if upper else log_x - step
        if not low < following < high or abs(step) > 5.0 + abs(log_x):
            following = _between(low, high)
        if abs(following - log_x) <= 4 * _EPSILON * max(1.0, abs(following)):
            break
        log_x = following
    return 2.0 * math.exp(log_x)


def _between(low: float, high: float) -> float:
    if math.isinf(low):
        return high - 5.0 - abs(high)
    if math.isinf(high):
        return low + 0.7
    return (low + high) / 2


def _lower_and_upper(a: float, x: float) -> tuple[float, float]:
    """Return the regularised incomplete gamma functions P(a, x) and Q(a, x)."""
    if x <= 0.0:
        return 0.0, 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        lower = front * _series(a, x)
        return lower, 1.0 - lower
    upper = front * _continued_fraction(a, x)
    return 1.0 - upper, upper


def _series(a: float, x: float) -> float:
    term = total = 1.0 / a
    n = a
    while term > total * _EPSILON:
        n += 1.0
        term *= x / n
        total += term
    return total


def _continued_fraction(a: float, x: float) -> float:
    """Evaluate the fraction by Lentz's method, as modified by Thompson and Barnett."""
    b = x + 1.0 - a
    c, d = 1.0 / _TINY, 1.0 / b
    result = d
    for i in range(1, 1_000_000):
        term = -i * (i - a)
        b += 2.0
        d = term * d + b
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = b + term / c
        c = c if abs(c) > _TINY else _TINY
        factor = c * d
        result *= factor
        if abs(factor - 1.0) < 4 * _EPSILON:
            break
    return result
