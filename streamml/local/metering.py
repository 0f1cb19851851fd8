"""The figures of a run: counts, latency, checkpoints, into the metrics registry and back as `RunFigures`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from streamml.observability import Metrics
from streamml.observability.figures import RunFigures
from streamml.observability.names import SIDE_COUNTERS
from streamml.ports import Sink, Source
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["Meter"]


class Meter:
    """Counts what one run does.

    Args:
        metrics: the registry; a new one by default.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics(clock=time.perf_counter)
        m = self.metrics
        self._events = m.counter("streamml_events_total")
        self._emitted = m.counter("streamml_emitted_total")
        self._batch_size = m.histogram("streamml_batch_size_events")
        self._latency = m.histogram("streamml_latency_seconds")
        self._watermark = m.gauge("streamml_watermark_seconds")
        self._watermark_lag = m.gauge("streamml_watermark_lag_seconds")
        self._lag_events = m.gauge("streamml_source_lag_events")
        self._lag_bytes = m.gauge("streamml_source_lag_bytes")
        self._checkpoints = m.counter("streamml_checkpoints_total")
        self._checkpoint_failures = m.counter("streamml_checkpoint_failures_total")
        self._checkpoint_duration = m.histogram("streamml_checkpoint_duration_seconds")
        self._checkpoint_size = m.gauge("streamml_checkpoint_size_bytes")
        self._cpu = m.counter("streamml_cpu_seconds_total")
        self._sides = {name: m.counter(metric) for name, metric in SIDE_COUNTERS.items()}
        self.side_counts: Counter[str] = Counter()
        self.events = 0
        self._out = 0
        self._last_watermark = MIN_TIME
        self._progress: float | None = None
        self._waiting: int | None = None
        self._behind: float | None = None
        self._last_checkpoint: tuple[int, float, int] | None = None
        self._recent_drift: list[str] = []
        self.models: tuple[str, ...] = ()
        self.start()

    def start(self) -> None:
        """Start the clocks."""
        self._started = time.perf_counter()
        self._cpu_started = self._cpu_seen = time.process_time()
        self._rate = (self._started, 0, 0.0)

    def read(self, count: int) -> None:
        """Count records read."""
        self.events += count
        self._events.inc(count)

    def written(self, count: int) -> None:
        """Count records written."""
        self._out += count
        self._emitted.inc(count)

    def batch(self, count: int, seconds: float) -> None:
        """Note a micro-batch and how long its events took from poll to output."""
        self._batch_size.observe(count)
        self._latency.observe(seconds, n=count)

    def side(self, name: str, records: list[dict[str, Any]]) -> None:
        """Count side records."""
        self.side_counts[name] += len(records)
        if name in self._sides:
            self._sides[name].inc(len(records))
        if name == "drift":
            self._recent_drift = (self._recent_drift + [_drift_text(record) for record in records])[-3:]

    def watermark(self, watermark: int, now: int) -> None:
        """Note the watermark."""
        if MIN_TIME < watermark < MAX_TIME:
            self._last_watermark = watermark
            self._watermark.set(watermark / 1000)
            self._watermark_lag.set((now - watermark) / 1000)

    def checkpoint(self, number: int, seconds: float, size: int) -> None:
        """Note a checkpoint."""
        self._last_checkpoint = (number, seconds, size)
        self._checkpoints.inc()
        self._checkpoint_duration.observe(seconds)
        self._checkpoint_size.set(size)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that failed."""
        self._checkpoint_failures.inc()

    def connectors(self, sources: Collection[Source], sinks: Iterable[Sink], now: int) -> None:
        """Note how far the input was read, and what sources and sinks measure of themselves.

        Args:
            sources: of the run.
            sinks: of the run.
            now: wall clock, ms.
        """
        shares = [share for source in sources if (share := source.progress()) is not None]
        self._progress = min(shares) if shares and len(shares) == len(sources) else None
        lags: dict[str, list[int]] = {"events": [], "bytes": []}
        ages: list[float] = []
        for source in sources:
            lags[getattr(source, "lag_unit", "events")] += source.lag().values()
            if (lag_seconds := getattr(source, "lag_seconds", None)) is not None:
                ages += lag_seconds(now).values()
        self._lag_events.set(sum(lags["events"]))
        self._lag_bytes.set(sum(lags["bytes"]))
        self._waiting = sum(lags["events"]) if lags["events"] else None
        self._behind = max(ages, default=None)
        for item in (*sources, *sinks):
            if (measure := getattr(item, "measure", None)) is not None:
                measure(self.metrics, now)

    def figures(self) -> RunFigures:
        """Return the figures so far."""
        now, cpu = time.perf_counter(), time.process_time()
        self._cpu.inc(cpu - self._cpu_seen)
        self._cpu_seen = cpu
        then, before, rate = self._rate
        if now - then >= 0.5 or rate == 0.0:
            rate = (self.events - before) / max(now - then, 1e-9)
            self._rate = (now, self.events, rate)
        number, seconds, size = self._last_checkpoint or (None, math.nan, 0)
        counts = self.side_counts
        return RunFigures(
            events_in=self.events,
            events_out=self._out,
            events_per_s=rate,
            p50=self._latency.quantile(0.5),
            p95=self._latency.quantile(0.95),
            p99=self._latency.quantile(0.99),
            lag_events=self._waiting,
            lag_seconds=self._behind,
            watermark_ms=self._last_watermark if self._last_watermark > MIN_TIME else None,
            late=counts["late"],
            rejected=counts["rejected"],
            duplicates=counts["duplicates"],
            drift_alarms=counts["drift"],
            recent_drift=tuple(self._recent_drift),
            models=self.models,
            checkpoint=number,
            checkpoint_seconds=seconds,
            checkpoint_bytes=size,
            cpu_us_per_event=(cpu - self._cpu_started) / self.events * 1e6 if self.events else None,
            elapsed=now - self._started,
            progress=self._progress,
        )


def _drift_text(record: dict[str, Any]) -> str:
    if "psi" in record:
        return f"{record.get('feature')}: PSI {record['psi']:.3g} over {record['threshold']:.3g}"
    return str(record.get("feature", record))
