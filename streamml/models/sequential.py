"""Statistics that may be looked at any time: limits of a share, limit of a population stability index.

The share's limits are a confidence sequence after H. Robbins (1970): the likelihood ratios of a Bernoulli stream, mixed
over a Beta(1/2, 1/2) prior, are a martingale that starts at 1 where the share is the true one, so they ever reach
1/alpha with a probability of at most alpha (Ville's inequality). This holds for the running average of a share that
changes in time as well.
"""

from __future__ import annotations

import math

__all__ = ["evidence", "psi_limit", "share_limits", "surely_above"]


def share_limits(count: int, total: int, alpha: float) -> tuple[float, float]:
    """Return limits that hold a true share at all times with a probability of at least 1 - alpha.

    >>> low, high = share_limits(10, 1_000, 0.001)
    >>> round(low, 4), round(high, 4)
    (0.0015, 0.032)
    """
    if not total:
        return 0.0, 1.0
    share, bar = count / total, -math.log(alpha)
    limits = []
    for end in (0.0, 1.0):
        inside, outside = share, end
        for _ in range(50):
            middle = (inside + outside) / 2
            if evidence(count, total, middle) < bar:
                inside = middle
            else:
                outside = middle
        limits.append(outside)
    return limits[0], limits[1]


def evidence(count: int, total: int, share: float) -> float:
    """Return the logarithm of a martingale that starts at 1 where `share` is the true one."""
    if not 0.0 < share < 1.0:
        refuted = count > 0 if share <= 0.0 else count < total
        return math.inf if refuted else 0.0
    mixture = math.lgamma(count + 0.5) + math.lgamma(total - count + 0.5) - math.lgamma(total + 1) - math.log(math.pi)
    return mixture - count * math.log(share) - (total - count) * math.log1p(-share)


def surely_above(count: int, total: int, share: float, alpha: float) -> bool:
    """Return whether the true share is above `share`, wrongly with a probability of at most alpha at any time.

    >>> surely_above(3, 1_000, 0.001, 0.001), surely_above(20, 1_000, 0.001, 0.001)
    (False, True)
    """
    return total > 0 and count / total > share and evidence(count, total, share) >= -math.log(alpha)


def psi_limit(limit: float, scale: float, df: int, alpha: float) -> float:
    """Return what a PSI exceeds with at most this probability where the true one is at most `limit`.

    It is `scale` times a noncentral chi-squared variable; its tail is bounded as by L. Birgé (2001), lemma 8.1.

    Args:
        limit: the true PSI.
        scale: sum of the reciprocals of both numbers of values.
        df: number of bins less one.
        alpha: the probability.

    >>> round(psi_limit(0.1, 1 / 1_000 + 1 / 1_000, 9, 0.001), 3)
    0.255
    """
    away, x = limit / scale, -math.log(alpha)
    return scale * (df + away + 2 * math.sqrt((df + 2 * away) * x) + 2 * x)
