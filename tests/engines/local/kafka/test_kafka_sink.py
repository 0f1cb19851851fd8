"""The Kafka sink against a real broker, with both client libraries."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from streamml.connectors import open_sink
from streamml.errors import ConnectorError, RecordError
from streamml.observability import Metrics
from streamml.records import Batch


def batch(first: int, count: int, **more: Any) -> Batch:
    numbers = range(first, first + count)
    return Batch(
        [{"x": x} for x in numbers],
        times=[1_793_491_200_000 + x for x in numbers],
        ids=[f"e{x}" for x in numbers],
        keys=[f"k{x % 7}" for x in numbers],
        watermarks=[0] * count,
        watermark=0,
        **more,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(records: list[Any]) -> list[int]:
    return sorted(json.loads(record.value)["x"] for record in records)


@pytest.fixture
def make(cluster: Any, client: str, closing: Callable[[Any], Any]) -> Callable[..., Any]:
    def sink(topic: str, job: str | None = None, interval: int = 5000, **options: Any) -> Any:
        made = closing(open_sink(cluster.uri(topic, client=client, **options)))
        if job is not None:
            made.for_job(job, interval)
        return made

    return sink


def test_records_have_key_headers_json_and_if_wanted_the_time_of_the_event(cluster: Any, make: Any) -> None:
    topic = cluster.topic(partitions=3)
    sink = make(topic, delivery="at-least-once", timestamp="event")
    sink.open(None)
    rows = batch(0, 4, traces=[None, "00-ab-cd-01", None, None])
    rows.keys = ["text", 7, ("a", 1), None]
    sink.write(rows, ["x"])
    sink.write_records([{"id": "r1", "key": "text", "reason": "bad"}])
    sink.prepare(1)
    found = {record.value: record for record in cluster.consume(topic)}
    assert [(found[value].key, found[value].headers) for value in sorted(found)] == [
        (b"text", [("id", b"e0")]),
        (b"7", [("id", b"e1"), ("traceparent", b"00-ab-cd-01")]),
        (b'["a",1]', [("id", b"e2")]),
        (None, [("id", b"e3")]),
        (b"text", [("id", b"r1")]),
    ]
    assert found[b'{"id":"e2","x":2}'].timestamp == 1_793_491_200_002
    assert found[b'{"id":"e0","x":0}'].partition == found[b'{"id":"r1","key":"text","reason":"bad"}'].partition


def test_keys_go_to_the_partition_that_javas_clients_choose(cluster: Any, make: Any) -> None:
    from kafka.partitioner.default import murmur2

    topic = cluster.topic(partitions=5)
    sink = make(topic, delivery="at-least-once")
    sink.open(None)
    sink.write(batch(0, 50), None)
    sink.prepare(1)
    for record in cluster.consume(topic):
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 5


def test_nothing_is_visible_before_the_commit_and_the_number_is_known_afterwards(cluster: Any, make: Any) -> None:
    topic, side, job = cluster.topic(partitions=2), cluster.topic(), cluster.name("job")
    main, late = make(topic, job), make(side, job)
    assert main.committed() is None
    main.open(None)
    late.open(None)
    for checkpoint in (1, 2, 3):
        main.write(batch(checkpoint * 10, 10), None)
        late.write_records([{"x": checkpoint}])
        for sink in (main, late):
            sink.prepare(checkpoint)
        wait_for(lambda wanted=checkpoint * 10: len(cluster.consume(topic, committed=False)) == wanted)
        assert len(cluster.consume(topic)) == (checkpoint - 1) * 10
        for sink in (main, late):
            sink.commit(checkpoint)
            sink.commit(checkpoint)  # idempotent
        assert numbers(cluster.consume(topic)) == list(range(10, 10 + checkpoint * 10))
        assert numbers(cluster.consume(side)) == list(range(1, checkpoint + 1))
    metrics = Metrics(clock=time.perf_counter)
    main.measure(metrics, 0)
    late.measure(metrics, 0)
    assert metrics.counter("streamml_kafka_transactions_total").value == 3
    assert metrics.histogram("streamml_kafka_transaction_duration_seconds").state().count == 3
    for name, count in ((topic, 30), (side, 3)):
        assert metrics.counter("streamml_kafka_records_written_total", topic=name).value == count
    main.write(batch(1000, 10), None)
    late.write_records([{"x": 1000}])
    main.prepare(4)
    main.close()
    late.close()
    again, late = make(topic, job), make(side, job)
    assert again.committed() == 3
    again.open(None)
    late.open(None)
    for sink in (again, late):
        sink.prepare(4)  # a transaction without a record
        sink.commit(4)
    metrics = Metrics(clock=time.perf_counter)
    again.measure(metrics, 0)
    assert metrics.counter("streamml_kafka_transactions_total").value == 1
    assert make(topic, job).committed() == 4
    assert len(cluster.consume(topic)) == 30 and len(cluster.consume(side)) == 3


def test_a_writer_whose_id_was_taken_over_is_cut_off_and_what_it_wrote_is_never_seen(cluster: Any, make: Any) -> None:
    from streamml.connectors.kafka_output import _SHARED

    topic, job = cluster.topic(), cluster.name("job")
    zombie = make(topic, job)
    zombie.committed()
    zombie.open(None)
    zombie.write(batch(0, 5), None)
    zombie.prepare(1)
    zombie.commit(1)
    zombie.write(batch(5, 5), None)
    _SHARED.clear()  # as in another process
    successor = make(topic, job)
    assert successor.committed() == 1
    successor.open(None)
    with pytest.raises(
        ConnectorError, match=f"another worker with the transactional id '{job}' has started and taken over"
    ):
        zombie.prepare(2)
        zombie.commit(2)
    with pytest.raises(ConnectorError, match="an earlier write failed"):
        zombie.write(batch(5, 5), None)
    successor.write(batch(100, 1), None)
    successor.prepare(2)
    successor.commit(2)
    assert numbers(cluster.consume(topic)) == [0, 1, 2, 3, 4, 100]


def test_a_record_that_the_topic_would_refuse_is_refused_before_it_is_sent(cluster: Any, make: Any) -> None:
    topic, side = cluster.topic(**{"max.message.bytes": "20000"}), cluster.topic(**{"max.message.bytes": "20000"})
    main, rejected = make(topic, "job"), make(side, "job")
    main.committed()
    main.open(None)
    rejected.open(None)
    rows = batch(0, 3)
    rows.values[1] = {"x": 1, "text": "y" * 30_000}
    with pytest.raises(RecordError, match=r"event 'e1': its output takes 30\d\d\d bytes, and topic .* at most 20000"):
        main.write(rows, None)
    rows.values[1] = {"x": 1, "text": "y" * 19_000}
    main.write(rows, None)
    rejected.write_records([{"id": "a", "reason": "bad", "payload": "z" * 30_000}])
    for sink in (main, rejected):
        sink.prepare(1)
        sink.commit(1)
    assert numbers(cluster.consume(topic)) == [0, 1, 2]
    (cut,) = cluster.consume(side)
    assert json.loads(cut.value) == {"id": "a", "reason": "bad", "payload": "z" * 1000, "cut": {"payload": 30_000}}


def test_a_topic_that_is_not_there_is_refused_or_made(cluster: Any, make: Any) -> None:
    name, job = cluster.name("absent"), cluster.name("job")
    sink = make(name, job)
    with pytest.raises(
        ConnectorError, match=re.escape(f"there is no topic {name!r} at {cluster.broker.address}. Create it")
    ):
        sink.committed()
    sink.close()
    sink = make(name, job, create="true", partitions=2)
    assert sink.committed() is None
    sink.open(None)
    sink.prepare(1)
    sink.commit(1)


def test_a_transaction_must_be_allowed_to_last_from_one_checkpoint_to_the_next(cluster: Any, make: Any) -> None:
    topic = cluster.topic()
    short = make(topic, cluster.name("job"), interval=20_000, **{"transaction.timeout.ms": 30_000})
    with pytest.raises(
        ConnectorError, match=r"transaction.timeout.ms=30000 is too short: .* 20s apart. Give at least 60000"
    ):
        short.committed()
    long = make(topic, cluster.name("job"), interval=600_000)
    with pytest.raises(ConnectorError, match="the brokers don't allow a transaction to be open that long"):
        long.committed()


def test_exactly_once_needs_a_name_and_one_cluster(cluster: Any, make: Any, client: str, closing: Any) -> None:
    with pytest.raises(ConnectorError, match="exactly once needs a name that stays the same: transactional_id="):
        make(cluster.topic()).open(None)
    job = cluster.name("job")
    make(cluster.topic(), job)
    other = closing(open_sink(f"kafka://127.0.0.2:1/x?client={client}"))
    with pytest.raises(
        ConnectorError, match=f"exactly once takes one Kafka cluster, and other output .* {cluster.broker.address}"
    ):
        other.for_job(job, 1000)


def test_the_delivery_can_be_weakened_only_when_everything_is_committed(cluster: Any, make: Any) -> None:
    topic, job = cluster.topic(), cluster.name("job")
    sink = make(topic, job)
    sink.committed()
    sink.open(None)
    for checkpoint in (1, 2):
        sink.write(batch(checkpoint * 10, 3), None)
        prepared = json.loads(json.dumps(sink.prepare(checkpoint)))
        if checkpoint == 1:
            sink.commit(1)
            first = prepared
    sink.close()
    make(topic, job, delivery="at-least-once").open(first)
    with pytest.raises(
        ConnectorError, match=r"the output of checkpoint 2 was written exactly once and not committed .* is 1"
    ):
        make(topic, job, delivery="at-least-once").open(prepared)
    with pytest.raises(ConnectorError, match="the checkpoint was taken with another sink"):
        make(topic, job).open({"format": "jsonl"})
