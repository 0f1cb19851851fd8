"""The Kafka source against a real broker, with both client libraries."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from streamml.connectors import open_source
from streamml.errors import ConnectorError

Row = tuple[str, int, Any]


def read(source: Any, want: int | None = None, limit: int = 100, seconds: float = 20.0) -> list[Row]:
    """Poll until there are `want` records, or a bounded source has ended; (partition, offset, payload) in order."""
    found: list[Row] = []
    deadline = time.monotonic() + seconds
    while not source.finished and (want is None or len(found) < want):
        assert time.monotonic() < deadline, f"{len(found)} of {want}"
        chunk = source.poll(limit, 0.1)
        if chunk is not None:
            row = 0
            for partition, count in chunk.runs:
                found += [(partition, chunk.offsets[at], chunk.payloads[at]) for at in range(row, row + count)]
                row += count
            assert row == len(chunk.payloads) == len(chunk.keys) == len(chunk.times)
    return found


def rows(partition: int, first: int, count: int) -> list[tuple[int, bytes, bytes]]:
    return [(partition, b"k%d" % at, b"%d/%d" % (partition, at)) for at in range(first, first + count)]


@pytest.fixture
def make(cluster: Any, client: str, closing: Callable[[Any], Any]) -> Callable[..., Any]:
    def source(path: str, positions: Any = None, job: str = "job", **options: Any) -> Any:
        made = open_source(cluster.uri(path, client=client, **options))
        made.for_job(job, 5000)
        made.open(positions)
        return closing(made)

    return source


def test_it_goes_on_at_any_position_with_exactly_the_records_that_follow(cluster: Any, make: Any) -> None:
    topic = cluster.topic(partitions=3)
    cluster.produce(topic, [row for at in range(40) for part in range(3) for row in rows(part, at, 1)])
    source = make(topic, until="latest")
    cuts = [(0, json.loads(json.dumps(source.positions())))]
    seen: list[Row] = []
    while not source.finished:
        chunk = source.poll(7, 0.1)
        if chunk is not None:
            seen += [(name, 0, None) for name, count in chunk.runs for _ in range(count)]
            cuts.append((len(seen), json.loads(json.dumps(source.positions()))))
    whole = {(f"{topic}-{part}", at, b"%d/%d" % (part, at)) for part in range(3) for at in range(40)}
    assert len(seen) == 120
    for done, positions in cuts[:: max(1, len(cuts) // 6)] + cuts[-1:]:
        again = make(topic, positions, until="latest")
        rest = read(again)
        before = {row for row in whole if row[1] < positions["offsets"][row[0]]}
        assert (len(before), set(rest), len(rest)) == (done, whole - before, 120 - done)
        for part in range(3):
            offsets = [offset for name, offset, _ in rest if name == f"{topic}-{part}"]
            assert offsets == sorted(offsets)
        assert again.progress() == 1.0


def test_keys_times_and_trace_context_are_kept(cluster: Any, make: Any) -> None:
    topic = cluster.topic()
    cluster.produce(
        topic, [(0, b"k", b"v")], timestamp=1234567890123, headers=[("x", b"1"), ("traceparent", b"00-ab-cd-01")]
    )
    cluster.produce(topic, [(0, None, b"w")], timestamp=1234567890124)
    source = make(topic, until="latest")
    found: dict[str, list[Any]] = {"payloads": [], "keys": [], "times": [], "traces": []}
    while not source.finished:
        chunk = source.poll(10, 0.1)
        if chunk is not None:
            for name in found:
                found[name] += getattr(chunk, name) or [None] * len(chunk.payloads)
    assert found == {
        "payloads": [b"v", b"w"],
        "keys": [b"k", None],
        "times": [1234567890123, 1234567890124],
        "traces": ["00-ab-cd-01", None],
    }


def test_a_tombstone_is_an_empty_payload_or_is_skipped(cluster: Any, make: Any) -> None:
    topic = cluster.topic()
    cluster.produce(topic, [(0, b"k", None), (0, b"k", b"v"), (0, b"k", None)])
    assert [payload for _, _, payload in read(make(topic, until="latest"))] == [b"", b"v", b""]
    assert read(make(topic, until="latest", tombstones="skip")) == [(f"{topic}-0", 1, b"v")]


def test_a_start_is_earliest_latest_an_instant_or_offsets(cluster: Any, make: Any) -> None:
    topic = cluster.topic(partitions=2)
    for at, day in enumerate(("2026-11-01", "2026-11-02", "2026-11-03")):
        millis = 1_793_491_200_000 + at * 86_400_000
        cluster.produce(topic, [(0, None, f"{day}/0".encode()), (1, None, f"{day}/1".encode())], timestamp=millis)

    def payloads(**options: Any) -> set[bytes]:
        return {payload for _, _, payload in read(make(topic, until="latest", **options))}

    everything = payloads(start="earliest")
    assert len(everything) == 6
    assert payloads(start="latest") == set()
    assert payloads(start="2026-11-01T12:00Z") == {row for row in everything if not row.startswith(b"2026-11-01")}
    assert payloads(start="2026-11-04") == set()
    assert payloads(start="0:2,1:3") == {b"2026-11-03/0"}
    assert payloads(start="1:3") == {row for row in everything if row.endswith(b"/0")}
    latest = make(topic, start="latest")
    cluster.produce(topic, [(1, None, b"new")])
    assert read(latest, want=1) == [(f"{topic}-1", 3, b"new")]


def test_an_end_is_the_latest_record_an_instant_or_offsets_and_is_the_same_after_a_restart(
    cluster: Any, make: Any
) -> None:
    topic = cluster.topic(partitions=2)
    for at in range(4):
        cluster.produce(topic, rows(0, at, 1) + rows(1, at, 1), timestamp=1_793_491_200_000 + at * 1000)
    assert {row[1:] for row in read(make(topic, until="0:1,1:3"))} == {
        (0, b"0/0"), (0, b"1/0"), (1, b"1/1"), (2, b"1/2"),
    }  # fmt: skip
    assert {row[1] for row in read(make(topic, until="2026-11-01T00:00:02Z"))} == {0, 1}
    source = make(topic, until="latest")
    positions = source.positions()
    cluster.produce(topic, rows(0, 4, 5))
    assert len(read(source)) == 8
    assert source.finished and source.partitions() == [] and set(source.lag().values()) == {0}
    assert len(read(make(topic, positions, until="latest"))) == 8


def test_without_a_checkpoint_it_starts_at_what_its_group_committed(cluster: Any, make: Any) -> None:
    topic, job = cluster.topic(), cluster.name("job")
    cluster.produce(topic, rows(0, 0, 10))
    first = make(topic, job=job)
    assert [row[1] for row in read(first, want=4, limit=4)] == [0, 1, 2, 3]
    first.committed(first.positions())
    read(first, want=2, limit=2)
    first.close()
    assert [row[1] for row in read(make(topic, job=job, until="latest"))] == [4, 5, 6, 7, 8, 9]
    assert len(read(make(topic, job=cluster.name("job"), until="latest"))) == 10


def test_a_job_without_state_says_that_it_starts_where_its_group_has_read_to(
    cluster: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    topic, job = cluster.topic(partitions=2), cluster.name("job")
    cluster.produce(topic, rows(0, 0, 10) + rows(1, 0, 5))
    first = make(topic, job=job, until="latest")
    read(first)
    first.committed(first.positions())
    first.close()
    assert "has read to" not in caplog.text  # there was nothing to skip
    make(topic, job=job, start="committed").close()
    make(topic, first.positions(), job=job).close()
    assert "has read to" not in caplog.text  # it is what was asked for
    make(topic, job=job).close()
    assert (
        "the job has no state yet, and starts where its group has read to: 15 records before are not read, none af"
        in (caplog.text)
    )


def test_partitions_and_topics_that_are_new_are_found_and_read_from_their_beginning(cluster: Any, make: Any) -> None:
    stem = cluster.name("found")
    topic = f"{stem}-a"
    settings = {"num_partitions": 1, "replication_factor": 1}
    cluster.admin.create_topics({topic: settings}, wait_for_metadata=True)
    source = make("", topic=f"^{stem}-.*", refresh="200ms", start="latest")
    assert source.partitions() == [f"{topic}-0"]
    cluster.admin.create_partitions({topic: 2})
    cluster.admin.create_topics({f"{stem}-b": settings}, wait_for_metadata=True)
    cluster.produce(topic, rows(1, 0, 3))
    cluster.produce(f"{stem}-b", rows(0, 0, 3))
    found = read(source, want=6)
    assert {name for name, _, _ in found} == {f"{topic}-1", f"{stem}-b-0"}
    assert set(source.partitions()) == {f"{topic}-0", f"{topic}-1", f"{stem}-b-0"}


def test_a_partition_that_the_checkpoint_does_not_know_is_read_from_its_beginning(cluster: Any, make: Any) -> None:
    topic = cluster.topic()
    source = make(topic, start="latest")
    positions = source.positions()
    cluster.admin.create_partitions({topic: 2})
    time.sleep(0.3)
    cluster.produce(topic, rows(1, 0, 3))
    assert len(read(make(topic, positions, start="latest"), want=3)) == 3


def test_lag_counts_the_records_that_wait_and_is_none_behind_the_marks_of_transactions(
    cluster: Any, make: Any, client: str
) -> None:
    from confluent_kafka import Producer

    topic = cluster.topic()
    producer = Producer({"bootstrap.servers": cluster.broker.address, "transactional.id": cluster.name("tx")})
    producer.init_transactions()
    for part in range(3):
        producer.begin_transaction()
        for at in range(5):
            producer.produce(topic, b"%d" % (part * 5 + at))
        assert producer.flush(20) == 0
        if part == 1:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    source = make(topic)
    assert len(read(source, want=3, limit=3)) == 3
    assert source.lag()[f"{topic}-0"] >= 10
    assert source.lag_seconds(2**42)[f"{topic}-0"] > 0
    assert [row[2] for row in read(source, want=7)] == [b"3", b"4", b"10", b"11", b"12", b"13", b"14"]
    deadline = time.monotonic() + 10
    while source.lag() != {f"{topic}-0": 0} and time.monotonic() < deadline:
        assert source.poll(10, 0.1) is None
    assert source.lag() == {f"{topic}-0": 0}
    assert source.lag_seconds(2**42) == {f"{topic}-0": 0.0}


def test_a_position_that_retention_has_overtaken_stops_it_or_is_counted(cluster: Any, make: Any) -> None:
    from kafka import TopicPartition

    topic = cluster.topic()
    cluster.produce(topic, rows(0, 0, 30))
    positions = {**make(topic).positions(), "offsets": {f"{topic}-0": 5}}
    cluster.admin.delete_records({TopicPartition(topic, 0): 20})
    message = "the next record of .*-0 is 5, and the broker has 20 to 30: 15 records were removed by retention before"
    with pytest.raises(ConnectorError, match=message + ".*on_data_loss=earliest"):
        make(topic, positions)
    lenient = make(topic, positions, on_data_loss="earliest", until="latest")
    assert [row[1] for row in read(lenient)] == list(range(20, 30))
    assert lenient.lost == 15


@pytest.mark.parametrize("on_data_loss", ["fail", "earliest"])
def test_retention_that_overtakes_it_while_it_runs_stops_it_or_is_counted(
    cluster: Any, make: Any, client: str, on_data_loss: str
) -> None:
    from kafka import TopicPartition

    topic = cluster.topic()
    cluster.produce(topic, [(0, b"k", b"x" * 50_000) for _ in range(30)])
    small = {"max.partition.fetch.bytes": "60000"}
    if client == "confluent":
        small |= {"queued.min.messages": "1", "queued.max.messages.kbytes": "1"}
    source = make(topic, on_data_loss=on_data_loss, **small)
    first = read(source, want=2, limit=1)
    cluster.admin.delete_records({TopicPartition(topic, 0): 25})
    if on_data_loss == "fail":
        with pytest.raises(
            ConnectorError, match=r"the next record of .*-0 is (\d+), and the broker has 25 to 30: \d+ records"
        ):
            read(source, want=28, limit=1)
        return
    rest: list[Row] = []
    while not rest or rest[-1][1] < 29:
        rest += read(source, want=1, limit=1)
    offsets = [row[1] for row in first + rest]
    before = [offset for offset in offsets if offset < 25]
    assert offsets == [*range(len(before)), *range(25, 30)]
    assert source.lost == 25 - len(before) > 0


def test_a_topic_that_is_not_there_is_refused_or_made_with_its_settings(cluster: Any, make: Any) -> None:
    name = cluster.name("absent")
    with pytest.raises(
        ConnectorError, match=re.escape(f"there is no topic {name!r} at {cluster.broker.address}. Create it")
    ):
        make(name)
    source = make(name, create="true", partitions=3, retention="forever")
    assert source.partitions() == [f"{name}-0", f"{name}-1", f"{name}-2"]
    from kafka.admin import ConfigResource, ConfigResourceType

    found = cluster.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    (settings,) = (topics[name] for topics in found.values())
    assert settings["retention.ms"]["value"] == "-1"


def test_positions_of_a_topic_that_was_made_anew_are_refused(cluster: Any, make: Any) -> None:
    topic = cluster.topic(partitions=2)
    positions = make(topic).positions()
    positions["offsets"][f"{topic}-0"] = 7
    with pytest.raises(
        ConnectorError, match=r"the next record of .*-0 is 7, and the broker has 0 to 0: the topic was made anew"
    ):
        make(topic, positions)
    positions = {**positions, "offsets": {f"{topic}-5": 0}}
    with pytest.raises(ConnectorError, match=f"a position in {topic}-5, which is not there any more"):
        make(topic, positions)
    with pytest.raises(ConnectorError, match="got those of another source"):
        make(topic, {"x.jsonl": {"format": "jsonl"}})


def test_several_topics_are_read_together(cluster: Any, make: Any) -> None:
    one, two = cluster.topic(), cluster.topic()
    cluster.produce(one, rows(0, 0, 5))
    cluster.produce(two, rows(0, 0, 5))
    assert {row[0] for row in read(make(f"{one},{two}", until="latest"))} == {f"{one}-0", f"{two}-0"}
    assert len(read(make(f"{one},{two}", until="latest", start=f"{one}/0:4"))) == 6
