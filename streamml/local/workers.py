"""The supervisor: starts the workers of a job, sums their figures, restarts those that die, stops all in order."""

from __future__ import annotations

import selectors
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, pairwise
from typing import Any

import streamml.errors
from streamml.errors import StreamMLError
from streamml.local.engine import RunResult
from streamml.local.processes import WorkerProcess
from streamml.local.share import Share
from streamml.local.together import from_plain, of_segments, together
from streamml.observability.figures import RunFigures
from streamml.state.workers import WorkerFolders

__all__ = ["JobResult", "Restarts", "Workers"]


@dataclass(frozen=True)
class Restarts:
    """How often workers that died are started again.

    Attributes:
        most: after so many deaths of one worker within the period the job ends.
        period: seconds.
        first: wait before the first restart, seconds; twice as long each further time.
        longest: longest wait, seconds.
    """

    most: int = 5
    period: float = 600.0
    first: float = 0.25
    longest: float = 30.0

    def wait(self, deaths: int) -> float:
        """Return how long to wait after so many deaths in the period.

        >>> [Restarts().wait(deaths) for deaths in (1, 2, 3, 12)]
        [0.25, 0.5, 1.0, 30.0]
        """
        return min(self.first * 2.0 ** (deaths - 1), self.longest)


@dataclass(frozen=True)
class JobResult:
    """How the workers of a job ended.

    Attributes:
        run: their results together.
        kinds: for each side output how many records of each kind came.
        restarts: how often a worker was started again.
    """

    run: RunResult
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    restarts: int = 0


