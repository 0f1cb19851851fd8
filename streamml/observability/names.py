"""The well-known metrics: one table of names, kinds and help texts. A name ends with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = ["NAMES", "SIDE_COUNTERS", "Kind", "MetricName", "log_buckets"]


class Kind(Enum):
    """What a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricName:
    """One well-known metric.

    Attributes:
        kind: Counter, gauge or histogram.
        help: One line for people who look at a dashboard.
        low: Upper edge of a histogram's first bucket, in the unit of the name.
        high: Upper edge of its last bucket but the open one.
    """

    kind: Kind
    help: str
    low: float = 1e-5
    high: float = 100.0


def log_buckets(low: float, high: float, per_decade: int = 24) -> tuple[float, ...]:
    """Return bucket edges at equal ratios; 24 per decade are about 10 % apart.

    >>> log_buckets(1.0, 100.0, per_decade=2)
    (1.0, 3.1622776601683795, 10.0, 31.622776601683793, 100.0)
    >>> len(log_buckets(1e-5, 100.0))
    169
    """
    if not (0.0 < low < high and per_decade >= 1):
        msg = f"log_buckets: wanted 0 < low < high and per_decade >= 1, got {low}, {high} and {per_decade}"
        raise ValueError(msg)
    edges = []
    step = 0
    while (edge := low * 10.0 ** (step / per_decade)) < high * (1.0 - 1e-9):
        edges.append(edge)
        step += 1
    return (*edges, high)


def _counter(help_text: str) -> MetricName:
    return MetricName(Kind.COUNTER, help_text)


def _gauge(help_text: str) -> MetricName:
    return MetricName(Kind.GAUGE, help_text)


def _seconds(help_text: str) -> MetricName:
    return MetricName(Kind.HISTOGRAM, help_text)


def _events(help_text: str) -> MetricName:
    return MetricName(Kind.HISTOGRAM, help_text, low=1.0, high=1e6)


