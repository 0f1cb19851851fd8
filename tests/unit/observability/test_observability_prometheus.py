import re
import sys
import threading
import urllib.request

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from streamml.observability import Metrics
from streamml.observability.prometheus import serve


def read(url: str) -> dict[str, Metric]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def test_prometheus_reads_all_kinds() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    metrics.counter("streamml_late_total", operator='a"b\\').inc(3)
    metrics.counter("streamml_late_total", operator="b").inc(4)
    metrics.gauge("streamml_state_size_bytes").set(1.5)
    latency = metrics.histogram("streamml_latency_seconds")
    latency.observe(0.0005, n=90)
    latency.observe(0.05, n=10)
    with serve(metrics, 0) as server:
        families = read(server.url)
        late = {s.labels["operator"]: s.value for s in families["streamml_late"].samples}
        assert late == {'a"b\\': 3.0, "b": 4.0}
        assert families["streamml_late"].documentation.startswith("Events older than the watermark")
        assert families["streamml_state_size_bytes"].samples[0].value == 1.5
        samples = families["streamml_latency_seconds"].samples
        buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
        assert 20 <= len(buckets) <= 33
        assert (buckets["0.0001"], buckets["0.001"], buckets["0.1"], buckets["+Inf"]) == (0.0, 90.0, 100.0, 100.0)
        assert list(buckets.values()) == sorted(buckets.values())
        assert {s.name: s.value for s in samples}["streamml_latency_seconds_sum"] == pytest.approx(0.545)
        latency.observe(0.05)
        again = {s.name: s.value for s in read(server.url)["streamml_latency_seconds"].samples}
        assert again["streamml_latency_seconds_count"] == 101.0


def test_own_buckets_are_exposed_unchanged() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    metrics.histogram("streamml_batch_size_events", [1, 10, 100]).observe_many([1, 2, 1000])
    with serve(metrics, 0) as server:
        samples = read(server.url)["streamml_batch_size_events"].samples
    assert {s.labels["le"]: s.value for s in samples if "le" in s.labels} == {
        "1.0": 1.0,
        "10.0": 2.0,
        "100.0": 2.0,
        "+Inf": 3.0,
    }


def test_a_taken_port_is_named_with_what_to_do() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    with (
        serve(metrics, 0) as server,
        pytest.raises(OSError, match=rf"127\.0\.0\.1:{server.port} .*in use.*choose another port") as raised,
    ):
        serve(metrics, server.port)
    assert raised.value.errno is not None
    with serve(metrics, server.port) as again:  # closing has freed it
        assert again.port == server.port
    again.close()


def test_a_port_out_of_range_is_explained() -> None:
    with pytest.raises(OSError, match=re.escape("127.0.0.1:99999")):
        serve(Metrics(clock=lambda: 0.0), 99_999)


def test_it_can_be_read_while_the_hot_loop_writes() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    stop = threading.Event()

    def work() -> None:
        i = 0
        while not stop.is_set():
            metrics.counter("streamml_late_total", operator=f"o{i % 500}").inc()
            metrics.histogram("streamml_latency_seconds", operator=f"o{i % 50}").observe_many([0.01, 0.02])
            i += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with serve(metrics, 0) as server:
            for _ in range(20):
                families = read(server.url)
        for labels in {s.labels["operator"] for s in families["streamml_latency_seconds"].samples}:
            mine = [s for s in families["streamml_latency_seconds"].samples if s.labels["operator"] == labels]
            infinite = next(s.value for s in mine if s.labels.get("le") == "+Inf")
            assert infinite == next(s.value for s in mine if s.name.endswith("_count"))
    finally:
        stop.set()
        thread.join()


def test_without_prometheus_client_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match="pip install prometheus-client"):
        serve(Metrics(clock=lambda: 0.0), 0)
