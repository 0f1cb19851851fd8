"""A job of several workers from its start to its end: their number set, then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamml.local.rescale import end_of, locked, rescale
from streamml.local.segments import stage_names
from streamml.local.share import check_share
from streamml.local.workers import JobResult, Restarts, Workers
from streamml.observability.figures import RunFigures
from streamml.pipeline import Pipeline
from streamml.state.workers import WorkerFolders, read_workers

__all__ = ["WorkerJob"]


class WorkerJob:
    """Runs a pipeline by several processes that share its keys.

    Every worker reads all of the input, so each knows the same watermark, and keeps the rows of its own key groups. It
    has its own state, checkpoints and outputs, and a cut of its own: none waits for another. If the state is of
    another number of workers, those read on to one place of the input first, and their state is dealt out anew.

    A pipeline that changes its key is cut there into segments, each with as many workers: what a worker of one segment
    commits at a checkpoint, those of the next one read from its log.

    Args:
        pipeline: what is run, to be checked before any process is started.
        root: the job's state folder.
        count: how many workers; None for as many as there were.
        make: `module:function` that builds a worker's engine, see `streamml.local.worker.Place`.
        arguments: what it gets, plain JSON.
        restarts: when to give up on workers that die.
        say: takes messages for people.
        on_progress: called about ten times a second with the figures of all workers together.
        on_start: called with the workers when their number is settled, before they are started.
        on_step: called between the durable steps of a change of their number (fault tests).
        debug: workers show the traceback of an error.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        root: Path,
        count: int | None,
        make: str,
        arguments: Mapping[str, Any],
        *,
        restarts: Restarts | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[RunFigures], None] = lambda figures: None,
        on_start: Callable[[WorkerFolders], None] = lambda folders: None,
        on_step: Callable[[str], None] = lambda name: None,
        debug: bool = False,
    ) -> None:
        self._root = root
        self._count = count
        self._make = make
        self._arguments = arguments
        self._options: dict[str, Any] = {"restarts": restarts, "say": say, "on_progress": on_progress, "debug": debug}
        self._say = say
        self._on_start = on_start
        self._on_step = on_step
        self._pipeline = pipeline
        self._running: Workers | None = None
        self._stopping = False

    def stop(self) -> None:
        """Ask all workers to take a checkpoint and end. Safe in a signal handler."""
        self._stopping = True
        if self._running is not None:
            self._running.stop()

    def run(self) -> JobResult:
        """Run until the input ends or `stop` is called.

        Raises:
            StreamMLError: the pipeline can't be shared, a worker failed, or died too often.
        """
        check_share(self._pipeline, self._count or 1)
        with locked(self._root) as lock:
            now = read_workers(self._root)
            count = self._count or now.count
            check_share(self._pipeline, count)
            before: list[JobResult] = []
            if (end := end_of(now)) is not None:
                self._say("the input has ended for some workers: the others read on to there first")
                before.append(self._run(now, lock, end, ends=True))
                if self._stopping:
                    return before[0]

            def read_on(goal: Mapping[str, Any]) -> bool:
                self._say(f"{now.count} workers before, {count} now: reading on to one place of the input")
                before.append(self._run(now, lock, goal))
                if not self._stopping:
                    self._say(f"dealing out the state of {now.count} to {count} workers")
                return not self._stopping

            workers = rescale(now, count, read_on, self._on_step, stage_names(self._pipeline))
            if workers is None:
                return before[-1]
            self._on_start(workers)
            return self._run(workers, lock, None)

    def _run(
        self, folders: WorkerFolders, lock: int, goal: Mapping[str, Any] | None, *, ends: bool = False
    ) -> JobResult:
        options = {"lock": lock, "goal": goal, "ends": ends, **self._options}
        self._running = Workers(folders, self._make, self._arguments, **options)
        if self._stopping:
            self._running.stop()
        return self._running.run()
