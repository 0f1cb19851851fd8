"""The versions of one model that serve in a process: by event time, loaded off the hot path, freed when done with."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from streamml.errors import ModelError
from streamml.models.loaded import LoadedModel
from streamml.models.registry import Conflict, Registry
from streamml.models.rollout import History, Rollout
from streamml.times import MAX_TIME, MIN_TIME

if TYPE_CHECKING:
    from streamml.observability import Metrics

__all__ = ["Serving"]

_REPLAY = 600_000
"""Events that are so many ms older than the clock are a replay: they don't change the history any more."""

_log = logging.getLogger("streamml.models")


class Serving:
    """Which version scores which event, and the loaded versions themselves.

    A thread of its own looks for new rollouts, loads what they name, warms it up and checks its golden rows. Only then
    is `history` replaced, which the operator reads once per micro-batch. A rollout whose versions can't be served is
    refused: what held before it goes on, and the refusal is written to the history, so that other workers and
    replays do the same.

    Args:
        name: name of the model.
        history: rollouts as of now.
        load: loads, checks and warms up a version; called by either thread.
        registry: where rollouts appear; None when the version is fixed.
        alias: the alias that is followed.
        poll: seconds between two looks.
        lead: milliseconds of event time from a guard's decision to its effect, in which every worker learns of it.
        who: who refuses and rolls back, for the history.
        metrics: the job's metrics.
    """

    def __init__(
        self,
        name: str,
        history: History,
        load: Callable[[int], LoadedModel],
        *,
        registry: Registry | None = None,
        alias: str = "prod",
        poll: float = 1.0,
        lead: int = 5_000,
        who: str = "job",
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self.history = history
        self.alias = alias
        self._load = load
        self._registry = registry
        self._poll, self._lead, self._who = poll, lead, who
        self._models: dict[int, LoadedModel] = {}
        self._ready: set[int] = set()
        self._refused: set[int] = set()
        self._undone: set[int] = set()
        self._newest = MIN_TIME
        self._kept: tuple[Rollout | None, ...] = ()
        self._loading = threading.RLock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stamp: object = None
        self._down = False
        self._thread: threading.Thread | None = None
        counter = (lambda name: metrics.counter(name, model=self.name)) if metrics is not None else lambda _: None
        self._swaps = counter("streamml_model_swaps_total")
        self._late = counter("streamml_rollouts_late_total")
        self._refusals = counter("streamml_rollouts_refused_total")
        self._rollbacks = counter("streamml_rollbacks_total")
        self.rollout(history, MAX_TIME)  # a job whose model can't serve at all fails at its start
        if registry is not None:
            self._stamp = registry.stamp(name)
            self._thread = threading.Thread(target=self._follow, name=f"rollouts of {name}", daemon=True)
            self._thread.start()

    @property
    def loaded(self) -> tuple[int, ...]:
        """The versions in memory."""
        return tuple(sorted(self._models))

    @property
    def current(self) -> LoadedModel:
        """The champion for the newest event so far."""
        history = self.history
        return self.model(self.rollout(history, self._newest if self._newest > MIN_TIME else MAX_TIME).champion)

    def rollout(self, history: History, time: int) -> Rollout:
        """Return what holds at an event time, with all its versions loaded: waits for them when they are not.

        Raises:
            ModelError: not even the first rollout can be served.
        """
        while True:
            found = history.at(time)
            if found.number in self._ready:
                return found
            try:
                self._prepare(found)
            except ModelError as exc:
                history = self._refuse(found, exc)
            else:
                return found

    def model(self, version: int) -> LoadedModel:
        """Return a loaded version; loads one that is not."""
        found = self._models.get(version)
        if found is None:
            with self._loading:
                found = self._models.get(version)
                if found is None:
                    found = self._models[version] = self._load(version)
        return found

    def settle(self, newest: int, watermark: int) -> None:
        """Take note of how far the stream is: free versions that no event needs, prepare the next.

        Called between two micro-batches.
        """
        if newest > self._newest:
            self._newest = newest
        history = self.history
        now = history.at(self._newest)
        kept = (history.at(watermark), now, history.after(self._newest))
        if kept == self._kept:
            return
        if self._swaps and len(self._kept) > 1 and self._kept[1] is not now:
            self._swaps.inc()
        self._kept = kept
        if self._loading.acquire(blocking=False):  # else the thread is loading: the next batch frees
            try:
                needed = {version for rollout in kept if rollout is not None for version in rollout.versions}
                for version in [version for version in self._models if version not in needed]:
                    self._models.pop(version).close()
                self._ready = {rollout.number for rollout in kept if rollout and rollout.number in self._ready}
            finally:
                self._loading.release()
        else:
            self._kept = ()
        if self._thread is not None and kept[2] is not None and kept[2].number not in self._ready:
            self._tasks.put(self._look)

    def roll_back(self, rollout: Rollout, why: str) -> None:
        """End a canary, once: from a few seconds of event time on, and in the history.

        A replay of the past changes nothing: it gives what the history says, and the guard has had its say then.
        """
        if rollout.number in self._undone or self._newest < time.time() * 1000 - _REPLAY:
            return
        self._undone.add(rollout.number)
        if self._rollbacks:
            self._rollbacks.inc()
        effective = self._newest + self._lead
        left = tuple(split for split in rollout.splits if split.role != "canary")
        then = msgspec.structs.replace(rollout, splits=left, guard=None)
        self._tell("rollback", then, tuple({*rollout.versions} - {*then.versions}), effective, why)
        self._tasks.put(lambda: self._append("rollback", then, rollout, effective, why))

    def news(self) -> list[dict[str, Any]]:
        """Return what happened since the last call: refusals and rollbacks, for a side output."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def close(self) -> None:
        """Stop following, and release all versions."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None
        for model in self._models.values():
            model.close()
        self._models.clear()

    def _prepare(self, rollout: Rollout) -> None:
        with self._loading:
            for version in rollout.versions:
                self.model(version)
            self._ready = self._ready | {rollout.number}

    def _follow(self) -> None:
        """Look for new rollouts until told to stop; runs on a thread of its own."""
        while True:
            try:
                task: Callable[[], None] | None = self._tasks.get(timeout=self._poll)
            except queue.Empty:
                task = self._look
            if task is None:
                return
            try:
                task()
            except (ModelError, OSError) as exc:
                if not self._down:
                    _log.error("model %s: the registry can't be used, what serves goes on: %s", self.name, exc)
                self._down = True
            else:
                if self._down and task == self._look:
                    _log.warning("model %s: the registry is back", self.name)
                    self._down = False

    def _look(self) -> None:
        """Take new rollouts over once what they need first is loaded; get ready what comes next."""
        assert self._registry is not None
        stamp = self._registry.stamp(self.name)
        fresh = self.history if stamp == self._stamp else self._read()
        while True:
            newest = self._newest
            wanted = [fresh.spans[-1]] if newest == MIN_TIME else [fresh.at(newest), fresh.after(newest)]
            missing = next((r for r in wanted if r is not None and r.number not in self._ready), None)
            if missing is None:
                break
            started = time.perf_counter()
            try:
                self._prepare(missing)
            except ModelError as exc:
                self.history = fresh
                fresh = self._refuse(missing, exc)
            else:
                _log.info(
                    "model %s@%s: %s of %s is ready after %.3f s", self.name, self.alias, missing.action,
                    ", ".join(map(str, missing.versions)), time.perf_counter() - started,
                )  # fmt: skip
        if fresh is not self.history:
            known = {rollout.number for rollout in self.history.spans}
            if self._late and any(r.number not in known and r.effective <= self._newest for r in fresh.spans):
                self._late.inc()
            self.history = fresh
        self._stamp = stamp

    def _read(self) -> History:
        assert self._registry is not None
        records = [r for r in self._registry.records(self.name) if r.alias == self.alias]
        return History(r for r in records if r.number not in self._refused) if records else self.history

    def _refuse(self, rollout: Rollout, error: ModelError) -> History:
        """Do without a rollout, and say so in the history; returns the history without it."""
        _log.error("model %s: %s of %d refused: %s", self.name, rollout.action, rollout.champion, error)
        self._refused.add(rollout.number)
        rest = [r for r in self.history.spans if r.number not in self._refused]
        if not rest or self._registry is None:
            raise error
        if self._refusals:
            self._refusals.inc()
        self.history = History(rest)
        before = self.history.at(rollout.effective)
        self._tell("refuse", before, rollout.versions, rollout.effective, str(error))
        self._tasks.put(lambda: self._append("refuse", before, rollout, rollout.effective, str(error)))
        return self.history

    def _append(self, action: str, then: Rollout, against: Rollout, effective: int, why: str) -> None:
        """Append to the history what another worker has not yet written against the same rollout."""
        assert self._registry is not None
        while True:
            records = self._registry.records(self.name)
            if any(r.action == action and r.alias == self.alias and r.number > against.number for r in records):
                break
            try:
                self._registry.append(
                    self.name, self.alias, action, effective=effective, champion=then.champion, splits=then.splits,
                    shadows=then.shadows, guard=then.guard, who=self._who, why=why, at=int(time.time() * 1000),
                    refused=against.number if action == "refuse" else 0, after=len(records),
                )  # fmt: skip
            except Conflict:
                continue
            break
        self._look()

    def _tell(self, action: str, then: Rollout, versions: tuple[int, ...], effective: int, why: str) -> None:
        self._news.put(
            {"model": self.name, "alias": self.alias, "action": action, "versions": list(versions),
             "champion": then.champion, "effective": effective, "why": why}
        )  # fmt: skip
