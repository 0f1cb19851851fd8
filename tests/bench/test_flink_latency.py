"""Workload W on a Flink cluster at 1,000 events/s: ms from an event's `produce` until a reader has its score."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RATE, SECONDS, WARM_UP = 1_000, 15, 3
FIRST = 2_000
RUNS = int(os.environ.get("STREAMML_ROUNDS", "3"))
SHARES = (0.5, 0.95, 0.99)

pytestmark = [pytest.mark.bench, pytest.mark.flink, pytest.mark.kafka, pytest.mark.timeout(0)]


def wait(rest: Any, job: str, there: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"what was produced does not come out: {rest.failure(job)}"
        time.sleep(0.05)


def measure(servers: str, rest: Any, job: str, source: str, sink: str, isolation: str) -> list[float]:
    """Return the latencies of a running job in ms, sorted."""
    from test_kafka_latency import Reader, read, send

    events = read(FIRST + RATE * SECONDS)
    reader = Reader(servers, sink, isolation)
    reader.start()
    gc.disable()
    try:
        warm = send(servers, source, events[:FIRST], RATE)
        wait(rest, job, lambda: len(reader.seen) > FIRST * 0.9)
        sent = send(servers, source, events[FIRST:], RATE)
        begun = min(sent.values()) + WARM_UP
        wanted = {tx: at for tx, at in sent.items() if at >= begun and tx not in warm}
        wait(rest, job, lambda: len(reader.seen.keys() & wanted.keys()) > len(wanted) * 0.98)
        time.sleep(1.5)  # what comes twice would come with the next checkpoint
    finally:
        gc.enable()
        reader.done.set()
        reader.join()
    assert reader.doubles == 0
    return sorted((reader.seen[tx] - at) * 1000 for tx, at in wanted.items() if tx in reader.seen)


def test_latency_on_flink_at_1000_events_a_second(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    import workload_w
    from kafka_w import make_topic, running_broker
    from mlp import write_mlp

    from streamml.flink.cluster import TrialCluster
    from streamml.flink.ports import free_port
    from streamml.flink.submit import SubmitOptions, submit

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
    pipeline = workload_w.pipeline(str(write_mlp(tmp_path / "mlp.onnx")))
    cases = {  # delivery, ms between checkpoints, ms that a record waits for others, what the reader sees
        "at least once, records wait 50 ms": ("at-least-once", 5_000, 50, "read_uncommitted"),
        "at least once, records wait 5 ms": ("at-least-once", 5_000, 5, "read_uncommitted"),
        "exactly once, checkpoints every 200 ms": ("exactly-once", 200, 20, "read_committed"),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in cases}
    cluster = TrialCluster(tmp_path / "flink", port=free_port(), task_managers=1, slots=1)
    with running_broker(tmp_path / "broker") as servers:
        cluster.start(120)
        try:
            for run in range(RUNS):
                for name, (delivery, interval, latency, isolation) in cases.items():
                    source = make_topic(servers, f"in-{run}-{delivery}-{latency}")
                    sink = make_topic(servers, f"out-{run}-{delivery}-{latency}")
                    job = submit(
                        pipeline,
                        {"w": f"kafka://{servers}/{source}"},
                        f"kafka://{servers}/{sink}?delivery={delivery}",
                        dict.fromkeys(pipeline.sides, "null:"),
                        SubmitOptions(jobmanager=cluster.rest.address, checkpoint_interval=interval, latency=latency),
                        module=workload_w,
                    )
                    millis = measure(servers, cluster.rest, job, source, sink, isolation)
                    found[name].append([millis[int(len(millis) * share)] for share in SHARES])
                    cluster.rest.cancel(job)
                    cluster.rest.wait(job, patience=60)
        finally:
            cluster.stop()
    print(f"\nW on Flink at {RATE:,} events/s, one slot, {RUNS} runs of {SECONDS} s, from produce to visible, ms:")
    for name, runs in found.items():
        best, middle = (
            ", ".join(f"{of(column):.1f}" for column in zip(*runs, strict=True)) for of in (min, statistics.median)
        )
        print(f"  {name}: p50, p95, p99 least {best}; median {middle}")
        assert all(run == sorted(run) for run in runs)
