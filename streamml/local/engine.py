"""The embedded engine: one loop that polls, processes, writes, and takes checkpoints between two micro-batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from streamml.contract import Opening
from streamml.errors import CheckpointError, ConnectorError, PlanError, RecordError
from streamml.ingest import Ingest
from streamml.keying import Keying, keeps_record_key
from streamml.local.exchange_source import ExchangeIngest
from streamml.local.metering import Meter
from streamml.local.options import LocalOptions
from streamml.local.segments import Exchange, wire
from streamml.local.share import Drain, Goal, Share, Sharing
from streamml.local.storage import Storage
from streamml.local.writable import writable
from streamml.observability.figures import RunFigures
from streamml.pipeline import Pipeline
from streamml.ports import Sink, Source
from streamml.records import Batch
from streamml.runtime import StageRuntime, rejected
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
        nothing_new: the input had been read to its end by an earlier run, and nothing has come since.
    """

    finished: bool
    figures: RunFigures
    problems: tuple[str, ...]
    sides: Mapping[str, int]
    nothing_new: bool = False


class LocalEngine:
    """Runs a pipeline in this process.

    Order within a key is that of the source partition. A checkpoint is taken between two micro-batches, when nothing
    is under way, so it is one
    consistent cut: state, timers, source positions, watermarks, and what the sinks have prepared. Its number is
    stored first; then the sinks commit. After a crash the newest checkpoint is loaded, and the sinks finish or
    discard what came after.

    When the input ends, every window closes and every event-time timer fires. If more is appended later and the job
    is started again, it goes on with the state and the watermark that it had: duplicates are still known, aggregates
    go on, and what is late is late. But a window that was closed only because the input ended begins anew: its new
    result has the id of the old one, and only the events that were appended.

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
        share: which part of the job this is; by default all of it.
        goal: positions at which the run ends, for each source; by default it ends with the input.
        ends: the input counts as ended at the goal, as it had for other workers when the job was stopped.
        exchange: where the other segments are, for a worker of a pipeline that changes its key: it runs its own only.
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
        share: Share | None = None,
        goal: Mapping[str, Mapping[str, Any]] | None = None,
        ends: bool = False,
        exchange: Exchange | None = None,
    ) -> None:
        pipeline.check()
        keyed = {spec.tag: keeps_record_key(pipeline.stages, spec.tag) for spec in pipeline.sources}
        if missing := {spec.tag for spec in pipeline.sources} ^ set(sources):
            msg = f"pipeline {pipeline.name!r}: sources do not match its tags; check {', '.join(sorted(missing))}"
            raise PlanError(msg)
        self.options = options or LocalOptions()
        self.meter = meter or Meter()
        self._share = share or Share()
        self._on_step = on_step or (lambda name: None)
        self._goal = None if goal is None else Goal(goal)
        tagged, ingest, order = len(pipeline.sources) > 1, None, None
        self._ends = ends
        self._onward = None
        if exchange is not None:
            wired = wire(pipeline, sources, sink, sides or {}, self._share, exchange, self.options, self._on_step)
            pipeline, sources, sink, sides = wired.pipeline, wired.sources, wired.sink, wired.sides
            tracker, ingest, order = wired.tracker or tracker, wired.ingest, wired.order
            self._onward = wired.onward
            if goal is not None and ingest is not None:
                self._goal = Drain()
        self.pipeline = pipeline
        self._sources = dict(sources)
        self._sink = sink
        self._sides = dict(sides or {})
        self._models = models
        self._clock = clock
        self._on_progress = on_progress
        self._stopping = False
        self._tracker = tracker or WatermarkTracker()
        self._new_storage = storage or (lambda: Storage(self.options, pipeline.name, self._on_step, self._decision()))
        self._decided: int | None = None
        self._sharing = Sharing(pipeline, self._share, order)
        self._read = 0
        self._ingest: dict[str, Ingest | ExchangeIngest] = ingest or {
            spec.tag: Ingest(spec, pipeline.name, self._tracker, tagged=tagged, keyed=keyed[spec.tag])
            for spec in pipeline.sources
        }

    def stop(self) -> None:
        """Ask the run to end: after the current micro-batch it takes a checkpoint and returns.

        Safe in a signal handler.
        """
        self._stopping = True

    @property
    def resumed(self) -> int:
        """Number of the checkpoint that it went on from, 0 if none."""
        restored = self._storage.restored
        return 0 if restored is None else restored.number

    @property
    def checkpoint_number(self) -> int:
        """Number of the checkpoint that was taken last, or is being taken."""
        return self._storage.number

    def checkpoint(self) -> None:
        """Take a checkpoint now; for a source to call in `poll`, when no record is under way (test kit)."""
        self._checkpoint(finished=False)

    def run(self) -> RunResult:
        """Run until the sources are finished or `stop` is called.

        Raises:
            StreamMLError: something that retrying can't mend; state and output are those of the last checkpoint.
        """
        opened: list[Any] = []
        try:
            self._tell_job(opened)
            self._storage = self._new_storage()
            opened.append(self._storage)
            self._open(opened)
            with _calm_collector():
                return self._loop()
        finally:
            _close_all(opened)

    def _tell_job(self, opened: list[Any]) -> None:
        """Tell sources and sinks that ask for it which job they belong to; from then on they are to be closed."""
        for item in (*self._sources.values(), *(sink for _, sink in self._all_sinks())):
            if (tell := getattr(item, "for_job", None)) is not None:
                opened.append(item)
                tell(f"streamml-{self.pipeline.name}{self._share.suffix}", int(self.options.checkpoint_interval))

    def _decision(self) -> Callable[[], int | None] | None:
        """Return what says which checkpoint to go on from, None where that is the newest one."""
        deciding = next((sink for _, sink in self._all_sinks() if sink.decides), None)
        if deciding is None:
            return None

        def ask() -> int | None:
            self._decided = deciding.committed()
            return self._decided

        return ask

    def _open(self, opened: list[Any]) -> None:
        manifest = self._storage.manifest
        ids: dict[str, int] = dict(manifest.get("stage_ids", {}))
        for spec in self.pipeline.stages:
            ids.setdefault(spec.name, len(ids))
        self._stage_ids = ids
        opening = Opening(self.pipeline.name, self._models, self.meter.metrics, self._share.label)
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
            keyed = spec.selector is not None and not self._share.segment  # rows of an exchange have their keys
            self._stages.append((Keying(spec) if keyed else None, stage))
        now = self._clock()
        for tag, source in self._sources.items():  # before the sinks: an input that is not there empties no output
            source.open(manifest.get("sources", {}).get(tag))
            opened.append(source)
            self._ingest[tag].follow(source.partitions(), now)
        prepared = manifest.get("sinks", {})
        for name, sink in self._all_sinks():
            sink.open(prepared.get(name) if manifest else None)
            opened.append(sink)
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
        turn, sizes = 0, options.sizes()
        while not self._stopping:
            got = False
            live = [item for item in sources if not item[1].finished]
            if not live or (self._goal is not None and self._goal.reached(self._sources)):
                break
            tag, source = live[turn % len(live)]
            turn += 1
            if held := self._onward is not None and self._onward.full(poll):
                chunk = None
            else:
                most = options.batch_size if sizes is None else sizes.size
                chunk = source.poll(most, 0.0 if len(live) > 1 and turn % len(live) else poll)
            now = self._clock()
            if chunk is not None and self._goal is not None:
                chunk = self._goal.cut(tag, chunk)
            if chunk is not None and chunk.payloads:
                got = True
                started = time.perf_counter()
                batch, bad = self._ingest[tag].batch(chunk, now)
                self._read += len(chunk.payloads)
                self._write_sides({"rejected": bad} if bad and self._sharing.first else {})
                self._through(batch, 0, now)
                mine = self._sharing.read(len(chunk.payloads))
                meter.read(mine)
                if mine:
                    meter.batch(mine, time.perf_counter() - started)
                if sizes is not None:
                    sizes.done(len(chunk.payloads), time.perf_counter() - started, _waiting(source))
            self._follow(tag, source, now)
            if held:
                for name in self._tracker.partitions():  # it was not they that were silent
                    self._tracker.observe(name, [], now)
            elif not got or turn % 16 == 0:
                self._housekeeping(now)
            monotonic = time.monotonic()
            if monotonic >= next_checkpoint:
                self._checkpoint(finished=False)
                next_checkpoint = max(next_checkpoint + interval, time.monotonic())
            if monotonic >= next_progress:
                self._report(now)
                next_progress = monotonic + 0.1
        finished = not self._stopping
        nothing_new = finished and self._was_finished and self._read == 0
        if self._goal is not None and not self._ends:
            finished = nothing_new
        if finished and not nothing_new:
            self._through(_tick(MAX_TIME), 0, self._clock())
        self._checkpoint(finished=finished)
        self._report(self._clock())
        problems = tuple(self._storage.restored.problems) if self._storage.restored else ()
        return RunResult(finished, meter.figures(), problems, dict(meter.side_counts), nothing_new)

    def _follow(self, tag: str, source: Source, now: int) -> None:
        """Take new partitions of a source into the watermark, and out of it those that have ended."""
        ingest, names = self._ingest[tag], source.partitions()
        alive = {ingest.partition(name) for name in names}
        for name in self._tracker.partitions():
            if name.startswith(f"{tag}/") and name not in alive:
                self._tracker.finish(name)
        ingest.follow(names, now)

    def _housekeeping(self, now: int) -> None:
        """Do what is due although no records came: idle partitions, processing-time timers."""
        before = self._tracker.current
        if (reached := self._tracker.idle(now)) > before:
            self._through(_tick(reached), 0, now)
        for number, (_, stage) in enumerate(self._stages):
            if (output := stage.tick(now)) is not None:
                self._write_sides(output.sides)
                self._through(output.main, number + 1, now)

    def _through(self, batch: Batch, start: int, now: int) -> None:
        """Send a batch through the stages from `start` on, and what comes out to the sinks."""
        sharing = self._sharing
        for number, (keying, stage) in enumerate(self._stages[start:], start):
            if keying is not None:
                batch, bad = keying.assign(batch)
                if bad and sharing.first:
                    self._write_sides({"rejected": bad})
            if number == sharing.stage:
                batch = sharing.own(batch)
            output = stage.process(batch, now)
            if output.sides and (sharing.first or number >= sharing.stage):
                self._write_sides(output.sides)
            batch = output.main
        onward = self._onward
        if onward is not None:
            batch, bad = onward.key(batch)
            if bad:
                self._write_sides({"rejected": bad})
        if len(batch):
            self._write(batch)
        if onward is not None:
            onward.passed(batch.watermark)
        self.meter.watermark(batch.watermark, now)

    def _write(self, batch: Batch) -> None:
        """Write rows to the main output; those that it can't hold go to `rejected`, found by halving."""
        try:
            self._sink.write(batch, self.pipeline.selected)
        except RecordError as exc:
            rows = len(batch)
            if rows == 1:
                self._write_sides({"rejected": [rejected(batch.record(0), exc, "sink")]})
                return
            self._write(batch.slice(0, rows // 2))
            self._write(batch.slice(rows // 2, rows))
        else:
            self.meter.written(len(batch))

    def _write_sides(self, sides: Mapping[str, list[dict[str, Any]]]) -> None:
        for name, records in sides.items():
            self.meter.side(name, records)
            if name in self._sides:
                try:
                    self._sides[name].write_records(records)
                except RecordError:  # a value that the output can't hold is written as text, so that no record is lost
                    for record in records:
                        self._sides[name].write_records([writable(record)])

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
            positions = {
                tag: source.positions() if self._goal is None else self._goal.positions(tag, source)
                for tag, source in self._sources.items()
            }
            deciding = any(sink.decides for _, sink in self._all_sinks())
            info = storage.save(
                {
                    "pipeline": self.pipeline.name,
                    "finished": finished,
                    "stage_ids": self._stage_ids,
                    "stages": {
                        spec.name: stage.snapshot()
                        for spec, (_, stage) in zip(self.pipeline.stages, self._stages, strict=True)
                    },
                    "sources": positions,
                    "watermarks": self._tracker.snapshot(),
                    "sinks": prepared,
                    **({"decided": self._decided} if deciding else {}),
                }
            )
            step("checkpoint stored")
            for name, sink in sorted(self._all_sinks(), key=lambda item: not item[1].decides):
                sink.commit(number)
                step(f"{name} committed")
            self._decided = number
            if deciding:
                storage.note_commit()
            for tag, source in self._sources.items():
                if (tell := getattr(source, "committed", None)) is not None:
                    tell(positions[tag])
            seconds = time.perf_counter() - started
            if storage.checkpoints is not None:
                storage.checkpoints.retire()  # last, since what was committed is visible already
        except (CheckpointError, ConnectorError):
            self.meter.checkpoint_failed()
            raise
        self.meter.checkpoint(number, seconds, info.bytes if info is not None else 0)

    def _report(self, now: int) -> None:
        self.meter.connectors(self._sources.values(), [sink for _, sink in self._all_sinks()], now)
        self.meter.models = tuple(
            model for _, stage in self._stages for step in stage.steps for model in step.running.models()
        )
        if self._on_progress is not None:
            self._on_progress(self.meter.figures())


def _waiting(source: Source) -> int:
    """Return how many events wait, 0 where the source tells bytes only."""
    return sum(source.lag().values()) if getattr(source, "lag_unit", "events") == "events" else 0


def _tick(watermark: int) -> Batch:
    return Batch([], times=[], ids=[], watermarks=[], watermark=watermark)


@contextmanager
def _calm_collector() -> Iterator[None]:
    """Let the cyclic garbage collector look less often.

    Cached state is many objects without cycles, which it would walk in vain.
    """
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
