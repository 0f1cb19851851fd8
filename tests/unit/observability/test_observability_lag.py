"""Lag is shown in the unit that its source counts in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamml.connectors import MemorySink
from streamml.connectors.files import FileSource
from streamml.connectors.memory import MemorySource
from streamml.local import Meter
from streamml.observability import Metrics


def gauges(meter: Meter) -> dict[str, Any]:
    return {name: value for name, value in meter.metrics.snapshot().items() if "source_lag" in name}


def test_files_of_lines_lag_in_bytes_and_other_sources_in_events(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n' * 50)
    file, memory = FileSource(str(path)), MemorySource([{"a": number} for number in range(30)])
    for source in (file, memory):
        source.open(None)
    meter = Meter()
    meter.connectors([file, memory], [], 0)
    assert gauges(meter) == {"streamml_source_lag_events": 30, "streamml_source_lag_bytes": 400}
    assert meter.figures().lag_events == 30
    memory.poll(10, 0.0)
    meter.connectors([file, memory], [], 0)
    assert meter.figures().lag_events == 20
    alone = Meter()
    alone.connectors([file], [], 0)
    assert alone.figures().lag_events is None
    assert gauges(alone)["streamml_source_lag_bytes"] == 400
    for source in (file, memory):
        source.close()


class Aged(MemorySource):
    """A source that knows the age of what it read."""

    def lag_seconds(self, now: int) -> dict[str, float]:
        return {"a": now / 1000, "b": 0.0}

    def measure(self, metrics: Metrics, now: int) -> None:
        metrics.gauge("streamml_kafka_down_seconds").set(7)


class Measured(MemorySink):
    def measure(self, metrics: Metrics, now: int) -> None:
        metrics.counter("streamml_kafka_transactions_total").inc(3)


def test_sources_and_sinks_that_measure_themselves_are_asked_to() -> None:
    source, meter = Aged([]), Meter()
    source.open(None)
    meter.connectors([source], [Measured(), MemorySink()], 5_000)
    found: Mapping[str, Any] = meter.metrics.snapshot()
    assert (found["streamml_kafka_down_seconds"], found["streamml_kafka_transactions_total"]) == (7, 3)
    assert meter.figures().lag_seconds == 5.0
    assert meter.figures().lag_events == 0
