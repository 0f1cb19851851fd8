"""The metrics registry: no engine, no global, no thread, no clock of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from streamml.observability.histogram import Counter, Gauge, Histogram
from streamml.observability.names import NAMES, Kind, MetricName, log_buckets

__all__ = ["MetricError", "Metrics", "Series"]

Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)
Labels = tuple[tuple[str, str], ...]


class MetricError(ValueError):
    """Raised when a metric is asked for by a name, a kind or labels that do not fit."""


class Series(NamedTuple):
    """One metric with its labels."""

    name: str
    labels: Labels
    metric: Metric

    def __str__(self) -> str:
        inside = ",".join(f'{k}="{v}"' for k, v in self.labels)
        return f"{self.name}{{{inside}}}" if inside else self.name


class Metrics:
    """The metrics of one run.

    Ask for a metric once, outside the loop, and keep the object: asking again gives the same object. Each object is
    written by one thread (give threads a label of their own) and may be read by any.

    Args:
        clock: Seconds from any origin, for instance `time.perf_counter`.
        names: The metrics that may be used; others are refused.

    >>> metrics = Metrics(clock=lambda: 5.0)
    >>> late = metrics.counter("streamml_late_total", operator="sessions")
    >>> late.inc(3)
    >>> metrics.histogram("streamml_latency_seconds").observe(0.002, n=10)
    >>> metrics.snapshot()['streamml_late_total{operator="sessions"}']
    3.0
    >>> metrics.snapshot()["streamml_latency_seconds"]["count"]
    10
    """

    def __init__(self, *, clock: Callable[[], float], names: Mapping[str, MetricName] = NAMES) -> None:
        self._clock = clock
        self._started = clock()
        self._names = names
        self._series: dict[tuple[str, Labels], Series] = {}
        self._label_names: dict[str, tuple[str, ...]] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """Return the counter of that name and labels."""
        return self._get(name, Kind.COUNTER, labels, Counter, Counter)

    def gauge(self, name: str, **labels: str) -> Gauge:
        """Return the gauge of that name and labels."""
        return self._get(name, Kind.GAUGE, labels, Gauge, Gauge)

    def histogram(self, name: str, buckets: Sequence[float] | None = None, **labels: str) -> Histogram:
        """Return the histogram of that name and labels.

        Args:
            name: A well-known name.
            buckets: Upper edges of its buckets; by default about 10 % apart over the range of the name
                (10 us to 100 s for times). They count when the histogram is first asked for.
            labels: Labels, the same ones for each use of the name.
        """

        def make() -> Histogram:
            known = self._names[name]
            return Histogram(log_buckets(known.low, known.high) if buckets is None else buckets)

        return self._get(name, Kind.HISTOGRAM, labels, Histogram, make)

    @contextmanager
    def timed(self, name: str, **labels: str) -> Iterator[None]:
        """Observe the seconds that the block takes, even if it raises."""
        histogram = self.histogram(name, None, **labels)
        started = self._clock()
        try:
            yield
        finally:
            histogram.observe(self._clock() - started)

    def describe(self, name: str) -> MetricName:
        """Return kind and help text of a name.

        Raises:
            MetricError: There is no such name; the message names the nearest.
        """
        try:
            return self._names[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._names, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            msg = f"metrics: there is no metric {name!r}; {guess}pass Metrics(names=...) to add your own"
            raise MetricError(msg) from None

    def series(self) -> list[Series]:
        """Return all metrics in the order in which they were first asked for; safe while others write."""
        return list(self._series.values())

    def elapsed(self) -> float:
        """Return the seconds since this registry was made."""
        return self._clock() - self._started

    def snapshot(self) -> dict[str, Any]:
        """Return plain numbers by `name{label="value"}`, ready for JSON.

        A histogram gives a dict of count, sum, min, max, p50, p95 and p99; None where it is empty.
        """
        result: dict[str, Any] = {"elapsed_seconds": self.elapsed()}
        for series in self.series():
            if not isinstance(series.metric, Histogram):
                result[str(series)] = series.metric.value
                continue
            state = series.metric.state()
            figures = {"min": state.low, "max": state.high}
            figures |= {f"p{p}": state.quantile(p / 100) for p in (50, 95, 99)}
            empty = not state.count
            result[str(series)] = {"count": state.count, "sum": state.sum} | {
                k: None if empty else v for k, v in figures.items()
            }
        return result

    def _get(self, name: str, kind: Kind, labels: dict[str, str], wanted: type[M], make: Callable[[], M]) -> M:
        key = (name, tuple(sorted(labels.items())))
        found = self._series.get(key)
        if found is not None and isinstance(found.metric, wanted):
            return found.metric
        known = self.describe(name)
        if known.kind is not kind:
            msg = f"metrics: {name!r} is a {known.kind.value}, got a request for a {kind.value}; ask for its own kind"
            raise MetricError(msg)
        label_names = tuple(sorted(labels))
        if self._label_names.setdefault(name, label_names) != label_names:
            msg = (
                f"metrics: {name!r} was first used with labels {list(self._label_names[name])}, got "
                f"{list(label_names)}; use the same labels each time"
            )
            raise MetricError(msg)
        metric = make()
        stored = self._series.setdefault(key, Series(*key, metric)).metric
        return stored if isinstance(stored, wanted) else metric
