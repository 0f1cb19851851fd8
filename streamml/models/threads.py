"""One budget of threads for all models of a process.

A model computes on the thread that calls it, and on more only if it is asked to and the process has some left: the
budget is the cores that the process may use. So sessions side by side do not oversubscribe the cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from streamml.errors import ModelError

__all__ = ["Budget", "Lease", "budget"]


class Lease:
    """Threads that one model holds until it closes.

    Attributes:
        threads: how many, the calling one included; at least 1.
    """

    def __init__(self, budget: Budget, threads: int) -> None:
        self.threads = threads
        self._budget: Budget | None = budget

    def close(self) -> None:
        """Give the threads back. May be called twice."""
        if self._budget is not None:
            self._budget._give_back(self.threads - 1)
            self._budget = None


class Budget:
    """Threads of a process. The first one of each model is the caller's and costs nothing.

    Args:
        total: how many threads may compute at the same time on behalf of one call.

    >>> cores = Budget(4)
    >>> one, two, three = cores.lease(3), cores.lease(3), cores.lease(3)
    >>> one.threads, two.threads, three.threads
    (3, 2, 1)
    >>> one.close()
    >>> cores.lease(2).threads
    2
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            msg = f"thread budget: wanted at least 1 thread, got {total}"
            raise ModelError(msg)
        self.total = total
        self._left = total - 1
        self._lock = threading.Lock()

    def lease(self, wanted: int) -> Lease:
        """Take up to `wanted` threads: as many as are left, and at least the calling one."""
        with self._lock:
            extra = max(min(wanted - 1, self._left), 0)
            self._left -= extra
        return Lease(self, 1 + extra)

    def _give_back(self, extra: int) -> None:
        with self._lock:
            self._left += extra

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Budget:
        """Read `STREAMML_THREADS`; without it the budget is the cores that the process may use.

        >>> Budget.from_env({"STREAMML_THREADS": "3"}).total
        3
        """
        said = environ.get("STREAMML_THREADS") or str(len(os.sched_getaffinity(0)))
        if not said.isdecimal():
            msg = f"STREAMML_THREADS: wanted a number, got {said!r}"
            raise ModelError(msg)
        return cls(int(said))


_process: Budget | None = None
_once = threading.Lock()


def budget() -> Budget:
    """Return the budget of this process."""
    global _process
    with _once:
        if _process is None:
            _process = Budget.from_env()
        return _process
