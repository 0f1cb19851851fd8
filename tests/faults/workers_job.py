"""Jobs that several workers share, what they write, and a script that changes their number and dies on the way.

As a script it reads one JSON line for each request from standard input; see `main`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamml as sml
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.errors import ModelError
from streamml.local import LocalEngine, LocalOptions
from streamml.local.parts import part_uri
from streamml.local.rescale import rescale
from streamml.local.segments import Exchange, stage_names
from streamml.local.share import Share
from streamml.operators import Dedupe, Features, Session, Window, count, maximum, session, since_last, total, trailing
from streamml.ports import Chunk
from streamml.state.workers import WorkerFolders, read_workers


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int


def features(key: Any = "card_id") -> sml.Pipeline:
    """What workload W does before its model."""
    recent = {"n": count(), "sum": total("amount"), "max": maximum("amount")}
    return (
        sml.Pipeline("features", schema=Payment, out_of_orderness="2s")
        .key_by(key)
        .then(Dedupe(ttl="1h"))
        .then(Features(trailing("2s", tile="100ms"), recent))
        .then(Session(gap="1s", fields={"n_session": count(), "idle_ms": since_last()}))
    )


def windows() -> sml.Pipeline:
    """Timers, corrections, early results."""
    fields = {"n": count(), "sum": total("amount")}
    return (
        sml.Pipeline("windows", schema=Payment, out_of_orderness="500ms")
        .key_by("card_id")
        .then(Dedupe(ttl="10s"))
        .then(Window(session("500ms"), fields, allowed_lateness="2s", early="300ms"))
    )


PIPELINES: dict[str, Callable[[], sml.Pipeline]] = {"features": features, "windows": windows}


class Fragile(sml.Operator):
    """Does nothing, but in one worker it can't be opened."""

    worker: str = ""
    error: str = ""

    def open(self, opening: Any) -> None:
        if opening.worker == self.worker:
            if self.error == "model":
                msg = "the model is not there"
                raise ModelError(msg)
            raise KeyError(self.error)

    def on_event(self, event: Any, ctx: Any) -> None:
        ctx.emit(event)


def build(
    job: str,
    input: str,
    folder: Path,
    share: Share,
    *,
    stop_after: int | None = None,
    pause: float = 0.0,
    fragile: Any = None,
    **engine: Any,
) -> LocalEngine:
    """Build the engine of one worker."""
    pipeline = PIPELINES[job]()
    if fragile is not None:
        pipeline = pipeline.then(Fragile(*fragile))
    options = {"checkpoint_interval": "100ms", "batch_size": 256, "fsync": False} | engine.pop("options", {})
    folders = WorkerFolders(folder / "state", share.count, share.generation, share.segments)
    state = folders.folder(share.index, share.segment)
    if share.segments > 1 and "exchange" not in engine:  # those before have run in this process, one after the other
        engine["exchange"] = Exchange(folders.home, lambda: True)
    built = LocalEngine(
        pipeline,
        {spec.tag: _Stopping(input, stop_after, pause) for spec in pipeline.sources},
        FileSink(part_uri(str(folder / "out.jsonl"), share)),
        {name: FileSink(part_uri(str(folder / f"out.{name}.jsonl"), share)) for name in pipeline.sides},
        options=LocalOptions(state_dir=state, **options),
        **{"share": share, **engine},
    )
    for source in built._sources.values():
        source.engine = built
    return built


class _Stopping(FileSource):
    """Stops its engine once so many records were read; may take its time."""

    engine: LocalEngine

    def __init__(self, path: str, after: int | None, pause: float) -> None:
        super().__init__(path)
        self._after = after
        self._pause = pause

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        time.sleep(self._pause)
        chunk = super().poll(limit, timeout)
        if self._after is not None and sum(reader.record for reader in self._readers) >= self._after:
            self.engine.stop()
        return chunk


def make(arguments: dict[str, Any], place: Any) -> LocalEngine:
    """The factory of `WorkerJob`."""
    return build(**{**arguments, "folder": Path(arguments["folder"])}, **place.engine)


def run_all(job: str, input: str, folder: Path, workers: WorkerFolders, stops: Any = None, **engine: Any) -> None:
    """Run all workers in this process, one after the other."""
    for segment, index in itertools.product(range(workers.segments), range(workers.count)):
        share = Share(index, workers.count, workers.generation, segment, workers.segments)
        stop_after = None if stops is None else stops[index]
        if segment and stops is not None:
            _wait_in_vain(job, input, folder, share, workers.home, **engine)
        else:
            build(job, input, folder, share, stop_after=stop_after, **engine).run()


def _wait_in_vain(job: str, input: str, folder: Path, share: Share, home: Path, **engine: Any) -> None:
    """Run a worker whose segment before was stopped; stop it when it has looked for more a few times."""
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 30:
            waiting.stop()
        return False

    waiting = build(job, input, folder, share, exchange=Exchange(home, ended), **engine)
    waiting.run()


def change(
    job: str, input: str, folder: Path, count: int, step: Callable[[str], None] = lambda name: None, **engine: Any
) -> WorkerFolders:
    """Change the number of workers of a job that has stopped, in this process."""
    now = read_workers(folder / "state")

    def read_on(goal: Mapping[str, Any]) -> bool:
        run_all(job, input, folder, now, goal=goal, **engine)
        return True

    workers = rescale(now, count, read_on, step, stage_names(PIPELINES[job]()))
    assert workers is not None
    return workers


def results(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return what was written, by output and key, in the order in which it was written."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    # What one process wrote comes first, then generation by generation.
    for path in sorted(folder.glob("out*.jsonl"), key=lambda path: (".g0" in path.name, path.name)):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            # The id of a window's result has its key.
            made = record["id"].split("/")[2:3] if "window_start" in record else ["nothing"]
            key = record.get("card_id") or record.get("key") or made[0]
            found[path.name.partition(".g0")[0].removesuffix(".jsonl")][key].append(line)
    return {name: dict(keys) for name, keys in found.items()}


def main() -> None:
    """For each request fork a process that changes the number of workers and is killed at a step; say how it ended.

    This process itself never opens a store, so it can be forked.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _die(**request)
            finally:
                os._exit(code)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _die(die_at: int | None, folder: str, count: int, **job: Any) -> int:
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    change(folder=Path(folder), count=count, step=step, **job)
    return 0


if __name__ == "__main__":
    main()
