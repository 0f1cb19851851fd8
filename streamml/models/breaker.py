"""Circuit breaker: stop calling a model that keeps failing, and find out by a few rows when it works again."""

from __future__ import annotations

import msgspec

from streamml.errors import PlanError
from streamml.times import Duration, to_millis

__all__ = ["Breaker", "BreakerState"]


class Breaker(msgspec.Struct, frozen=True):
    """When to stop calling a model.

    Attributes:
        share: share of failed rows from which on it opens, above 0, at most 1.
        count: least number of rows within the window, so that one early failure does not open it.
        window: how far back rows count, in processing time.
        pause: how long it stays open before a probe is made.
        probes: rows of a probe.

    >>> Breaker(share=0.2, pause="1s").pause
    1000
    """

    share: float = 0.5
    count: int = 20
    window: Duration = "10s"
    pause: Duration = "5s"
    probes: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.count < 1 or self.probes < 1:
            msg = f"Breaker: wanted 0 < share <= 1, count >= 1 and probes >= 1, got {self}"
            raise PlanError(msg)
        for name in ("window", "pause"):
            try:
                millis = to_millis(getattr(self, name), where=f"Breaker({name}=)")
            except ValueError as exc:
                raise PlanError(str(exc)) from exc
            msgspec.structs.force_setattr(self, name, millis)


class BreakerState:
    """One breaker at work.

    >>> state = BreakerState(Breaker(count=4, pause="1s"))
    >>> state.note(4, 4, now=0); state.allowed(10, now=500), state.allowed(10, now=1000)
    (0, 8)
    >>> state.note(8, 0, now=1000); state.allowed(10, now=1001)
    10
    """

    def __init__(self, breaker: Breaker) -> None:
        self._share, self._count, self._probes = breaker.share, breaker.count, breaker.probes
        self._pause, self._half = int(breaker.pause), max(int(breaker.window) // 2, 1)
        self._halves = [[0, 0], [0, 0]]  # rows and failures of this half of the window, and of the one before
        self._since: int | None = None
        self._open_until: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are being withheld, probes aside."""
        return self._open_until is not None

    def allowed(self, rows: int, now: int) -> int:
        """Return how many of the next rows may be sent: all, none, or a probe."""
        if self._open_until is None:
            return rows
        return min(rows, self._probes) if now >= self._open_until else 0

    def note(self, rows: int, failed: int, now: int) -> None:
        """Take note of rows that were sent and of how many of them failed."""
        if self._open_until is not None:
            if rows and failed < self._share * rows:
                self._open_until, self._since, self._halves = None, now, [[0, 0], [0, 0]]
            elif rows:
                self._open_until = now + self._pause
            return
        if self._since is None or now - self._since >= self._half:
            passed = self._since is None or now - self._since >= 2 * self._half
            self._halves = [[0, 0], [0, 0] if passed else self._halves[0]]
            self._since = now
        self._halves[0][0] += rows
        self._halves[0][1] += failed
        total, bad = (self._halves[0][i] + self._halves[1][i] for i in (0, 1))
        if failed and total >= self._count and bad >= self._share * total:
            self._open_until = now + self._pause
