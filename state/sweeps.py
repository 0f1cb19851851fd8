"""When rows that have expired are looked for in a store on which scanning is dear."""

from __future__ import annotations

__all__ = ["RareSweeps"]


class RareSweeps:
    """Allows a sweep over everything once in a while.

    Args:
        every: how far the watermark or the clock moves on between two sweeps, ms; 0 for never.

    >>> sweeps = RareSweeps(1_000)
    >>> [sweeps.budget(watermark, now=0) > 0 for watermark in (0, 999, 1_000, 1_500)]
    [False, False, True, False]
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._swept_at: tuple[int, int] | None = None

    def budget(self, watermark: int, now: int) -> int:
        """Return how many rows a sweep may look at now: all or none."""
        if self._swept_at is None:
            self._swept_at = (watermark, now)
        before, then = self._swept_at
        if not self._every or max(watermark - before, now - then) < self._every:
            return 0
        self._swept_at = (watermark, now)
        return 2**62
