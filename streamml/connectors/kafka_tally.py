"""What Kafka's connectors count, until there is a metrics registry to count in."""

from __future__ import annotations

from collections import Counter, deque
from threading import Lock

from streamml.observability.metrics import Metrics

__all__ = ["Tally"]

_Key = tuple[str, tuple[tuple[str, str], ...]]
_MOST = 10_000


class Tally:
    """Counts and durations of one connector; any thread may add to it.

    What comes before `publish` is kept; what comes after is in the registry at once, so that retries are seen while
    the job waits for them.

    >>> import time
    >>> tally, metrics = Tally(), Metrics(clock=time.perf_counter)
    >>> tally.count("streamml_kafka_records_written_total", 3, topic="scores")
    >>> tally.publish(metrics)
    >>> tally.count("streamml_kafka_records_written_total", 2, topic="scores")
    >>> metrics.counter("streamml_kafka_records_written_total", topic="scores").value
    5.0
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._metrics: Metrics | None = None
        self._counts: Counter[_Key] = Counter()
        self._seconds: deque[tuple[str, float]] = deque(maxlen=_MOST)  # where nobody publishes it must not grow

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            if self._metrics is not None:
                self._metrics.counter(name, **labels).inc(n)
            else:
                self._counts[name, tuple(labels.items())] += n

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        with self._lock:
            if self._metrics is not None:
                self._metrics.histogram(name).observe(seconds)
            else:
                self._seconds.append((name, seconds))

    def publish(self, metrics: Metrics) -> None:
        """Write into this registry, from what came first on."""
        if self._metrics is metrics:
            return
        with self._lock:
            self._metrics = metrics
            for (name, labels), n in self._counts.items():
                metrics.counter(name, **dict(labels)).inc(n)
            for name, seconds in self._seconds:
                metrics.histogram(name).observe(seconds)
            self._counts.clear()
            self._seconds.clear()
