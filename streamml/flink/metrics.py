"""A stage's figures on their way to Flink: counted in Python, registered in Flink by `UnbatchOperator`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamml.observability import Metrics
from streamml.observability.histogram import Counter as CounterMetric
from streamml.observability.histogram import Gauge, Histogram, HistogramState
from streamml.observability.names import SIDE_COUNTERS
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["METRICS_OUTPUT", "MetricFrames", "StageMeter"]

METRICS_OUTPUT = b"\xff"
"""First byte of what holds figures where joined records have the number of their output."""

_PERCENTILES = (50, 95, 99)


class MetricFrames:
    r"""Turns what changed in a registry into frames for Flink, see `PythonMetrics` in Java.

    A counter and a gauge keep their names. A histogram becomes a counter `_count` and gauges `_sum`, `_p50`, `_p95` and
    `_p99`; percentiles are those of the last one to two windows, and are taken once a second.

    Args:
        metrics: the registry.
        clock: seconds from any origin.
        window: seconds.

    >>> metrics = Metrics(clock=lambda: 0.0)
    >>> frames = MetricFrames(metrics, clock=lambda: 0.0)
    >>> metrics.counter("streamml_late_total", operator="sessions").inc(3)
    >>> frames.take()
    b'\xffcounter\tstreamml_late_total\toperator\tsessions\n0\t3'
    >>> frames.take() is None
    True
    """

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic, window: float = 60.0) -> None:
        self._metrics = metrics
        self._clock = clock
        self._window = window
        self._sent: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[int, float]] = {}
        """Number in Flink and value that it has, by name and labels."""
        self._histograms: dict[tuple[str, tuple[tuple[str, str], ...]], _Percentiles] = {}

    def take(self) -> bytes | None:
        """Return the frame of all that changed since the last one, None when nothing did."""
        lines: list[str] = []
        for name, labels, metric in self._metrics.series():
            if isinstance(metric, CounterMetric):
                self._counter(lines, name, labels, metric.value)
            elif isinstance(metric, Gauge):
                self._gauge(lines, name, labels, metric.value)
            else:
                self._histogram(lines, name, labels, metric)
        return METRICS_OUTPUT + "\n".join(lines).encode() if lines else None

    def _counter(self, lines: list[str], name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
        number, sent = self._number(lines, "counter", name, labels)
        whole = math.floor(value)  # Flink's counters are whole numbers: the rest comes with a later frame
        if whole > sent:
            lines.append(f"{number}\t{whole - int(sent)}")
            self._sent[name, labels] = number, whole

    def _gauge(self, lines: list[str], name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
        number, sent = self._number(lines, "gauge", name, labels)
        if value != sent and not math.isnan(value):
            lines.append(f"{number}\t{_double(value)}")
            self._sent[name, labels] = number, value

    def _histogram(
        self, lines: list[str], name: str, labels: tuple[tuple[str, str], ...], histogram: Histogram
    ) -> None:
        now = self._clock()
        percentiles = self._histograms.get((name, labels))
        if percentiles is None:
            percentiles = self._histograms[name, labels] = _Percentiles(self._window, now)
        state = histogram.state()
        self._counter(lines, f"{name}_count", labels, state.count)
        self._gauge(lines, f"{name}_sum", labels, state.sum)
        for percentile, value in percentiles.take(state, now):
            self._gauge(lines, f"{name}_p{percentile}", labels, value)

    def _number(self, lines: list[str], kind: str, name: str, labels: tuple[tuple[str, str], ...]) -> tuple[int, float]:
        known = self._sent.get((name, labels))
        if known is None:
            known = self._sent[name, labels] = len(self._sent), 0.0
            lines.append("\t".join([kind, name, *(_clean(part) for label in labels for part in label)]))
        return known


class _Percentiles:
    """Percentiles of a histogram over the last one to two windows."""

    def __init__(self, window: float, now: float) -> None:
        self._window = window
        self._turned = now
        self._taken = -math.inf
        self._before: Sequence[int] = ()
        self._last: Sequence[int] = ()

    def take(self, state: HistogramState, now: float) -> list[tuple[int, float]]:
        if now - self._taken < 1.0:
            return []
        self._taken = now
        if now - self._turned >= self._window:
            self._turned = now
            self._before, self._last = self._last, state.counts
        since = self._before or (0,) * len(state.counts)
        counts = tuple(new - old for new, old in zip(state.counts, since, strict=True))
        recent = HistogramState(state.buckets, counts, state.sum, state.low, state.high)
        return [(percentile, recent.quantile(percentile / 100)) for percentile in _PERCENTILES]


class StageMeter:
    """Counts what one stage does in one Flink subtask.

    Args:
        metrics: the registry, by default a new one; operators see it as `Opening.metrics`.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics(clock=time.perf_counter)
        m = self.metrics
        self._frames = MetricFrames(m)
        self._events = m.counter("streamml_events_total")
        self._emitted = m.counter("streamml_emitted_total")
        self._batch_size = m.histogram("streamml_batch_size_events")
        self._duration = m.histogram("streamml_operator_duration_seconds")
        self._cpu = m.counter("streamml_cpu_seconds_total")
        self._watermark = m.gauge("streamml_watermark_seconds")
        self._watermark_lag = m.gauge("streamml_watermark_lag_seconds")
        # What is rejected is counted by operator and error.
        self._sides = {name: m.counter(metric) for name, metric in SIDE_COUNTERS.items() if name != "rejected"}
        self._started = self._cpu_started = 0.0

    def start(self) -> None:
        """Start the clocks of a batch or a timer."""
        self._started, self._cpu_started = time.perf_counter(), time.thread_time()

    def batch(self, count: int) -> None:
        """Note a batch that came in."""
        self._events.inc(count)
        self._batch_size.observe(count)

    def outputs(self, emitted: int, sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Note what goes out."""
        self._emitted.inc(emitted)
        for name, records in sides.items():
            if name in self._sides:
                self._sides[name].inc(len(records))
            elif name == "rejected":
                for (operator, error), count in Counter((r["operator"], r["error"]) for r in records).items():
                    self.metrics.counter("streamml_rejected_total", operator=operator, error=error).inc(count)

    def finish(self, watermark: int, now: int) -> bytes | None:
        """Note the end of a batch or a timer; returns a frame with what changed."""
        self._duration.observe(time.perf_counter() - self._started)
        self._cpu.inc(max(time.thread_time() - self._cpu_started, 0.0))
        if MIN_TIME < watermark < MAX_TIME:
            self._watermark.set(watermark / 1000)
            self._watermark_lag.set((now - watermark) / 1000)
        return self._frames.take()


def _clean(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ")


def _double(value: float) -> str:
    """Return a number as Java reads it."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(float(value))
