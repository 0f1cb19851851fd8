"""Metrics over HTTP for Prometheus. `prometheus_client` is imported when a server starts, not before."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

from streamml.observability.histogram import Counter, Histogram, HistogramState
from streamml.observability.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

__all__ = ["MetricsServer", "coarse_buckets", "serve"]

_MOST_BUCKETS = 32


class MetricsServer:
    """A running server; close it, or use it in a `with` block."""

    def __init__(self, server: WSGIServer, thread: Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self.host = host
        self.port = int(server.server_port)

    @property
    def url(self) -> str:
        """Address of the metrics page."""
        return f"http://{self.host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Translates the registry when Prometheus asks; the hot loop does nothing for it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield a family per name."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families: dict[str, Metric] = {}
        for name, labels, metric in self._metrics.series():
            known = self._metrics.describe(name)
            names, values = [k for k, _ in labels], [v for _, v in labels]
            if isinstance(metric, Histogram):
                state = metric.state()
                spread = families.setdefault(name, HistogramMetricFamily(name, known.help, labels=names))
                assert isinstance(spread, HistogramMetricFamily)
                spread.add_metric(values, coarse_buckets(state), state.sum)
                continue
            make = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
            single = families.setdefault(name, make(name, known.help, labels=names))
            assert isinstance(single, CounterMetricFamily | GaugeMetricFamily)
            single.add_metric(values, metric.value)
        yield from families.values()


def coarse_buckets(state: HistogramState) -> list[tuple[str, float]]:
    """Return cumulated buckets for Prometheus, every second, third... edge when there are many.

    The counts at the edges that stay are exact. With the default buckets every eighth is kept: three per decade.

    >>> coarse_buckets(HistogramState((1.0, 2.0), (5, 3, 1), 9.0, 0.0, 3.0))
    [('1.0', 5), ('2.0', 8), ('+Inf', 9)]
    """
    step = 1
    while len(state.buckets) / step > _MOST_BUCKETS:
        step *= 2
    total = 0
    result: list[tuple[str, float]] = []
    for i, (edge, n) in enumerate(zip(state.buckets, state.counts, strict=False)):
        total += n
        if i % step == 0:
            result.append((repr(float(f"{edge:.6g}")), total))
    result.append(("+Inf", state.count))
    return result


def serve(metrics: Metrics, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve the metrics for Prometheus on a thread of its own.

    Args:
        metrics: The registry to read from, each time that Prometheus asks.
        port: Port to listen on; 0 takes any free one, see `MetricsServer.port`.
        host: Address to listen on: by default this machine only; "0.0.0.0" to be reached from others.

    Raises:
        OSError: The address cannot be listened on; the message says why and what to do.
        ImportError: `prometheus-client` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as exc:
        msg = "metrics server: prometheus-client is not installed; run: pip install prometheus-client"
        raise ImportError(msg) from exc
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as exc:
        msg = (
            f"metrics server: cannot listen on {host}:{port} ({getattr(exc, 'strerror', None) or exc}); stop what "
            "listens there, or choose another port (0 takes any free one)"
        )
        raise OSError(getattr(exc, "errno", None), msg) from exc
    return MetricsServer(server, thread, host)
