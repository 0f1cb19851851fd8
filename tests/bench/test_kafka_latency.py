"""Workload W at 2,000 events/s: milliseconds from an event's `produce` until a reader has its score."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamml.generate import workload

HERE = Path(__file__).parent
RATE, SECONDS, WARM_UP = 2_000, 10, 2
FIRST = 500
RUNS = 3
SHARES = (0.5, 0.95, 0.99)

pytestmark = [pytest.mark.bench, pytest.mark.kafka, pytest.mark.timeout(0)]


class Reader(threading.Thread):
    """Notes when each score became visible."""

    def __init__(self, servers: str, topic: str, isolation: str) -> None:
        from confluent_kafka import Consumer, TopicPartition

        super().__init__(daemon=True)
        self.seen: dict[str, float] = {}
        self.doubles = 0
        self.done = threading.Event()
        settings = {"bootstrap.servers": servers, "group.id": "reader", "isolation.level": isolation}
        self.consumer = Consumer({**settings, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100})
        self.consumer.assign([TopicPartition(topic, number, 0) for number in range(4)])

    def run(self) -> None:
        while not self.done.is_set():
            first = self.consumer.poll(0.1)
            messages = [] if first is None else [first, *self.consumer.consume(1000, 0.0)]
            now = time.perf_counter()
            for message in messages:
                assert message.error() is None, message.error()
                tx = json.loads(message.value())["tx_id"]
                self.doubles += tx in self.seen
                self.seen.setdefault(tx, now)
        self.consumer.close()


def read(count: int) -> list[tuple[str, str, bytes]]:
    """Return (id, key, value) of the workload's events."""
    return [(event["tx_id"], event["card_id"], line) for line in workload(count) for event in [json.loads(line)]]


def send(servers: str, topic: str, events: list[tuple[str, str, bytes]], rate: float) -> dict[str, float]:
    """Produce (id, key, value) at a steady rate; return when each id was first produced."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": servers, "linger.ms": 1, "enable.idempotence": True})
    sent: dict[str, float] = {}
    start = time.perf_counter()
    for number, (tx, key, value) in enumerate(events):
        wait = start + number / rate - time.perf_counter()
        if wait > 0.0:
            producer.poll(0)
            time.sleep(wait)
        sent.setdefault(tx, time.perf_counter())
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0
    return sent


def measure(servers: str, command: list[str], source: str, sink: str, isolation: str) -> list[float]:
    """Return the latencies in ms, sorted, with the job that `command` starts."""
    events = read(FIRST + RATE * SECONDS)
    reader = Reader(servers, sink, isolation)
    reader.start()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    gc.disable()
    try:
        warm = send(servers, source, events[:FIRST], RATE)
        wait_for(lambda: len(reader.seen) > FIRST * 0.9, process)
        sent = send(servers, source, events[FIRST:], RATE)
        begun = min(sent.values()) + WARM_UP
        wanted = {tx: at for tx, at in sent.items() if at >= begun and tx not in warm}
        wait_for(lambda: len(reader.seen.keys() & wanted.keys()) > len(wanted) * 0.98, process)
        time.sleep(1.0)
    finally:
        gc.enable()
        process.terminate()
        process.wait(60)
        reader.done.set()
        reader.join()
    assert reader.doubles == 0
    return sorted((reader.seen[tx] - at) * 1000 for tx, at in wanted.items() if tx in reader.seen)


def wait_for(condition: Any, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the job ended with {process.returncode}"
        assert time.monotonic() < deadline, "what was produced does not come out"
        time.sleep(0.05)


def test_latency_at_2000_events_a_second(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from kafka_w import bytewax_python, make_topic, running_broker
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    ours, theirs = [sys.executable, str(HERE / "kafka_w.py")], [str(bytewax_python()), str(HERE / "bytewax_w.py")]
    cases = {
        "at least once (aims 8, -, 40)": (ours, ["at-least-once", "5s"], "read_uncommitted"),
        "exactly once, 50 ms commits (aims 60, -, 150)": (ours, ["exactly-once", "50ms"], "read_committed"),
        "Bytewax, at least once": (theirs, [], "read_uncommitted"),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in cases}
    with running_broker(tmp_path / "broker") as servers:
        # A broker that has just started is slow for everyone: its code is not compiled yet.
        send(servers, make_topic(servers, "warm"), read(RATE * SECONDS), RATE)
        for number, (name, (program, options, isolation)) in itertools.product(range(RUNS), cases.items()):
            run = f"{number}-{len(found[name])}-{options[0] if options else 'bytewax'}"
            source, sink = make_topic(servers, f"in-{run}"), make_topic(servers, f"out-{run}")
            command = [*program, "serve", servers, source, sink, str(model), str(tmp_path / run), *options]
            millis = measure(servers, command, source, sink, isolation)
            found[name].append([millis[int(len(millis) * share)] for share in SHARES])
    print(f"\nW at {RATE:,} events/s, {RUNS} runs of {SECONDS} s, from produce to visible, ms:")
    for name, runs in found.items():
        best, middle = (
            ", ".join(f"{of(column):.1f}" for column in zip(*runs, strict=True)) for of in (min, statistics.median)
        )
        print(f"  {name}: p50, p95, p99 least {best}; median {middle}")
        assert all(run == sorted(run) for run in runs)