class Workers:
    """Runs the workers of a job until all have read their input to its end, `stop` is called, or one fails.

    A worker that is killed or crashes is started again and goes on from its own checkpoint, while the others go on.
    One that ends with an error of the library (`StreamMLError`) ends the job: the others take a checkpoint, and the
    error is raised here.

    Args:
        folders: where their state is.
        make: `module:function` that builds a worker's engine, see `streamml.local.worker.Place`.
        arguments: what it gets, plain JSON.
        lock: the lock of `streamml.local.rescale.locked`, which the workers inherit.
        goal: positions up to which they read, for each source; by default to the end.
        ends: the input counts as ended there.
        restarts: when to give up.
        say: takes what workers write to standard error, and what happens to them.
        on_progress: called about ten times a second with the figures together.
        debug: workers show the traceback of an error.
    """

    def __init__(
        self,
        folders: WorkerFolders,
        make: str,
        arguments: Mapping[str, Any],
        *,
        lock: int,
        goal: Mapping[str, Any] | None = None,
        ends: bool = False,
        restarts: Restarts | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[RunFigures], None] = lambda figures: None,
        debug: bool = False,
    ) -> None:
        self.goal = goal
        self._lock = lock
        self._restarts = restarts or Restarts()
        self._say = say
        self._on_progress = on_progress
        self._stopping = self._told = False
        self._failure: StreamMLError | None = None
        self._restarted = 0
        self.workers = []
        for number, folder in enumerate(folders.all_folders()):
            segment, index = divmod(number, folders.count)
            share = Share(index, folders.count, folders.generation, segment, folders.segments)
            request = {
                "make": make,
                "arguments": arguments,
                "state_dir": str(folder),
                "share": asdict(share),
                "home": str(folders.home),
                "goal": goal,
                "ends": ends,
                "path": sys.path,
                "debug": debug,
            }
            self.workers.append(WorkerProcess(share, request, say))

    def stop(self) -> None:
        """Ask all workers to take a checkpoint and end. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> JobResult:
        """Run them.

        Raises:
            StreamMLError: a worker failed in a way that a restart can't mend, or died too often.
        """
        next_progress = 0.0
        with selectors.DefaultSelector() as selector:
            try:
                for worker in self.workers:
                    worker.start(selector, self._lock)
                while any(worker.running or worker.start_at is not None for worker in self.workers):
                    for key, _ in selector.select(0.05):
                        worker, reader = key.data
                        worker.read(selector, reader)
                    if self._stopping and not self._told:
                        self._tell_all()
                    for worker in self.workers:
                        self._look_after(worker, selector)
                    self._tell_ended()
                    if time.monotonic() >= next_progress:
                        self._on_progress(self.figures())
                        next_progress = time.monotonic() + 0.1
            finally:
                for worker in self.workers:
                    worker.kill()
        if self._failure is not None:
            raise self._failure
        return self._result()

    def figures(self) -> RunFigures:
        """Return the figures of all workers together, those of lives that are over up to their last checkpoint."""
        return of_segments([self._segment_figures(mine) for mine in self._segments()])

    def _segments(self) -> list[list[WorkerProcess]]:
        return [list(mine) for _, mine in groupby(self.workers, key=lambda worker: worker.segment)]

    def _segment_figures(self, workers: Sequence[WorkerProcess]) -> RunFigures:
        now: list[RunFigures] = []
        before: list[RunFigures] = []
        for worker in workers:
            *over, last = [from_plain(life["figures"]) for life in worker.kept] or [RunFigures()]
            ended = not worker.running and worker.start_at is None
            now.append(last if ended else worker.figures or RunFigures())
            before += over if ended else [*over, last]
        return together(now, before)

    def _tell_ended(self) -> None:
        """Tell the workers of each segment when all of the one before have ended in order."""
        for before, after in pairwise(self._segments()):
            if all(map(self._in_order, before)):
                for worker in after:
                    worker.tell_ended()

    def _in_order(self, worker: WorkerProcess) -> bool:
        """Return whether a worker has ended, and not because it was told to stop."""
        if worker.running or worker.start_at is not None or worker.message is None:
            return False
        kind, body = worker.message
        return bool(kind == "end" and (body["finished"] or not body["stopped"]))

    def _tell_all(self) -> None:
        self._told = True
        for worker in self.workers:
            worker.start_at = None
            worker.tell(signal.SIGTERM)

    def _look_after(self, worker: WorkerProcess, selector: selectors.BaseSelector) -> None:
        if worker.start_at is not None and time.monotonic() >= worker.start_at:
            self._restarted += 1
            worker.start(selector, self._lock)
        code = worker.ended(selector)
        if code is None:
            return
        kind: str
        body: Any
        kind, body = worker.message or ("crash", "")
        if kind == "error":
            self._fail(getattr(streamml.errors, body["type"], StreamMLError)(f"{worker.name}: {body['message']}"))
        elif not self._told and not (kind == "end" and code == 0 and (body["finished"] or not body["stopped"])):
            self._died(worker, code, body if kind == "crash" else "")

    def _died(self, worker: WorkerProcess, code: int, error: str) -> None:
        """Start a worker again that was killed, crashed, or was stopped by somebody else; or give up."""
        now, limit = time.monotonic(), self._restarts
        deaths = worker.deaths
        deaths.append(now)
        while deaths[0] < now - limit.period:
            deaths.popleft()
        how = error or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        if len(deaths) > limit.most:
            msg = (
                f"{worker.name}: {how}; that was death {len(deaths)} within {limit.period:.0f} seconds, so the "
                "job stops, with state and output as of the last checkpoints. Remove the cause and start it again."
            )
            self._fail(StreamMLError(msg))
            return
        wait = limit.wait(len(deaths))
        worker.start_at = now + wait
        self._say(f"{worker.name}: {how}; it is started again in {wait:.2g} s and goes on from its checkpoint")

    def _fail(self, error: StreamMLError) -> None:
        self._failure = self._failure or error
        self._stopping = True

    def _result(self) -> JobResult:
        for worker in self.workers:
            worker.settle()
        ends = [
            worker.message[1] for worker in self.workers if worker.message is not None and worker.message[0] == "end"
        ]
        sides: Counter[str] = Counter()
        kinds: dict[str, Counter[str]] = {}
        for life in (life for worker in self.workers for life in worker.kept):
            sides.update(life["sides"])
            for name, counts in life["kinds"].items():
                kinds.setdefault(name, Counter()).update(counts)
        whole = len(ends) == len(self.workers)
        result = RunResult(
            finished=whole and all(end["finished"] for end in ends),
            figures=self.figures(),
            problems=tuple(problem for end in ends for problem in end["problems"]),
            sides=dict(sides),
            nothing_new=whole and all(end["nothing_new"] for end in ends),
        )
        return JobResult(result, kinds, self._restarted)
