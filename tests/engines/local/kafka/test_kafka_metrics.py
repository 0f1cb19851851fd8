"""What a run from Kafka to Kafka tells Prometheus."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import streamml as sml
from streamml.connectors import open_sink, open_source
from streamml.local import LocalEngine, LocalOptions, Meter
from streamml.observability.prometheus import serve

OPEN = 10_000
Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


def scrape(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def of(found: Scrape, name: str, **labels: Any) -> float | None:
    return found.get((f"streamml_{name}", tuple(sorted((key, str(value)) for key, value in labels.items()))))


def wait_until(url: str, condition: Callable[[Scrape], bool], seconds: float = 40.0) -> Scrape:
    deadline = time.monotonic() + seconds
    while not condition(found := scrape(url)):
        assert time.monotonic() < deadline, {str(name): value for name, value in found.items() if "kafka" in name[0]}
        time.sleep(0.05)
    return found


def clicks(partition: int, count: int) -> list[tuple[int, bytes, bytes]]:
    made = [{"id": f"e{partition}-{at}", "user": f"u{partition}", "ts": 1_793_491_200_000 + at} for at in range(count)]
    return [(partition, b"k", json.dumps(click).encode()) for click in made]


@contextmanager
def running(
    cluster: Any, folder: Path, source: str, output: str, client: str, gate: threading.Semaphore
) -> Iterator[str]:
    """A job that reads one record at a time as the gate lets them through; yields the page of its metrics."""

    class Gate(sml.Operator):
        def on_event(self, event: Any, ctx: Any) -> None:
            gate.acquire()
            ctx.emit(event)

    name = cluster.name("metrics")
    pipeline = sml.Pipeline(name, schema=Click).key_by("user").then(Gate())
    meter = Meter()
    engine = LocalEngine(
        pipeline,
        {name: open_source(cluster.uri(source, client=client, start="earliest", refresh="500ms"))},
        open_sink(cluster.uri(output, client=client)),
        options=LocalOptions(state_dir=folder / "state", checkpoint_interval="100ms", batch_size=1, fsync=False),
        meter=meter,
    )
    failed: list[BaseException] = []

    def run() -> None:
        try:
            engine.run()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with serve(meter.metrics, 0) as server:
            yield server.url
    finally:
        gate.release(OPEN)
        engine.stop()
        thread.join(60)
    assert not failed and not thread.is_alive()


def test_lag_records_transactions_and_assignments_reach_prometheus(cluster: Any, tmp_path: Path, client: str) -> None:
    source, output = cluster.topic(partitions=2), cluster.topic()
    cluster.produce(source, clicks(0, 30) + clicks(1, 5))
    gate = threading.Semaphore(OPEN)
    with running(cluster, tmp_path, source, output, client, gate) as url:
        found = wait_until(url, lambda page: of(page, "kafka_records_written_total", topic=output) == 35)
        for partition, count in ((0, 30), (1, 5)):
            assert of(found, "kafka_records_read_total", topic=source, partition=partition) == count
        found = wait_until(url, lambda page: (of(page, "kafka_transactions_total") or 0) >= 3)
        for name in ("transaction", "commit"):
            assert (of(found, f"kafka_{name}_duration_seconds_sum") or 0) > 0
        assert of(found, "kafka_partitions_count", topic=source) == 2
        assert of(found, "kafka_assignments_total", topic=source, event="added") == 2
        found = wait_until(url, lambda page: of(page, "kafka_lag_events", topic=source, partition=0) == 0)
        assert of(found, "kafka_position_events", topic=source, partition=0) == 30
        assert of(found, "kafka_lag_seconds", topic=source, partition=0) == 0
        assert of(found, "kafka_down_seconds") == 0
        cluster.admin.create_partitions({source: 3})
        wait_until(url, lambda page: of(page, "kafka_assignments_total", topic=source, event="added") == 3)


def test_what_waits_is_shown_in_events_and_in_seconds(cluster: Any, tmp_path: Path, client: str) -> None:
    source, output = cluster.topic(), cluster.topic()
    cluster.produce(source, clicks(0, 1000), timestamp=int(time.time() * 1000) - 90_000)
    gate = threading.Semaphore(0)

    def behind(page: Scrape) -> bool:
        gate.release()
        return (of(page, "kafka_lag_events", topic=source, partition=0) or 0) > 0

    with running(cluster, tmp_path, source, output, client, gate) as url:
        found = wait_until(url, behind)
        assert 90 <= (of(found, "kafka_lag_seconds", topic=source, partition=0) or 0) < 200
        assert of(found, "source_lag_events") == of(found, "kafka_lag_events", topic=source, partition=0)
        assert of(found, "source_lag_bytes") == 0
        gate.release(OPEN)
        wait_until(url, lambda page: of(page, "kafka_lag_seconds", topic=source, partition=0) == 0)


@pytest.mark.timeout(120)
def test_errors_and_the_time_without_a_broker_are_counted(cluster: Any, tmp_path: Path) -> None:
    source, output = cluster.topic(), cluster.topic()
    gate = threading.Semaphore(OPEN)
    with running(cluster, tmp_path, source, output, "confluent", gate) as url:
        wait_until(url, lambda page: of(page, "kafka_down_seconds") == 0)
        assert cluster.broker.kill()
        try:  # it takes checkpoints all the time, so it waits in one, and its metrics are seen all the same
            wait_until(
                url,
                lambda page: (
                    (of(page, "kafka_errors_total", role="sink", kind="unavailable") or 0) >= 2
                    and (of(page, "kafka_retries_total", role="sink") or 0) >= 2
                ),
            )
        finally:
            cluster.restart()
        cluster.produce(source, clicks(0, 3))
        wait_until(url, lambda page: of(page, "kafka_records_written_total", topic=output) == 3)
        wait_until(url, lambda page: of(page, "kafka_down_seconds") == 0)
