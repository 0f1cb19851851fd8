"""The embedded engine with Kafka on both sides: which checkpoint it goes on from, and what stands in its way."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import streamml as sml
from streamml.cli import state
from streamml.connectors import MemorySink, open_sink, open_source
from streamml.errors import ConnectorError, StateError
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


@pytest.fixture
def job(cluster: Any, tmp_path: Path, client: str) -> Any:
    """A function that runs the job until its input ends, and returns the ids in the committed output."""
    source, output = cluster.topic(partitions=2), cluster.topic()
    name = cluster.name("clicks")
    produced = 0

    def run(more: int = 3, overwrite: bool = False, side: Any = None, sink: Any = None, **options: Any) -> list[str]:
        nonlocal produced
        rows = []
        for number in range(produced, produced + more):
            event = {"id": f"e{number}", "user": f"u{number % 2}", "ts": 1_793_491_200_000 + number}
            rows += [(number % 2, None, json.dumps(event).encode())] * 2
        cluster.produce(source, rows)
        produced += more
        pipeline = sml.Pipeline(name, schema=Click).key_by("user").then(Dedupe(ttl="1h")).select("user")
        engine = LocalEngine(
            pipeline,
            {name: open_source(cluster.uri(source, until="latest", client=client))},
            sink or open_sink(cluster.uri(output, client=client, **options)),
            {"duplicates": side} if side is not None else {},
            options=LocalOptions(state_dir=tmp_path / "state", overwrite=overwrite, fsync=False),
        )
        assert engine.run().finished
        return sorted(json.loads(record.value)["id"].rpartition("/e")[2] for record in cluster.consume(output))

    return run


def test_a_job_goes_on_from_the_checkpoint_that_kafka_says(job: Any, tmp_path: Path) -> None:
    assert job(3) == ["0", "1", "2"]
    assert job(2) == ["0", "1", "2", "3", "4"]
    newest = max((tmp_path / "state" / "checkpoints").glob("chk-*"))
    shutil.copytree(
        newest, newest.with_name(f"chk-{int(newest.name[4:]) + 1:08d}")
    )  # one whose output was not committed
    assert job(1) == ["0", "1", "2", "3", "4", "5"]
    (undone,) = (tmp_path / "state" / "checkpoints").glob("undone-chk-*")
    shown = CliRunner().invoke(state.app, ["list", str(tmp_path / "state"), "--json"])
    assert json.loads(shown.stdout)["put_aside"] == {
        undone.name: "put aside at a restart: what it wrote was not committed, and was done again"
    }
    assert "damaged" not in CliRunner().invoke(state.app, ["list", str(tmp_path / "state")]).stdout


def test_a_state_folder_that_does_not_belong_to_the_output_is_refused_unless_it_is_to_start_afresh(
    job: Any, tmp_path: Path
) -> None:
    job(3)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(
        StateError, match=r"the output was committed up to checkpoint 1, and here are none. .* --overwrite"
    ):
        job(0)
    assert job(0, overwrite=True) == ["0", "1", "2"]  # from where the group is, with empty state
    assert job(1) == ["0", "1", "2", "3"]


def test_when_kafka_has_forgotten_the_checkpoint_it_asks_for_it(cluster: Any, job: Any) -> None:
    assert job(2, transactional_id=cluster.name("one")) == ["0", "1"]
    other = cluster.name("two")
    with pytest.raises(
        StateError, match=r"had committed checkpoint 1, and knows of none any more .* one of \[1\], with resume=NUMBER"
    ):
        job(1, transactional_id=other)
    assert job(0, transactional_id=other, resume=1) == ["0", "1", "2"]


def test_files_beside_kafka_follow_it(job: Any, tmp_path: Path) -> None:
    side = MemorySink()
    job(2, side=side)
    job(2, side=side)
    assert len(side.rows) == 4


def test_a_broker_that_is_down_at_the_start_is_waited_for_or_given_up(cluster: Any, client: str) -> None:
    from streamml.connectors.broker import free_port

    uri = f"kafka://127.0.0.1:{free_port()}/x?client={client}&give_up_after=1500ms"
    for each in (open_source(uri), open_sink(uri)):
        each.for_job("job", 1000)
        try:
            with pytest.raises(
                ConnectorError, match=r"the brokers were not available for 1500ms \(give_up_after=\).*Nothing is lost"
            ):
                each.open(None)
        finally:
            each.close()


def test_sources_go_on_when_the_broker_comes_back_or_give_up(cluster: Any, closing: Any) -> None:
    topic = cluster.topic()
    sources = [open_source(cluster.uri(topic, client=client)) for client in ("confluent", "python")]
    hasty = open_source(cluster.uri(topic, client="confluent", give_up_after="500ms"))
    for each in (*sources, hasty):
        closing(each).for_job(cluster.name("job"), 1000)
        each.open(None)
        assert each.poll(10, 0.1) is None
    assert cluster.broker.kill()
    with pytest.raises(ConnectorError, match=r"the brokers were not available for .* \(give_up_after=\)"):
        for _ in range(100):
            assert hasty.poll(10, 0.1) is None
    restarting = threading.Thread(target=cluster.restart)
    restarting.start()
    while restarting.is_alive():
        assert [source.poll(10, 0.1) for source in sources] == [None, None]
    cluster.produce(topic, [(0, None, b"x")])
    for source in sources:
        deadline = time.monotonic() + 30
        while (chunk := source.poll(10, 0.2)) is None:
            assert time.monotonic() < deadline
        assert chunk.payloads == [b"x"]


def properties(folder: Path, user: str, password: str) -> Path:
    path = folder / f"{user}.properties"
    path.write_text(
        "# a client\nsecurity.protocol=SASL_PLAINTEXT\nsasl.mechanisms=PLAIN\n"
        f"sasl.username={user}\nsasl.password={password}\n"
    )
    return path


def test_who_it_is_comes_from_a_file_and_refusals_say_what_to_do_without_the_password(
    cluster: Any, client: str, tmp_path: Path
) -> None:
    topic = cluster.topic()
    cluster.produce(topic, [(0, None, b"x")])

    def read(user: str, password: str) -> list[bytes]:
        config = properties(tmp_path, user, password)
        source = open_source(
            f"kafka://{cluster.sasl}/{topic}?until=latest&client={client}&config={config}&give_up_after=3s"
        )
        source.for_job(f"job-{user}", 1000)
        try:
            source.open(None)
            found: list[bytes] = []
            while not source.finished:
                chunk = source.poll(10, 0.1)
                found += chunk.payloads if chunk is not None else []
            return found
        finally:
            source.close()

    assert read("bea", "bea-pass-word") == [b"x"]
    refusal = (
        "the brokers refused the connection.*Check security.protocol, sasl" if client == "confluent" else "check sasl"
    )
    with pytest.raises(ConnectorError, match=refusal) as caught:
        read("bea", "wrong-pass-word")
    assert "wrong-pass-word" not in f"{caught.value}{caught.value.__cause__}"
    if client == "confluent":
        assert "sasl.password=(hidden)" in str(caught.value)
    with pytest.raises(ConnectorError, match=r"no right to .*\. Ask for an ACL|there is no topic"):
        read("ann", "ann-pass-word")
