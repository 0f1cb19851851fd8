"""Figures on their way to Flink: frames say what changed, and add up to what was counted."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from streamml.flink.metrics import METRICS_OUTPUT, MetricFrames, StageMeter
from streamml.flink.reports import Figure, _split
from streamml.observability import Metrics


class Flink:
    """What Java makes of the frames, written independently: values by name and labels."""

    def __init__(self) -> None:
        self._series: list[tuple[str, str]] = []
        self.values: defaultdict[str, float] = defaultdict(float)

    def take(self, frame: bytes | None) -> int:
        if frame is None:
            return 0
        assert frame[:1] == METRICS_OUTPUT
        lines = frame[1:].decode().split("\n")
        for line in lines:
            first, *rest = line.split("\t")
            if first in ("counter", "gauge"):
                self._series.append((first, "/".join(rest)))
                continue
            kind, name = self._series[int(first)]
            self.values[name] = self.values[name] + int(rest[0]) if kind == "counter" else float(rest[0])
        return len(lines)


def test_frames_add_up_to_the_registry_and_say_only_what_changed() -> None:
    metrics, flink = Metrics(clock=lambda: 0.0), Flink()
    frames = MetricFrames(metrics, clock=lambda: 0.0)
    late = metrics.counter("streamml_late_total")
    cpu = metrics.counter("streamml_cpu_seconds_total")
    psi = metrics.gauge("streamml_drift_psi_ratio", operator="d", feature="a\tb")
    assert flink.take(frames.take()) == 3  # announced, all of them 0
    for _ in range(10):
        late.inc(2)
        cpu.inc(0.25)
        psi.set(0.125)
        flink.take(frames.take())
    assert flink.values == {
        "streamml_late_total": 20,
        "streamml_cpu_seconds_total": 2,  # whole seconds of 2.5
        "streamml_drift_psi_ratio/feature/a b/operator/d": 0.125,
    }
    assert frames.take() is None


def test_percentiles_are_those_of_the_last_minutes_not_of_all_time() -> None:
    clock = [0.0]
    metrics, flink = Metrics(clock=lambda: 0.0), Flink()
    frames = MetricFrames(metrics, clock=lambda: clock[0], window=60)
    latency = metrics.histogram("streamml_latency_seconds")
    for second in range(1, 301):
        clock[0] = float(second)
        latency.observe(1.0 if second <= 100 else 0.01)
        flink.take(frames.take())
        if second == 50:
            assert flink.values["streamml_latency_seconds_p50"] == pytest.approx(1.0, rel=0.1)
    assert flink.values["streamml_latency_seconds_p99"] == pytest.approx(0.01, rel=0.1)
    assert flink.values["streamml_latency_seconds_count"] == 300
    assert flink.values["streamml_latency_seconds_sum"] == pytest.approx(102.0)


def test_infinity_and_no_number_are_written_as_java_reads_them() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    frames = MetricFrames(metrics, clock=lambda: 0.0)
    gauge = metrics.gauge("streamml_drift_psi_ratio")
    gauge.set(float("inf"))
    assert frames.take() == METRICS_OUTPUT + b"gauge\tstreamml_drift_psi_ratio\n0\tInfinity"
    gauge.set(float("nan"))
    assert frames.take() is None


def test_a_stage_counts_side_records_by_what_they_are() -> None:
    meter, flink = StageMeter(), Flink()
    meter.start()
    meter.batch(7)
    rejected: list[dict[str, Any]] = [{"operator": "decode", "error": "DecodeError"}] * 2
    meter.outputs(3, {"late": [{}], "rejected": rejected, "mine": [{}]})
    flink.take(meter.finish(5_000, 7_500))
    found = {name: value for name, value in flink.values.items() if value}
    assert found.pop("streamml_operator_duration_seconds_sum") > 0
    duration = [found.pop(f"streamml_operator_duration_seconds_p{p}") for p in (50, 95, 99)]
    assert duration == sorted(duration)
    assert {name: found.pop(f"streamml_batch_size_events_{name}") for name in ("p50", "p95", "p99")} == pytest.approx(
        {"p50": 7, "p95": 7, "p99": 7}
    )
    assert found == {
        "streamml_events_total": 7,
        "streamml_emitted_total": 3,
        "streamml_batch_size_events_count": 1,
        "streamml_batch_size_events_sum": 7,
        "streamml_operator_duration_seconds_count": 1,
        "streamml_watermark_seconds": 5,
        "streamml_watermark_lag_seconds": 2.5,
        "streamml_late_total": 1,
        "streamml_rejected_total/error/DecodeError/operator/decode": 2,
    }


def test_names_of_metrics_are_shown_with_their_labels() -> None:
    shown = _split("clicks/stage1__records.model.fraud_1.streamml_model_scored_total")
    assert Figure(*shown, 1, 1, 1).name == 'streamml_model_scored_total{model="fraud_1"}'
    assert _split("a__batches.streamml_batches_total") == ("a__batches", "streamml_batches_total")
