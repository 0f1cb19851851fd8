"""The embedded engine: one loop that polls, processes, writes, and takes checkpoints between two micro-batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from streamml.contract import Opening
from streamml.errors import CheckpointError, ConnectorError, PlanError
from streamml.ingest import Ingest
from streamml.keying import Keying
from streamml.local.metering import Meter
from streamml.local.options import LocalOptions
from streamml.local.storage import Storage
from streamml.observability.figures import RunFigures
from streamml.pipeline import Pipeline
from streamml.ports import Sink, Source
from streamml.records import Batch
from streamml.runtime import StageRuntime
from streamml.times import MAX_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["LocalEngine", "RunResult"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        finished: the input has ended and everything was processed; otherwise the run was stopped and may be continued.
        figures: the run's figures.
        problems: what was found damaged at the start and put aside.
        sides: number of records of each side output.
    """

    finished: bool
    figures: RunFigures
    problems: tuple[str, ...]
    sides: Mapping[str, int]


class LocalEngine:
    """Runs a pipeline in this process.

    Order within a key is that of the source partition. A checkpoint is taken between two micro-batches, when nothing is under way, so it is one
    consistent cut: state, timers, source positions, watermarks, and what the sinks have prepared. Its number is stored first; then the sinks
    commit. After a crash the newest checkpoint is loaded, and the sinks finish or discard what came after.

    Args:
        pipeline: what to run.
        sources: a source for each tag.
        sink: the main output.
        sides: a sink for each side output; what has none is counted only.
        options: see `LocalOptions`.
        models: folders that are searched for model bundles.
        clock: wall clock in ms, for idleness, processing-time timers and the limit on future events.
        on_step: called between the durable steps of a checkpoint (fault tests).
        on_progress: called about ten times a second with the run's figures.
        tracker: what follows the watermark (the test kit's is told it by a script).
        storage: makes the state and checkpoints of a run, in place of `Storage` (test kit).
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sources: Mapping[str, Source],
        sink: Sink,
        sides: Mapping[str, Sink] | None = None,
        *,
        options: LocalOptions | None = None,
        models: tuple[str, ...] = (),
        meter: Meter | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_step: Callable[[str], None] | None = None,
        on_progress: Callable[[RunFigures], None] | None = None,
        tracker: WatermarkTracker | None = None,
        storage: Callable[[], Storage] | None = None,
    ) -> None:
        pipeline.check()
        if missing := {spec.tag for spec in pipeline.sources} ^ set(sources):
            msg = f"pipeline {pipeline.name!r}: sources do not match its tags; check {', '.join(sorted(missing))}"
            raise PlanError(msg)
        self.pipeline = pipeline
        self.options = options or LocalOptions()
        self.meter = meter or Meter()
        self._sources = dict(sources)
        self._sink = sink
        self._sides = dict(sides or {})
        self._models = models
        self._clock = clock
        self._on_step = on_step or (lambda name: None)
        self._on_progress = on_progress
        self._stopping = False
        self._tracker = tracker or WatermarkTracker()
        self._new_storage = storage or (lambda: Storage(self.options, pipeline.name, self._on_step))
        tagged = len(pipeline.sources) > 1
        self._ingest = {spec.tag: Ingest(spec, pipeline.name, self._tracker, tagged=tagged) for spec in pipeline.sources}

    def stop(self) -> None:
        """Ask the run to end: after the current micro-batch it takes a checkpoint and returns. Safe in a signal handler."""
        self._stopping = True

    def checkpoint(self) -> None:
        """Take a checkpoint now; for a source to call in `poll`, when no record is under way (test kit)."""
        self._checkpoint(finished=False)

    def run(self) -> RunResult:
        """Run until the sources are finished or `stop` is called.

        Raises:
            StreamMLError: something that retrying can't mend; state and output are those of the last checkpoint.
        """
        self._storage = self._new_storage()
        opened: list[Any] = [self._storage]
        try:
            self._open(opened)
            return self._loop()
        finally:
            _close_all(opened)

    def _open(self, opened: list[Any]) -> None:
        manifest = self._storage.manifest
        ids: dict[str, int] = dict(manifest.get("stage_ids", {}))
        for spec in self.pipeline.stages:
            ids.setdefault(spec.name, len(ids))
        self._stage_ids = ids
        opening = Opening(self.pipeline.name, self._models, self.meter.metrics)
        self._stages: list[tuple[Keying | None, StageRuntime]] = []
        for spec in self.pipeline.stages:
            stage = StageRuntime(
                spec.operators,
                self._storage.store,
                number=ids[spec.name],
                groups=self.pipeline.key_groups,
                memory=manifest.get("stages", {}).get(spec.name),
                opening=opening,
                cache_bytes=(self.options.cache_mb << 20) // len(self.pipeline.stages),
            )
            opened.append(stage)
            self._stages.append((Keying(spec) if spec.selector is not None else None, stage))
        prepared = manifest.get("sinks", {})
        for name, sink in self._all_sinks():
            sink.open(prepared.get(name) if manifest else None)
            opened.append(sink)
        now = self._clock()
        for tag, source in self._sources.items():
            source.open(manifest.get("sources", {}).get(tag))
            opened.append(source)
            self._ingest[tag].follow(source.partitions(), now)
        if manifest:
            self._tracker.restore(manifest["watermarks"])
        self._was_finished = bool(manifest.get("finished"))

    def _all_sinks(self) -> list[tuple[str, Sink]]:
        return [("main", self._sink), *((f"side.{name}", sink) for name, sink in self._sides.items())]

    def _loop(self) -> RunResult:
        options, meter = self.options, self.meter
        interval, poll = int(options.checkpoint_interval) / 1000, int(options.poll) / 1000
        meter.start()
        next_checkpoint = time.monotonic() + interval
        next_progress = time.monotonic()
        sources = list(self._sources.items())
        turn = 0
        while not self._stopping:
            got = False
            live = [item for item in sources if not item[1].finished]
            if not live:
                break
            tag, source = live[turn % len(live)]
            turn += 1
            chunk = source.poll(options.batch_size, 0.0 if len(live) > 1 and turn % len(live) else poll)
            now = self._clock()
            if chunk is not None and chunk.payloads:
                got = True
                started = time.perf_counter()
                batch, bad = self._ingest[tag].batch(chunk, now)
                meter.read(len(chunk.payloads))
                self._write_sides({"rejected": bad} if bad else {})
                self._through(batch, 0, now)
                meter.batch(len(chunk.payloads), time.perf_counter() - started)
            if not got or turn % 16 == 0:
                self._housekeeping(now)
            monotonic = time.monotonic()
            if monotonic >= next_checkpoint:
                self._checkpoint(finished=False)
                next_checkpoint = time.monotonic() + interval
            if monotonic >= next_progress:
                self._report()
                next_progress = monotonic + 0.1
        finished = not self._stopping
        if finished and not (self._was_finished and meter.events == 0):
            self._through(_tick(MAX_TIME), 0, self._clock())
        self._checkpoint(finished=finished)
        self._report()
        problems = tuple(self._storage.restored.problems) if self._storage.restored else ()
        return RunResult(finished, meter.figures(), problems, dict(meter.side_counts))

    def _housekeeping(self, now: int) -> None:
        """What is due although no records came: idle partitions, finished ones, processing-time timers."""
        for tag, source in self._sources.items():
            ingest = self._ingest[tag]
            alive = {ingest.partition(name) for name in source.partitions()}
            for name in self._tracker.partitions():
                if name.startswith(f"{tag}/") and name not in alive:
                    self._tracker.finish(name)
            ingest.follow(source.partitions(), now)
        before = self._tracker.current
        if self._tracker.idle(now) > before:
            self._through(_tick(self._tracker.current), 0, now)
        for number, (_, stage) in enumerate(self._stages):
            if (output := stage.tick(now)) is not None:
                self._write_sides(output.sides)
                self._through(output.main, number + 1, now)

    def _through(self, batch: Batch, start: int, now: int) -> None:
        """Send a batch through the stages from `start` on, and what comes out to the sinks."""
        for keying, stage in self._stages[start:]:
            if keying is not None:
                batch, bad = keying.assign(batch)
                if bad:
                    self._write_sides({"rejected": bad})
            output = stage.process(batch, now)
            if output.sides:
                self._write_sides(output.sides)
            batch = output.main
        if len(batch):
            self._sink.write(batch, self.pipeline.selected)
            self.meter.written(len(batch))
        self.meter.watermark(batch.watermark, now)

    def _write_sides(self, sides: Mapping[str, list[dict[str, Any]]]) -> None:
        for name, records in sides.items():
            self.meter.side(name, records)
            if name in self._sides:
                self._sides[name].write_records(records)

    def _checkpoint(self, *, finished: bool) -> None:
        """Take a checkpoint and commit the sinks; a failed checkpoint ends the run, with the one before intact."""
        started = time.perf_counter()
        storage, now = self._storage, self._clock()
        storage.number += 1
        number, step = storage.number, self._on_step
        try:
            for _, stage in self._stages:
                stage.flush(now)
            step("state flushed")
            prepared = {}
            for name, sink in self._all_sinks():
                prepared[name] = sink.prepare(number)
                step(f"{name} prepared")
            info = storage.save(
                {
                    "pipeline": self.pipeline.name,
                    "finished": finished,
                    "stage_ids": self._stage_ids,
                    "stages": {
                        spec.name: stage.snapshot() for spec, (_, stage) in zip(self.pipeline.stages, self._stages, strict=True)
                    },
                    "sources": {tag: source.positions() for tag, source in self._sources.items()},
                    "watermarks": self._tracker.snapshot(),
                    "sinks": prepared,
                }
            )
            step("checkpoint stored")
            for name, sink in sorted(self._all_sinks(), key=lambda item: not item[1].decides):
                sink.commit(number)
                step(f"{name} committed")
        except (CheckpointError, ConnectorError):
            self.meter.checkpoint_failed()
            raise
        self.meter.checkpoint(number, time.perf_counter() - started, info.bytes if info is not None else 0)

    def _report(self) -> None:
        if self._on_progress is not None:
            shares = [share for source in self._sources.values() if (share := source.progress()) is not None]
            lag = sum(sum(source.lag().values()) for source in self._sources.values())
            self.meter.position(min(shares) if len(shares) == len(self._sources) else None, lag)
            self._on_progress(self.meter.figures())


def _tick(watermark: int) -> Batch:
    return Batch([], times=[], ids=[], watermarks=[], watermark=watermark)


@contextmanager
def _calm_collector() -> Iterator[None]:
    """Let the cyclic garbage collector look less often: cached state is many objects without cycles, which it would walk in vain."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _close_all(opened: list[Any]) -> None:
    """Close everything in reverse order; the first failure is raised after the rest is closed."""
    failure: Exception | None = None
    for item in reversed(opened):
        try:
            item.close()
        except Exception as exc:
            failure = failure or exc
    if failure is not None:
        raise failure
