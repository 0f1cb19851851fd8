"""Exactly once, Kafka to Kafka: the job or the broker is killed, and the output is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

SIDES = ("duplicates", "rejected")
CARDS = 40
KILLED = -9


class Jobs:
    """Runs `job.py`."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        script = Path(__file__).with_name("job.py")
        self._process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, source: str, output: str, **request: Any) -> int:
        """Run one process of the job; return its exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        made = {
            "servers": self._cluster.broker.address,
            "input": source,
            "output": output,
            "state": str(self._folder / output),
            "log": str(self._folder / f"{output}.steps"),
            "interval": "0s",
            "batch_size": 20,
            "options": {},
            "sink": f"transactional_id={output}",
            **request,
        }
        self._process.stdin.write(json.dumps(made).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def steps(self, output: str) -> list[str]:
        return (self._folder / f"{output}.steps").read_text().splitlines()

    def error(self, output: str) -> str:
        return (self._folder / f"{output}.steps.error").read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def jobs(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    made = Jobs(cluster, tmp_path_factory.mktemp("jobs"))
    yield made
    made.close()


def orders(count: int) -> list[tuple[int, bytes, bytes]]:
    """Return orders for 4 partitions, some of them twice, some damaged."""
    draw = random.Random(11)
    rows = []
    for number in range(count):
        card = f"c{draw.randrange(CARDS)}"
        order = {
            "id": f"o{number}",
            "card": card,
            "amount": draw.randrange(1, 100),
            "ts": 1_793_491_200_000 + number * 10,
        }
        place = int(card[1:]) % 4
        value = json.dumps(order).encode()
        if number % 37 == 5:
            rows.append((place, card.encode(), value[:-3]))
        rows.append((place, card.encode(), value))
        if number % 23 == 7:
            rows.append((place, card.encode(), value))
    return rows


def expected(rows: list[tuple[int, bytes, bytes]]) -> dict[str, Any]:
    """Compute the output in plain Python: for each card the rows in order, and for each side its events."""
    made: dict[str, Any] = {"main": defaultdict(list), "duplicates": Counter(), "rejected": Counter()}
    seen: set[str] = set()
    sums: Counter[str] = Counter()
    for _, _, value in rows:
        try:
            order = json.loads(value)
        except ValueError:
            made["rejected"][value.decode()] += 1
            continue
        if order["id"] in seen:
            made["duplicates"][f"orders/{order['id']}"] += 1
            continue
        seen.add(order["id"])
        card = order["card"]
        sums[card] += order["amount"]
        made["main"][card].append((f"orders/{order['id']}", len(made["main"][card]) + 1, sums[card]))
    return {**made, "main": dict(made["main"])}


def found(cluster: Any, output: str) -> dict[str, Any]:
    """Read the committed output."""
    main = defaultdict(list)
    for record in cluster.consume(output):
        row = json.loads(record.value)
        assert record.key == row["card"].encode()
        main[row["card"]].append((row["id"], row["n"], row["sum"]))
    sides = {side: [json.loads(record.value) for record in cluster.consume(f"{output}.{side}")] for side in SIDES}
    return {
        "main": dict(main),
        "duplicates": Counter(row["id"] for row in sides["duplicates"]),
        "rejected": Counter(row["payload"] for row in sides["rejected"]),
    }


@pytest.fixture
def stream(cluster: Any) -> Any:
    """Make an input topic of some length and three output topics; return their names and what must come out."""

    def make(count: int) -> tuple[str, str, dict[str, Any]]:
        source, rows = cluster.topic("orders", partitions=4), orders(count)
        cluster.produce(source, rows)
        output = cluster.topic("scores", partitions=3)
        settings = {"num_partitions": 1, "replication_factor": 1}
        cluster.admin.create_topics({f"{output}.{side}": settings for side in SIDES}, wait_for_metadata=True)
        return source, output, expected(rows)

    return make


def test_killed_at_every_durable_step_the_output_is_that_of_an_undisturbed_run(
    cluster: Any, jobs: Jobs, stream: Any
) -> None:
    source, output, wanted = stream(400)
    assert jobs.run(source, output, batch_size=500) == 0
    undisturbed = [
        sorted(record.value for record in cluster.consume(f"{output}{end}")) for end in ("", ".duplicates", ".rejected")
    ]
    assert found(cluster, output) == wanted
    killed_output = cluster.topic("killed", partitions=3)
    settings = {"num_partitions": 1, "replication_factor": 1}
    cluster.admin.create_topics({f"{killed_output}.{side}": settings for side in SIDES}, wait_for_metadata=True)
    die_at, code = 0, KILLED
    while code == KILLED:
        die_at += 1
        code = jobs.run(source, killed_output, die_at=die_at)
    assert code == 0, jobs.error(killed_output)
    steps = Counter(jobs.steps(killed_output))
    for name in ("state flushed", "main prepared", "side.rejected prepared", "renamed", "checkpoint stored",
                 "kafka prepared", "kafka decided", "kafka committed", "main committed"):  # fmt: skip
        assert steps[name] >= 1, (name, steps)
    assert sum(steps.values()) > 1.3 * len(steps), steps  # every step of a checkpoint, some twice
    assert found(cluster, killed_output) == wanted
    for end, before in zip(("", ".duplicates", ".rejected"), undisturbed, strict=True):
        assert sorted(record.value for record in cluster.consume(f"{killed_output}{end}")) == before


def test_killed_at_random_moments_the_output_is_that_of_an_undisturbed_run(
    cluster: Any, jobs: Jobs, stream: Any
) -> None:
    source, output, wanted = stream(8000)
    draw = random.Random(5)
    for _ in range(20):
        assert jobs.run(source, output, kill_after=draw.uniform(0.2, 0.9)) == KILLED
    assert 0 < len(cluster.consume(output)) < sum(map(len, wanted["main"].values()))
    assert jobs.run(source, output, batch_size=500) == 0, jobs.error(output)
    assert found(cluster, output) == wanted


def test_a_broker_killed_in_the_middle_loses_nothing(cluster: Any, jobs: Jobs, stream: Any) -> None:
    source, output, wanted = stream(2000)
    ended: list[int] = []
    runner = threading.Thread(target=lambda: ended.append(jobs.run(source, output, batch_size=40)))
    runner.start()
    deadline = time.monotonic() + 60
    while not cluster.consume(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert cluster.broker.kill()
    time.sleep(1.0)
    assert not ended
    cluster.restart()
    runner.join(120)
    if ended == [3]:  # the broker may want the transaction rolled back, and then the job starts again
        assert "The transaction was rolled back and is not visible. Start again" in jobs.error(output)
        ended = [jobs.run(source, output, batch_size=40)]
    assert ended == [0], jobs.error(output)
    assert found(cluster, output) == wanted


def test_at_least_once_loses_nothing_when_it_is_killed(cluster: Any, jobs: Jobs, stream: Any) -> None:
    source, output, wanted = stream(700)
    for die_at in (40, 60, 80):
        assert jobs.run(source, output, die_at=die_at, sink="delivery=at-least-once") == KILLED
    assert jobs.run(source, output, sink="delivery=at-least-once", batch_size=500) == 0
    rows = {record.value for record in cluster.consume(output)}
    assert {json.loads(row)["id"] for row in rows} == {id for card in wanted["main"].values() for id, _, _ in card}