NAMES: Mapping[str, MetricName] = {
    # flow
    "streamml_events_total": _counter("Events read from the sources."),
    "streamml_emitted_total": _counter("Records written to the sinks."),
    "streamml_late_total": _counter("Events older than the watermark minus the allowed lateness."),
    "streamml_rejected_total": _counter("Records sent to the rejected side output."),
    "streamml_duplicates_total": _counter("Events recognised as duplicates."),
    "streamml_corrections_total": _counter("Results emitted again because a late event changed them."),
    "streamml_retries_total": _counter("Operations tried again after a failure."),
    "streamml_batch_size_events": _events("Events per micro-batch."),
    # time
    "streamml_latency_seconds": _seconds("Time from reading an event to having its results ready."),
    "streamml_operator_duration_seconds": _seconds("Time of one operator for one micro-batch."),
    "streamml_cpu_seconds_total": _counter("Processor time used."),
    "streamml_watermark_seconds": _gauge("Watermark, in seconds since the epoch."),
    "streamml_watermark_lag_seconds": _gauge("How far the watermark is behind the wall clock."),
    "streamml_source_lag_events": _gauge("Events that wait in the sources which count in events (topics, tables)."),
    "streamml_source_lag_bytes": _gauge("Bytes that wait in the sources which count in bytes (files of lines)."),
    # Kafka
    "streamml_kafka_records_read_total": _counter("Records read, by topic and partition."),
    "streamml_kafka_records_lost_total": _counter("Records that retention removed before they were read, by topic."),
    "streamml_kafka_records_written_total": _counter("Records handed to the producer, by topic."),
    "streamml_kafka_lag_events": _gauge("Records of a partition that are not read yet, by topic and partition."),
    "streamml_kafka_lag_seconds": _gauge("Age of the last record read, 0 if none waits, by topic and partition."),
    "streamml_kafka_position_events": _gauge("Offset of the record that is read next, by topic and partition."),
    "streamml_kafka_partitions_count": _gauge("Partitions that are read, by topic."),
    "streamml_kafka_assignments_total": _counter(
        "Changes of what is read, by topic and event: a partition was added (at the start, or since it is new), moved "
        "(retention had overtaken its position) or ended (read up to `until=`)."
    ),
    "streamml_kafka_transactions_total": _counter("Transactions committed."),
    "streamml_kafka_transaction_duration_seconds": _seconds("Time from a transaction's begin to its end."),
    "streamml_kafka_commit_duration_seconds": _seconds("Time that a checkpoint waited for its transaction."),
    "streamml_kafka_errors_total": _counter(
        "Errors that brokers or connections reported, by role (source or sink) and kind: unavailable, refused, rights, "
        "fenced, rolled_back, other. The client itself tries again after most of those that are unavailable."
    ),
    "streamml_kafka_retries_total": _counter("Requests made again after a pause, since brokers were away, by role."),
    "streamml_kafka_down_seconds": _gauge("For how long no broker has been heard of; 0 while one is."),
    # state
    "streamml_keys_count": _gauge("Keys with state."),
    "streamml_timers_count": _gauge("Timers that wait."),
    "streamml_state_size_bytes": _gauge("Size of the state on disk."),
    "streamml_checkpoints_total": _counter("Checkpoints completed."),
    "streamml_checkpoint_failures_total": _counter("Checkpoints that failed."),
    "streamml_checkpoint_duration_seconds": _seconds("Time from the start of a checkpoint to its commit."),
    "streamml_checkpoint_size_bytes": _gauge("Size of the last checkpoint."),
    "streamml_checkpoint_age_seconds": _gauge("Age of the last checkpoint."),
    "streamml_restore_duration_seconds": _seconds("Time to load a checkpoint at the start."),
    # models
    "streamml_model_latency_seconds": _seconds("Time of one call of a model, for a whole batch."),
    "streamml_model_batch_size_events": _events("Events per call of a model."),
    "streamml_model_scored_total": _counter("Events scored."),
    "streamml_model_errors_total": _counter("Events that a model failed on."),
    "streamml_model_fallbacks_total": _counter("Events scored by a fallback."),
    "streamml_model_swaps_total": _counter("Times that another model version took over."),
    "streamml_model_disagreement_total": _counter("Events that a shadow or canary scored otherwise."),
    "streamml_model_cpu_seconds_total": _counter("CPU time of the calls of a model, on the calling thread."),
    "streamml_model_cost_total": _counter("Price of the CPU time of the calls of a model, where the job names one."),
    "streamml_rollouts_late_total": _counter("Rollouts that a job learned of after events of their time had passed."),
    "streamml_rollouts_refused_total": _counter("Rollouts whose versions could not be served."),
    "streamml_rollbacks_total": _counter("Canaries that their guard rolled back."),
    "streamml_breaker_open_ratio": _gauge("1 while the circuit breaker of a model is open, else 0."),
    # drift
    "streamml_drift_checks_total": _counter("Comparisons of a feature with its reference."),
    "streamml_drift_alarms_total": _counter("Comparisons that found drift."),
    "streamml_drift_too_few_total": _counter("Comparisons without a verdict, for too few values."),
    "streamml_drift_uncounted_total": _counter("Events that a drift monitor passed on without counting them."),
    "streamml_drift_psi_ratio": _gauge("Last PSI of a feature divided by its threshold; drift above 1."),
}
"""Every metric of the library. Add your own with `Metrics(clock=..., names={**NAMES, "my_total": MetricName(...)})`."""

SIDE_COUNTERS: Mapping[str, str] = {
    "late": "streamml_late_total",
    "rejected": "streamml_rejected_total",
    "duplicates": "streamml_duplicates_total",
    "corrections": "streamml_corrections_total",
    "drift": "streamml_drift_alarms_total",
}
"""The counter of the records of a side output."""
