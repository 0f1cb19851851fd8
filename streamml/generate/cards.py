"""The cards behind a stream of payments: how often each pays, how much, where, and to whom."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = ["CardBook", "mix64"]

MERCHANTS = 5000
COUNTRIES = 40

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Quantiles of a normal distribution: looked up, since a table gives the same bits on every machine.
_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 1024) for i in range(1024)])


def mix64(values: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """Scramble integers one to one (splitmix64).

    >>> [f"{x:016x}" for x in mix64(np.array([0, 1]), salt=0).tolist()]
    ['e220a8397b1dcdaf', '910a2dec89025cc1']
    """
    x = values.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _lognormal(u: Floats, sigma: float) -> Floats:
    """Return the factors at these quantiles, with median 1."""
    table: Floats = np.exp(sigma * _QUANTILES)
    return table[(u * len(table)).astype(np.int64)]


class CardBook:
    """Stable properties of the cards of one seed.

    Attributes:
        names: the `card_id` of each card.
        mean: the usual amount of each card.
        country: its home.
    """

    def __init__(self, seed: int, cards: int, zipf: float) -> None:
        random = np.random.Generator(np.random.PCG64([seed, 0]))
        order = np.argsort(random.random(cards), kind="stable")  # the cards, the most popular one first
        rank = np.empty(cards)
        rank[order] = np.arange(cards)
        self._popularity = np.cumsum((rank + 1) ** -zipf)
        self.names = [f"c{card:06d}" for card in range(cards)]
        # Spread evenly over the ranks by irrational steps: whichever cards are popular, amounts and countries of the
        # whole stream are the same for every seed, and so a model's drift profile holds for all of them.
        self.mean = 40.0 * _lognormal((rank + 0.5) * 0.6180339887498949 % 1, 0.6)
        self.country = (((rank + 0.5) * 0.7548776662466927 % 1) ** 2 * COUNTRIES).astype(np.int64)
        self._taste = seed + 1
        self._spread = np.exp(0.45 * _QUANTILES)

    def popular(self, u: Floats) -> Ints:
        """Return cards by popularity."""
        found: Ints = np.searchsorted(self._popularity, u * self._popularity[-1], side="right").astype(np.int64)
        return np.minimum(found, len(self.names) - 1)

    def spread(self, u: Floats) -> Floats:
        """Return factors on the usual amount; one payment in a hundred is a large one, five times as high."""
        factor: Floats = self._spread[(u * len(self._spread)).astype(np.int64)]
        return np.where(u * 1024 % 1 < 0.01, factor * 5, factor)

    def merchant(self, card: Ints, u: Floats) -> Ints:
        """Return one of the five merchants that a card goes to, the first ones more often."""
        choice = card * 8 + (u * u * 5).astype(np.int64)
        return (mix64(choice, self._taste) % np.uint64(MERCHANTS)).astype(np.int64)

    def any_merchant(self, u: Floats) -> Ints:
        """Return merchants without regard to the card."""
        return (u * MERCHANTS).astype(np.int64)

    def foreign(self, u: Floats) -> Ints:
        """Return countries without regard to the card's home."""
        return (u * COUNTRIES).astype(np.int64)
