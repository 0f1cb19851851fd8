"""The driver of the Flink engine: many cases in one job, with savepoints where a script asks for a fault."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from streamml.errors import PlanError, UnsupportedError
from streamml.ingest import Ingest
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.testing.case import Capability, Case
from streamml.testing.driver import Engine, RunOptions
from streamml.testing.plan import plan
from streamml.testing.result import OutputRecord, Result
from streamml.testing.script import Advance, Checkpoint, Crash, Rescale, Restart, Script, ScriptEvent
from streamml.times import MIN_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["FlinkDriver"]


class FlinkDriver(Engine):
    """Runs scripts on Flink. A job costs about 15 s, so give it many cases at once (`run_many`).

    A crash plays the script up to the crash, kills the job, and starts another one from a savepoint that was taken
    where the last checkpoint
    was; what came out after it is discarded, as a transactional sink does.
    """

    name = "flink"
    deps = ("pyflink",)
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        (Capability.CRASH, Capability.RESTART, Capability.RESCALE, Capability.ORDER_WITHIN_KEY, Capability.OPEN_END)
    )

    def execute(self, case: Case, options: RunOptions) -> Result:
        """See `Engine.execute`."""
        return self.run_many([case], options)[0]

    def run_many(self, cases: Sequence[Case], options: RunOptions | None = None) -> list[Result]:
        """See `Engine.run_many`: one job, and one more for each fault of the case that has most of them."""
        for case in cases:
            if missing := case.needs - self.capabilities:
                names = ", ".join(sorted(need.name for need in missing))
                msg = f"engine 'flink', case {case.name!r}: it can't do {names}"
                raise UnsupportedError(msg)
        runs = [_Run(number, case, options or RunOptions()) for number, case in enumerate(cases)]
        with tempfile.TemporaryDirectory(prefix="streamml-flink-") as folder:
            _play(runs, Path(folder), options or RunOptions())
        return [run.result() for run in runs]


@dataclass
class _Segment:
    """What is played between two starts: up to where its savepoint is taken, and what a crash makes of no avail."""

    steps: list[bytes] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    workers: int = 1


class _Run:
    """One case: its segments, and what came out of them."""

    def __init__(self, number: int, case: Case, options: RunOptions) -> None:
        self.number = number
        self.case = case
        script = Script(case.script)
        scripted = case.watermarks == "script"
        if not scripted and script.has(Advance):
            msg = "script: advance(...) can't be used with watermarks='pipeline', where events move the watermark"
            raise PlanError(msg)
        self.pipeline, encode = plan(case.operators, script, watermarks=case.watermarks)
        self.watermark = script.watermarks[-1] if scripted else MIN_TIME
        every = options.checkpoint_every
        if every is None:
            every = 2 if script.has(Crash) and not script.has(Checkpoint) else 0
        self.segments = self._segments(script, self._encoded(script, encode, scripted), every, options.workers)
        self.records: list[tuple[Any, bytes]] = []
        self.crashes = sum(isinstance(step, Crash) for step in script)

    def _encoded(self, script: Script, encode: Any, scripted: bool) -> list[list[bytes]]:
        """Return what the source plays for each step of the script."""
        from streamml.flink.script_job import event_step, watermark_step

        tags = [spec.tag for spec in self.pipeline.sources]
        tracker = WatermarkTracker()
        ingest = {spec.tag: Ingest(spec, "script", tracker, tagged=False) for spec in self.pipeline.sources}
        found: list[list[bytes]] = []
        for number, step in enumerate(script.steps):
            if isinstance(step, Advance):
                found.append([watermark_step(step.to)])
            elif isinstance(step, ScriptEvent):
                tag = tags[0] if len(tags) == 1 else step.source
                record = encode(step)
                item = event_step(pickle.dumps((tag, script.clocks[number], script.offsets[number], record)))
                found.append([item])
                if not scripted:
                    before = tracker.current
                    ingest[tag].batch(Chunk([record], [("0", 1)], [script.offsets[number]]), script.clocks[number])
                    self.watermark = tracker.current
                    if tracker.current > before:
                        found[-1].append(watermark_step(tracker.current))
            else:
                found.append([])
        return found

    def _segments(self, script: Script, encoded: list[list[bytes]], every: int, workers: int) -> list[_Segment]:
        """Cut the script where the engine is started again."""
        found: list[_Segment] = []
        start = saved = since = 0
        for number, step in enumerate(script.steps):
            match step:
                case ScriptEvent():
                    if every and since >= every:
                        saved, since = number, 0
                    since += 1
                case Checkpoint():
                    saved, since = number, 0
                case Crash():
                    steps, lost = encoded[start:saved], encoded[saved:number]
                    found.append(_Segment(list(chain.from_iterable(steps)), list(chain.from_iterable(lost)), workers))
                    start, since = saved, 0
                case Restart() | Rescale():
                    found.append(_Segment(list(chain.from_iterable(encoded[start:number])), [], workers))
                    start = saved = number
                    since = 0
                    workers = step.workers if isinstance(step, Rescale) else workers
        found.append(_Segment(list(chain.from_iterable(encoded[start:])), [], workers))
        return found

    def result(self) -> Result:
        from streamml.flink.envelope import Envelopes
        from streamml.flink.wire import unjoin

        main: list[OutputRecord] = []
        sides: dict[str, list[dict[str, Any]]] = {name: [] for name in self.pipeline.sides}
        envelopes = Envelopes([spec.schema for spec in self.pipeline.sources])
        selected = self.pipeline.selected
        for host, data in self.records:
            output, records = unjoin(data)
            if output:
                sides[host.sides[output - 1]] += [msgspec.json.decode(record) for record, _, _ in records]
            elif host.following is None:
                batch: Batch = envelopes.decode([record for record, _, _ in records], [MIN_TIME] * len(records))
                main += [OutputRecord.of(record, selected) for record in batch.records()]
        return Result(main=main, sides=sides, watermark=self.watermark, figures={"crashes": self.crashes})


def _play(runs: Sequence[_Run], folder: Path, options: RunOptions) -> None:
    from streamml.flink.script_job import Part, ScriptJob, pause_step
    from streamml.flink.settings import StageSettings

    settings = StageSettings(batch_size=options.batch_size, latency=20, models=options.models)
    savepoint: str | None = None
    for turn in range(max(len(run.segments) for run in runs)):
        parts: list[Part] = []
        pauses: list[str] = []
        kills: list[str] = []
        for run in runs:
            if turn >= len(run.segments):
                continue
            segment = run.segments[turn]
            last = turn == len(run.segments) - 1
            steps = list(segment.steps)
            paused = not last or not run.case.end
            if paused:
                steps.append(pause_step(f"case{run.number}-save"))
                pauses.append(f"case{run.number}-save")
                if segment.lost:
                    steps += [*segment.lost, pause_step(f"case{run.number}-kill")]
                    kills.append(f"case{run.number}-kill")
            parts.append(Part(run.number, run.pipeline, steps, segment.workers, paused))
        job = ScriptJob(parts, folder / f"job{turn}", settings, restore=savepoint)
        job.start()
        sizes: dict[str, int] | None = None
        if not pauses:
            job.finish()
        else:
            job.wait_for_pauses(pauses)
            job.wait_for_ends([part for part in parts if not part.paused])
        if pauses and not kills:
            savepoint = job.savepoint(stop=True)
        elif kills:
            savepoint = job.savepoint(stop=False)
            sizes = job.sizes()
            job.release([name.replace("-kill", "-save") for name in kills])
            job.wait_for_pauses(kills)
            job.kill()
        for part, run in zip(parts, [run for run in runs if turn < len(run.segments)], strict=True):
            run.records += job.outputs(part, sizes if part.paused else None)
