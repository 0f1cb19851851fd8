"""Call a model with a deadline: a call that does not return in time is left behind on its thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from streamml.errors import ModelError

__all__ = ["DeadlineError", "Deadlines"]

T = TypeVar("T")


class DeadlineError(ModelError):
    """Raised when a model did not answer in time."""


class Deadlines:
    """Makes calls on a thread of its own, and gives up waiting when the time is over.

    A computation can't be interrupted from outside, so the thread of a late call lives on until it returns; its answer
    is thrown away. While `limit` calls are stuck in that way, further ones fail at once.

    Args:
        limit: calls that may be stuck at the same time.

    >>> deadlines = Deadlines()
    >>> deadlines.call(lambda: 1 + 1, 5.0)
    2
    >>> deadlines.close()
    """

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self._worker: _Worker | None = None
        self._stuck: list[_Worker] = []

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Return what the function returns, or raise what it raises.

        Raises:
            DeadlineError: it took longer than that, or too many earlier calls are still stuck.
        """
        self._stuck = [worker for worker in self._stuck if not worker.idle]
        if seconds <= 0 or len(self._stuck) >= self._limit:
            msg = f"no time was left ({len(self._stuck)} earlier calls have not returned yet)"
            raise DeadlineError(msg)
        worker = self._worker or _Worker()
        self._worker = worker
        done = worker.start(function)
        if not done.wait(seconds):
            self._worker = None
            self._stuck.append(worker)
            worker.leave()
            msg = f"no answer within {seconds * 1000:.0f} ms"
            raise DeadlineError(msg)
        if worker.error is not None:
            raise worker.error
        found: T = worker.result
        return found

    def close(self) -> None:
        """Let the threads end; one that is stuck ends when its call returns, or with the process."""
        if self._worker is not None:
            self._worker.leave()
            self._worker = None


class _Worker:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.idle = True
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], threading.Event] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="model with a deadline", daemon=True).start()

    def start(self, function: Callable[[], Any]) -> threading.Event:
        self.result = self.error = None
        self.idle = False
        done = threading.Event()
        self._calls.put((function, done))
        return done

    def leave(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, done = call
            try:
                self.result = function()
            except BaseException as exc:
                self.error = exc
            self.idle = True
            done.set()
