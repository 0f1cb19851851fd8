"""The payments job on a real cluster and a real broker, with kills: as the embedded engine, record for record."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from flink_topics import committed, wait

from streamml.cli.loading import load_job
from streamml.flink.cluster import TrialCluster
from streamml.flink.ports import free_port
from streamml.flink.rest import FlinkRest
from streamml.flink.submit import SubmitOptions, submit

pytestmark = [
    pytest.mark.flink,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EVENTS = int(os.environ.get("STREAMML_FLINK_EVENTS", "60000"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    from streamml.connectors.broker import TrialBroker

    broker = TrialBroker(tmp_path / "kafka", free_port(), heap="384m")
    broker.start(90)
    try:
        yield broker.address
    finally:
        broker.stop(10)


@pytest.fixture
def cluster(tmp_path: Path, flink: None) -> Iterator[TrialCluster]:
    cluster = TrialCluster(tmp_path / "flink", port=free_port(), task_managers=2, slots=1)
    cluster.start(120)
    try:
        yield cluster
    finally:
        cluster.stop()


def fill(address: str, topic: str, lines: list[bytes], partitions: int = 1) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address})
    for name, count in ((topic, partitions), ("scores", 1), ("late", 1), ("rejected", 1), ("duplicates", 1)):
        admin.create_topics([NewTopic(name, count, 1, config={"retention.ms": "-1"})])[name].result(30)
    producer = Producer({"bootstrap.servers": address, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for line in lines:
        producer.produce(topic, line)
    assert producer.flush(60) == 0


def local_answer(lines: Path) -> dict[str, list[bytes]]:
    """What the embedded engine makes of a file."""
    import subprocess

    out = lines.parent / "local.jsonl"
    command = [str(Path(sys.executable).parent / "streamml"), "run", "payments", "--plain"]
    subprocess.run(
        [*command, "--source", f"file:{lines}", "--sink", f"file:{out}"], check=True, timeout=120, capture_output=True
    )
    names = {"scores": out, **{side: out.with_name(f"local.{side}.jsonl") for side in ("late", "duplicates")}}
    return {name: path.read_bytes().splitlines() for name, path in names.items()}


def by_key(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for line in lines:
        found.setdefault(line.split(b'"card_id":"')[1].split(b'"')[0], []).append(line)
    return found


def test_two_kills_and_a_resume_at_another_parallelism_lose_and_double_nothing(
    broker: str, cluster: TrialCluster, tmp_path: Path
) -> None:
    import subprocess

    lines = tmp_path / "events.jsonl"
    generate = [str(Path(sys.executable).parent / "streamml"), "generate", "payments", "--events", str(EVENTS)]
    subprocess.run([*generate, "--to", f"file:{lines}"], check=True, timeout=120, capture_output=True)
    expected = local_answer(lines)
    events = lines.read_bytes().splitlines()
    half = len(events) // 2
    fill(broker, "payments", events[:half])

    job = load_job("payments")
    models = job.models()
    pipeline = job.pipeline({}, models)
    topics = {name: f"kafka://{broker}/{name}" for name in ("late", "duplicates", "rejected")}

    def start(parallelism: int, savepoint: str | None = None) -> str:
        options = SubmitOptions(
            jobmanager=cluster.rest.address,
            parallelism=parallelism,
            checkpoint_interval=1_000,
            from_savepoint=savepoint,
        )
        source = {"payments": f"kafka://{broker}/payments"}
        return submit(pipeline, source, f"kafka://{broker}/scores", topics, options, module=job.module, models=models)

    rest: FlinkRest = cluster.rest
    first = start(2)

    def completed(job_id: str) -> int:
        assert rest.state(job_id) != "FAILED", rest.failure(job_id)
        return int(rest.checkpoints(job_id)["counts"]["completed"])

    wait("checkpoint", lambda: completed(first) >= 2)
    for _ in range(2):
        victim = cluster.task_managers()[0]
        before = completed(first)
        os.killpg(victim, signal.SIGKILL)
        cluster.add_task_manager()
        wait(
            "checkpoint after a kill",
            lambda before=before: completed(first) > before + 1 and rest.state(first) == "RUNNING",
        )
    wait("half of the output", lambda: len(committed(broker, "scores")) > half * 0.9, 120)
    savepoint = rest.savepoint(first, None, stop=True)
    assert rest.wait(first, patience=60) == "FINISHED"

    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "queue.buffering.max.messages": 1_000_000})
    for line in events[half:]:
        producer.produce("payments", line)
    assert producer.flush(60) == 0
    second = start(1, savepoint)
    wanted = len(expected["scores"])
    wait("all output", lambda: len(committed(broker, "scores")) >= wanted or rest.state(second) == "FAILED", 180)
    time.sleep(2.5)  # more would come with another checkpoint, if there were more
    assert rest.failure(second) == ""
    rest.cancel(second)

    scores = committed(broker, "scores")
    assert len(scores) == len(set(scores)) == wanted
    assert by_key(scores) == by_key(expected["scores"])
    # How late it was is told by the watermark of the moment, which Flink moves on in larger steps.
    ids = {
        side: sorted(msgspec.json.decode(line)["id"] for line in committed(broker, side))
        for side in ("late", "duplicates")
    }
    assert ids == {side: sorted(msgspec.json.decode(line)["id"] for line in expected[side]) for side in ids}
