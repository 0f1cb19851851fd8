"""Run a small job, Kafka to Kafka, in processes that are killed: a JSON request a line, an exit code a line."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import confluent_kafka  # noqa: F401  before the fork, once
import kafka  # noqa: F401

import streamml as sml
from streamml.connectors import kafka as _kafka  # noqa: F401
from streamml.connectors import open_sink, open_source
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe, Features, count, total, trailing
from streamml.state import rocks  # noqa: F401

SIDES = ("duplicates", "rejected")


class Order(sml.Event, id="id", key="card", time="ts"):
    id: str
    card: str
    amount: int
    ts: int


def run(request: dict[str, Any]) -> None:
    """Run until the input ends, or die at a step."""
    steps = 0
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == request.get("die_at"):
            os.write(log, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline = (
        sml.Pipeline("orders", schema=Order, out_of_orderness="1h", idleness="1h")
        .key_by("card")
        .then(Dedupe(ttl="10h"))
        .then(Features(window=trailing("10h", tile="10m"), fields={"n": count(), "sum": total("amount")}))
        .select("card", "n", "sum")
    )
    query = "&".join(f"{name}={value}" for name, value in request["options"].items())
    base = f"kafka://{request['servers']}"
    source = open_source(f"{base}/{request['input']}?until=latest&start=earliest&{query}")
    sink = open_sink(f"{base}/{request['output']}?{query}&{request['sink']}", on_step=step)
    sides = {
        side: open_sink(f"{base}/{request['output']}.{side}?{query}&{request['sink']}", on_step=step) for side in SIDES
    }
    options = LocalOptions(
        state_dir=Path(request["state"]),
        checkpoint_interval=request["interval"],
        batch_size=request["batch_size"],
        fsync=False,
        cache_mb=16,
    )
    result = LocalEngine(pipeline, {"orders": source}, sink, sides, options=options, on_step=step).run()
    assert result.finished


def serve() -> None:
    """Fork a process for each request: what was imported is imported once, and no client has been made before."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                run(request)
            except BaseException as exc:
                traceback.print_exc()
                Path(request["log"] + ".error").write_text(f"{type(exc).__name__}: {exc}")
                os._exit(3)
            os._exit(0)
        timer = threading.Timer(request.get("kill_after", 600), os.kill, (child, signal.SIGKILL))
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
