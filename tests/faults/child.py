"""Runs jobs in processes that the tests kill: a script whose forks they are, so that a restart costs no imports.

A request is one JSON line on standard input. On standard output come lines: `pid N`; `at N` when records up to N are
about to be handed out; `step NAME` after each durable step; `open N`, the number of the checkpoint that was restored,
`end JSON` or `error JSON`; at last `exit CODE` of the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import streamml as sml
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.connectors.parts_sink import PartsSink
from streamml.errors import StreamMLError
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe, Window, count, session, total
from streamml.ports import Chunk

OUT = os.dup(1)


def load_workload() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "workload_w.py"
    spec = importlib.util.spec_from_file_location("workload_w", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workload_w"] = module
    spec.loader.exec_module(module)
    return module


W = load_workload()


def windows() -> sml.Pipeline:
    """A job with timers and corrections beside its state."""
    return (
        sml.Pipeline("windows", schema=W.Payment, out_of_orderness="1s")
        .key_by("card_id")
        .then(Dedupe(ttl="1h"))
        .then(Window(session("500ms"), {"n": count(), "sum": total("amount")}, allowed_lateness="2s"))
    )


def say(text: str) -> None:
    os.write(OUT, f"{text}\n".encode())  # one write, so that a kill leaves whole lines


class Told(FileSource):
    """A file source that tells where it is."""

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        chunk = super().poll(limit, timeout)
        if chunk is not None and chunk.payloads:
            say(f"at {chunk.offsets[-1] + 1}")
        return chunk


class Steps:
    """Tells each durable step, and dies at one of them."""

    def __init__(self, die_at: int | None) -> None:
        self.number = 0
        self.die_at = die_at

    def named(self, place: str) -> Any:
        def step(name: str) -> None:
            say(f"step {place}: {name}")
            self.number += 1
            if self.number == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        return step


def run(request: dict[str, Any]) -> int:
    folder = Path(request["folder"])
    pipeline = W.pipeline(request["model"]) if request["job"] == "w" else windows()
    options: dict[str, Any] = {
        "state_dir": Path(request.get("state", folder / "state")),
        "checkpoint_interval": "100ms",
        "batch_size": 256,
        **request.get("options", {}),
    }
    steps = Steps(request.get("die_at"))
    out = Path(request.get("out", folder))
    main: Any = FileSink(str(out / "out.jsonl"), on_step=steps.named("main"))
    if request.get("sink") == "parquet":
        main = PartsSink(str(out / "out.parquet"), "parquet", on_step=steps.named("main"))
    engine = LocalEngine(
        pipeline,
        {spec.tag: Told(request["input"]) for spec in pipeline.sources},
        main,
        {name: FileSink(str(out / f"out.{name}.jsonl"), on_step=steps.named(name)) for name in pipeline.sides},
        options=LocalOptions(**options),
        on_step=steps.named("engine"),
    )
    signal.signal(signal.SIGTERM, lambda number, frame: engine.stop())
    told = engine._open

    def opened(*arguments: Any) -> None:
        told(*arguments)
        say(f"open {engine._storage.number}")

    engine._open = opened  # type: ignore[method-assign]
    try:
        result = engine.run()
    except StreamMLError as error:
        say("error " + json.dumps({"type": type(error).__name__, "message": str(error)}))
        return 5
    restored = engine._storage.restored
    figures = result.figures
    say(
        "end "
        + json.dumps(
            {
                "finished": result.finished,
                "nothing_new": result.nothing_new,
                "problems": result.problems,
                "restored": restored.number if restored else None,
                "events": figures.events_in,
            }
        )
    )
    return 0


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                say(f"pid {os.getpid()}")
                code = run(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        say(f"exit {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
