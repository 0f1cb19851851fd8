"""Plays scripts of the test kit as one Flink job, a dataflow for each case, with pauses for savepoints."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamml.errors import StreamMLError
from streamml.flink.host import HostPlan
from streamml.flink.settings import StageSettings
from streamml.flink.watermark import to_flink
from streamml.pipeline import Pipeline

__all__ = ["Part", "ScriptJob", "event_step", "pause_step", "watermark_step"]

_NOT_YET = "not being executed at the moment"
"""Flink's refusal of a savepoint while some task is still starting."""

Piece = tuple[HostPlan, bytes]


def event_step(record: bytes) -> bytes:
    """Return the step that hands out a record."""
    return b"E" + record


def watermark_step(watermark: int) -> bytes:
    """Return the step that moves the watermark."""
    return b"W" + to_flink(watermark).to_bytes(8, "big", signed=True)


def pause_step(name: str) -> bytes:
    """Return the step that waits."""
    return b"P" + name.encode()


@dataclass
class Part:
    """What one job plays of one case.

    Attributes:
        number: number of the case, the same in every job.
        pipeline: what it runs.
        steps: what the source plays.
        workers: number of subtasks of its keyed stages.
        paused: whether it stops at a pause, so its input does not end in this job.
    """

    number: int
    pipeline: Pipeline
    steps: list[bytes]
    workers: int = 1
    paused: bool = False
    plans: list[HostPlan] = field(default_factory=list)


class ScriptJob:
    """One job for the parts of many cases.

    Args:
        parts: what it plays.
        folder: where its outputs, pauses and savepoints are.
        settings: how stages run.
        restore: savepoint that it starts from, None for a start without state.
        patience: seconds that it may take.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        folder: Path,
        settings: StageSettings,
        *,
        restore: str | None = None,
        patience: float = 120,
    ) -> None:
        self._parts = parts
        self._folder = folder
        self._settings = settings
        self._restore = restore
        self._patience = patience
        self._client: Any = None
        self._ended: Any = None

    def start(self) -> None:
        """Submit it."""
        import dataclasses

        from pyflink.common import Configuration
        from pyflink.datastream import StreamExecutionEnvironment

        from streamml.flink.functions import BYTES
        from streamml.flink.graph import Graph, add_jar

        configuration = Configuration()
        for name, value in {
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
            "python.pythonpath": os.pathsep.join(filter(None, sys.path)),  # test modules lie anywhere
            "execution.state-recovery.ignore-unclaimed-state": "true",
            "taskmanager.memory.network.max": "128m",
            "taskmanager.memory.network.min": "128m",
            "taskmanager.memory.managed.size": "256m",
            "pipeline.operator-chaining.enabled": "true",
            **({"execution.state-recovery.path": self._restore} if self._restore else {}),
        }.items():
            configuration.set_string(name, value)
        # As on a cluster; PyFlink would take this process for the work.
        os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
        environment = StreamExecutionEnvironment.get_execution_environment(configuration)
        environment.set_parallelism(1)
        java = environment._j_stream_execution_environment
        add_jar(java)
        self._folder.mkdir(parents=True, exist_ok=True)
        from pyflink.java_gateway import get_gateway

        jvm = get_gateway().jvm
        for part in self._parts:
            steps = jvm.java.util.ArrayList()
            for step in part.steps:
                steps.add(step)
            name = f"case{part.number}"
            source = jvm.org.streamml.flink.ScriptSource(steps, str(self._folder))
            stream = java.addSource(source, f"{name}: script", BYTES.get_java_type_info())
            stream.uid(f"{name}/source")
            settings = dataclasses.replace(self._settings, parallelism=part.workers)
            graph = Graph(part.pipeline, {}, settings, uid=name, script=stream)
            part.plans = [plan for plan, _ in graph.results]
            for place, (_, results) in enumerate(graph.results):
                sink = jvm.org.streamml.flink.ScriptOutput(str(self._folder / f"{name}.{place}"))
                out = results.transform(f"{name}: output {place}", BYTES.get_java_type_info(), sink)
                out.uid(f"{name}/output{place}")
                out.setParallelism(results.getParallelism())
        self._client = environment.execute_async("scripts")
        self._ended = self._client.get_job_execution_result()

    def wait_for_pauses(self, names: Sequence[str]) -> None:
        """Wait until every source stands at its pause."""
        self._until(lambda: all((self._folder / f"{name}.reached").exists() for name in names), "its pauses")

    def wait_for_ends(self, parts: Sequence[Part]) -> None:
        """Wait until everything of these parts was processed, those whose input ends."""

        def ended(part: Part) -> bool:
            files = [
                len(list(self._folder.glob(f"case{part.number}.{place}.finished.*")))
                for place in range(len(part.plans))
            ]
            wanted = [1 if plan.scripted else part.workers for plan in part.plans]
            return files == wanted

        self._until(lambda: all(map(ended, parts)), "the end of its finite inputs")

    def release(self, names: Sequence[str]) -> None:
        """Let sources go on."""
        for name in names:
            (self._folder / f"{name}.go").touch()

    def savepoint(self, *, stop: bool) -> str:
        """Take a savepoint, and stop the job with it."""
        from py4j.protocol import Py4JJavaError
        from pyflink.java_gateway import get_gateway

        target = (self._folder / "savepoints").as_uri()
        kind = get_gateway().jvm.org.apache.flink.core.execution.SavepointFormatType.CANONICAL
        client = self._client._j_job_client  # PyFlink 2.3's own methods call signatures that Flink 2.3 no longer has
        deadline = time.monotonic() + self._patience
        while True:
            future = client.stopWithSavepoint(False, target, kind) if stop else client.triggerSavepoint(target, kind)
            self._until(future.isDone, "its savepoint", failing=stop)
            try:
                return str(future.get())
            except Py4JJavaError as exc:
                if _NOT_YET not in str(exc) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def kill(self) -> None:
        """End the job without a savepoint."""
        self._client.cancel().result()
        self._until(self._ended.done, "being cancelled", failing=True)

    def finish(self) -> None:
        """Wait until every input has ended and everything was processed."""
        self._until(self._ended.done, "its end")
        self._ended.result()

    def sizes(self) -> dict[str, int]:
        """Return how much is in each output file."""
        return {path.name: path.stat().st_size for path in self._folder.glob("case*.*.[0-9]*")}

    def outputs(self, part: Part, sizes: dict[str, int] | None = None) -> list[Piece]:
        """Return what a case's stages gave back, with the plan of the stage; up to `sizes` of each file if given."""
        found: list[Piece] = []
        for place, plan in enumerate(part.plans):
            for path in sorted(self._folder.glob(f"case{part.number}.{place}.[0-9]*")):
                data = path.read_bytes()
                if sizes is not None:
                    data = data[: sizes.get(path.name, 0)]
                at = 0
                while at < len(data):
                    length = int.from_bytes(data[at : at + 4], "big")
                    found.append((plan, data[at + 4 : at + 4 + length]))
                    at += 4 + length
        return found

    def _until(self, there: Callable[[], bool], what: str, *, failing: bool = False) -> None:
        deadline = time.monotonic() + self._patience
        while not there():
            if self._ended.done() and not failing:
                self._ended.result()  # raises what it failed of
            if time.monotonic() > deadline:
                msg = f"flink: a job of {len(self._parts)} scripts did not reach {what} within {self._patience:.0f} s"
                raise StreamMLError(msg)
            time.sleep(0.1)
