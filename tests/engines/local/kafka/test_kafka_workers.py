"""Three workers from Kafka to Kafka, one of them killed: the output of each key is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

JOB = """
import streamml as sml
from streamml.operators import Dedupe, Features, count, total, trailing

class Order(sml.Event, id="id", key="card", time="ts"):
    id: str
    card: str
    amount: int
    ts: int

def pipeline(cfg):
    return (
        sml.Pipeline("orders", schema=Order, out_of_orderness="1h", idleness="1h")
        .key_by("card")
        .then(Dedupe(ttl="10h"))
        .then(Features(window=trailing("10h", tile="10m"), fields={"n": count(), "sum": total("amount")}))
        .select("card", "n", "sum")
    )
"""
CARDS = 90
START = 1_793_491_200_000
SIDES = ("duplicates", "rejected")


def orders(count: int) -> list[tuple[int, bytes, bytes]]:
    """Return orders for 4 partitions, some of them twice, some damaged."""
    draw = random.Random(3)
    rows = []
    for number in range(count):
        card = draw.randrange(CARDS)
        order = {
            "id": f"o{number}",
            "card": f"c{card}",
            "amount": draw.randrange(1, 100),
            "ts": 1_793_491_200_000 + number,
        }
        value = json.dumps(order).encode()
        copies = [value] * (2 if number % 23 == 7 else 1) + [value[:-3]] * (number % 37 == 5)
        rows += [(card % 4, order["card"].encode(), copy) for copy in copies]
    return rows


def expected(rows: list[tuple[int, bytes, bytes]]) -> dict[str, Any]:
    """Compute the output in plain Python."""
    main, sides, seen, sums = defaultdict(list), {side: Counter() for side in SIDES}, set(), Counter()
    for _, _, value in rows:
        try:
            order = json.loads(value)
        except ValueError:
            sides["rejected"][value.decode()] += 1
            continue
        if order["id"] in seen:
            sides["duplicates"][f"orders/{order['id']}"] += 1
            continue
        seen.add(order["id"])
        sums[order["card"]] += order["amount"]
        main[order["card"]].append((f"orders/{order['id']}", len(main[order["card"]]) + 1, sums[order["card"]]))
    return {"main": dict(main), **sides}


def found(cluster: Any, output: str) -> dict[str, Any]:
    """Read the committed output."""
    main = defaultdict(list)
    for record in cluster.consume(output):
        row = json.loads(record.value)
        main[row["card"]].append((row["id"], row["n"], row["sum"]))
    sides = {side: [json.loads(record.value) for record in cluster.consume(f"{output}.{side}")] for side in SIDES}
    return {
        "main": dict(main),
        "duplicates": Counter(row["id"] for row in sides["duplicates"]),
        "rejected": Counter(row["payload"] for row in sides["rejected"]),
    }


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a job."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if b"streamml.local.worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


@pytest.fixture
def start(cluster: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that starts the job with so many workers; what is left over at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []
    (tmp_path / "orders.py").write_text(JOB)

    def run(source: str, output: str, workers: int) -> subprocess.Popen[bytes]:
        command = [
            str(Path(sys.executable).with_name("streamml")),
            "run",
            "orders.py",
            "--plain",
            "--workers",
            str(workers),
        ]
        command += ["--source", cluster.uri(source, until="latest", start="earliest")]
        command += ["--sink", cluster.uri(output, create="true", partitions=3), "--state-dir", output]
        command += ["--checkpoint-interval", "100ms", "--batch-size", "100"]
        with (tmp_path / "log").open("ab") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.wait()


def test_one_of_three_workers_killed_loses_and_doubles_nothing(cluster: Any, start: Any, tmp_path: Path) -> None:
    source, output = cluster.topic("orders", partitions=4), cluster.name("scores")
    rows = orders(40_000)
    cluster.produce(source, rows)
    job = start(source, output, 3)
    killed: set[int] = set()
    draw = random.Random(8)
    deadline = time.monotonic() + 120
    while len(killed) < 2 and job.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        there = [pid for pid in workers_of(job.pid) if pid not in killed]
        log = (tmp_path / "log").read_text()
        if len(there) == 3 and "checkpoint=" in log:
            victim = draw.choice(there)
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
        time.sleep(0.05)
    assert job.wait(180) == 0, (tmp_path / "log").read_text()
    assert killed, "the job was over before a worker could be killed"
    assert found(cluster, output) == expected(rows)
    more = start(source, output, 2)  # nothing is new, with other workers
    assert more.wait(120) == 0, (tmp_path / "log").read_text()
    assert found(cluster, output) == expected(rows)
