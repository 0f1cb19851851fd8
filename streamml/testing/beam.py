"""The driver of the Beam engine: each case is a pipeline with a `TestStream`."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
from typing import Any, ClassVar

from streamml.errors import PlanError, UnsupportedError
from streamml.ingest import Ingest
from streamml.ports import Chunk
from streamml.testing.case import Capability, Case
from streamml.testing.driver import Engine, RunOptions
from streamml.testing.plan import plan
from streamml.testing.result import OutputRecord, Result
from streamml.testing.script import Advance, Script, ScriptEvent
from streamml.times import MIN_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["BeamDriver"]

_GROUPS = 2
"""Key groups of each case: few, since each of them is woken at the start and looks at each watermark."""


class BeamDriver(Engine):
    """Runs scripts on Beam's `TestStream`: on Prism where there is one for the installed Beam, else on BundleBased.

    Beam's local runners can't be killed and go on, and a DoFn does not see the processing time of a `TestStream`. A
    `TestStream` has one watermark in practice (Prism mixes those of its tags up), so each case is a job of its own;
    Prism is started once.

    Args:
        runner: `prism` or `direct` (BundleBased); None takes Prism if it is there.
    """

    name = "beam"
    deps = ("apache_beam",)
    capabilities: ClassVar[frozenset[Capability]] = frozenset((Capability.OPEN_END,))

    def __init__(self, runner: str | None = None) -> None:
        self.runner = runner

    def start(self) -> None:
        """Choose the runner."""
        if self.runner is None:
            self.runner = "prism" if _there_is_prism() else "direct"

    def execute(self, case: Case, options: RunOptions) -> Result:
        """See `Engine.execute`."""
        if self.runner is None:
            self.start()
        return _Run(case).result(options, self.runner or "direct")


def _there_is_prism() -> bool:
    if importlib.util.find_spec("apache_beam") is None:
        return False
    from streamml.beam.prism import find_prism

    try:
        find_prism()
    except UnsupportedError:
        return False
    return True


class _Run:
    """One case: its steps, and what came out of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        script = Script(case.script)
        scripted = case.watermarks == "script"
        if not scripted and script.has(Advance):
            msg = "script: advance(...) can't be used with watermarks='pipeline', where events move the watermark"
            raise PlanError(msg)
        pipeline, encode = plan(case.operators, script, watermarks=case.watermarks)
        self.pipeline = dataclasses.replace(pipeline, schema=None, key_groups=_GROUPS)
        self.watermark = script.watermarks[-1] if scripted else MIN_TIME
        self.steps = self._steps(script, encode, scripted)

    def _steps(self, script: Script, encode: Any, scripted: bool) -> list[int | tuple[int, bytes]]:
        """Return what the `TestStream` plays: watermarks, and records with their times."""
        tags = [spec.tag for spec in self.pipeline.sources]
        tracker = WatermarkTracker()
        ingest = {spec.tag: Ingest(spec, "script", tracker, tagged=False) for spec in self.pipeline.sources}
        found: list[int | tuple[int, bytes]] = []
        for number, step in enumerate(script.steps):
            if isinstance(step, Advance):
                found.append(step.to)
            elif isinstance(step, ScriptEvent):
                tag = tags[0] if len(tags) == 1 else step.source
                clock, offset, record = script.clocks[number], script.offsets[number], encode(step)
                found.append((step.t, pickle.dumps((tag, clock, offset, record))))
                if not scripted:
                    before = tracker.current
                    ingest[tag].batch(Chunk([record], [("0", 1)], [offset]), clock)
                    self.watermark = tracker.current
                    if tracker.current > before:
                        found.append(tracker.current)
        return found

    def result(self, options: RunOptions, runner: str) -> Result:
        from streamml.beam.envelope import Envelopes
        from streamml.beam.script_job import END, MAIN, play
        from streamml.beam.settings import StageSettings

        settings = StageSettings(batch_size=options.batch_size, models=options.models)
        collected = play(self.pipeline, self.steps, settings, runner, end=self.case.end)
        main: list[OutputRecord] = []
        sides: dict[str, list[dict[str, Any]]] = {name: [] for name in self.pipeline.sides}
        envelopes = Envelopes([spec.schema for spec in self.pipeline.sources])
        for output, made in collected:
            if output == END:
                if not self.case.end:
                    break  # a `TestStream` that has nothing more to play ends, and with it the input
            elif output == MAIN:
                main += [OutputRecord.of(record, self.pipeline.selected) for record in envelopes.decode(made).records()]
            else:
                sides[output].append(made)
        return Result(main=main, sides=sides, watermark=self.watermark)
