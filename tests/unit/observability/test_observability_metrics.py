import json
import math
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamml.observability import NAMES, Histogram, Kind, MetricError, Metrics, log_buckets

UNITS = ("_total", "_seconds", "_bytes", "_events", "_ratio", "_count")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_name_ends_in_its_unit_and_has_a_help_text() -> None:
    for name, known in NAMES.items():
        assert name.startswith("streamml_")
        assert name.endswith(UNITS)
        assert name.endswith("_total") == (known.kind is Kind.COUNTER)
        assert known.help.endswith(".")


def test_values_are_kept_per_labels_and_the_same_object_is_given_again() -> None:
    metrics = Metrics(clock=Clock())
    first = metrics.counter("streamml_late_total", operator="a")
    first.inc()
    metrics.counter("streamml_late_total", operator="b").inc(5)
    assert metrics.counter("streamml_late_total", operator="a") is first
    gauge = metrics.gauge("streamml_watermark_lag_seconds")
    gauge.set(3.0)
    gauge.inc(-1.0)
    snapshot = metrics.snapshot()
    assert snapshot == {
        "elapsed_seconds": 0.0,
        'streamml_late_total{operator="a"}': 1.0,
        'streamml_late_total{operator="b"}': 5.0,
        "streamml_watermark_lag_seconds": 2.0,
    }


def test_time_comes_from_the_clock() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    with metrics.timed("streamml_checkpoint_duration_seconds"):
        clock.now += 0.25
    clock.now += 1.0
    figures = metrics.snapshot()
    assert figures["elapsed_seconds"] == 1.25
    found = figures["streamml_checkpoint_duration_seconds"]
    assert found == {"count": 1, "sum": 0.25, "min": 0.25, "max": 0.25, "p50": 0.25, "p95": 0.25, "p99": 0.25}


def test_a_snapshot_is_plain_json_even_of_an_empty_histogram() -> None:
    metrics = Metrics(clock=Clock())
    metrics.histogram("streamml_latency_seconds")
    assert json.loads(json.dumps(metrics.snapshot(), allow_nan=False))["streamml_latency_seconds"]["p99"] is None


def test_an_unknown_name_comes_with_a_hint() -> None:
    with pytest.raises(MetricError, match=re.escape("'streamml_event_total'; did you mean 'streamml_events_total'?")):
        Metrics(clock=Clock()).counter("streamml_event_total")


def test_another_kind_or_other_labels_are_refused() -> None:
    metrics = Metrics(clock=Clock())
    metrics.counter("streamml_late_total", operator="a")
    with pytest.raises(MetricError, match=re.escape("is a counter, got a request for a gauge")):
        metrics.gauge("streamml_late_total", operator="a")
    with pytest.raises(MetricError, match=re.escape("first used with labels ['operator'], got ['source']")):
        metrics.counter("streamml_late_total", source="a")
    with pytest.raises(ValueError, match="only grows"):
        metrics.counter("streamml_late_total", operator="a").inc(-1)


def test_own_names_can_be_added() -> None:
    metrics = Metrics(clock=Clock(), names={**NAMES, "shop_sales_total": NAMES["streamml_events_total"]})
    metrics.counter("shop_sales_total").inc()
    assert metrics.snapshot()["shop_sales_total"] == 1.0


def test_quantiles_are_within_the_width_of_a_bucket() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(math.log(0.005), 1.0, size=50_000)
    latency = Metrics(clock=Clock()).histogram("streamml_latency_seconds")
    latency.observe_many(values)
    for q in (0.01, 0.5, 0.95, 0.99, 0.999):
        assert latency.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.105)
    assert latency.quantile(0.0) == values.min()
    assert latency.quantile(1.0) == pytest.approx(values.max())


def test_values_outside_of_the_buckets_are_kept() -> None:
    latency = Metrics(clock=Clock()).histogram("streamml_latency_seconds")
    latency.observe_many([0.0, 1e-9, 5000.0])
    assert latency.quantile(0.0) == 0.0
    assert latency.quantile(1.0) == pytest.approx(5000.0)
    assert math.isnan(Histogram([1.0]).quantile(0.5))
    with pytest.raises(ValueError, match=re.escape("the 99th percentile is quantile(0.99)")):
        latency.quantile(99)


@given(st.lists(st.floats(0, 1e6) | st.sampled_from(log_buckets(1e-5, 100.0))))
def test_many_at_once_equal_one_by_one(values: list[float]) -> None:
    one, many = Histogram(log_buckets(1e-5, 100.0)), Histogram(log_buckets(1e-5, 100.0))
    for value in values:
        one.observe(value)
    many.observe_many(values)
    assert one.state().counts == many.state().counts
    assert one.state().sum == pytest.approx(many.state().sum)
    assert (one.state().low, one.state().high) == (many.state().low, many.state().high)


def test_bucket_edges_are_a_tenth_apart() -> None:
    edges = np.array(log_buckets(1e-5, 100.0))
    assert (edges[0], edges[-1]) == (1e-5, 100.0)
    assert np.all(edges[1:] / edges[:-1] < 1.101)


def test_buckets_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="rising order"):
        Metrics(clock=Clock()).histogram("streamml_latency_seconds", [2.0, 1.0])


def test_counting_is_cheap() -> None:
    """A loose bound, far above the measured 0.05 and 0.2 us, that only a change of kind can break."""
    metrics = Metrics(clock=Clock())
    counter, latency = metrics.counter("streamml_events_total"), metrics.histogram("streamml_latency_seconds")
    started = time.perf_counter()
    for _ in range(10_000):
        counter.inc()
        latency.observe(0.001)
    assert (time.perf_counter() - started) / 10_000 < 20e-6
