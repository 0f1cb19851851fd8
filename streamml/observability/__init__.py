"""What a run tells about itself: metrics, a Prometheus server, and the terminal panel."""

from streamml.observability.histogram import Counter, Gauge, Histogram
from streamml.observability.metrics import MetricError, Metrics
from streamml.observability.names import NAMES, Kind, MetricName, log_buckets

__all__ = [
    "NAMES",
    "Counter",
    "Gauge",
    "Histogram",
    "Kind",
    "MetricError",
    "MetricName",
    "Metrics",
    "log_buckets",
]
