"""A pipeline that changes its key, from Kafka to Kafka by two workers for each key; one of each segment is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

JOB = """
import streamml as sml
from streamml.operators import Dedupe, Features, count, total, trailing

class Order(sml.Event, id="id", key="card", time="ts"):
    id: str
    card: str
    shop: str
    amount: int
    ts: int

WINDOW = trailing("10h", tile="10m")

def pipeline(cfg):
    return (
        sml.Pipeline("orders", schema=Order, out_of_orderness="1h", idleness="1h")
        .key_by("card")
        .then(Dedupe(ttl="10h"))
        .then(Features(window=WINDOW, fields={"n": count(), "sum": total("amount")}))
        .key_by(lambda order: "s" + str(int(order.shop)))
        .then(Features(window=WINDOW, fields={"shop_n": count(), "shop_sum": total("amount")}, name="shops"))
        .select("shop", "n", "sum", "shop_n", "shop_sum")
    )
"""


def orders(count: int) -> list[tuple[int, bytes, bytes]]:
    """Return orders for 4 partitions: some twice, some damaged, some of a shop that is no number."""
    draw = random.Random(3)
    rows = []
    for number in range(count):
        card, shop = draw.randrange(90), draw.randrange(40)
        order = {"id": f"o{number}", "card": f"c{card}", "shop": str(shop) if number % 41 else "none"}
        value = json.dumps(order | {"amount": draw.randrange(1, 100), "ts": 1_793_491_200_000 + number}).encode()
        copies = [value] * (2 if number % 23 == 7 else 1) + [value[:-3]] * (number % 37 == 5)
        rows += [(card % 4, order["card"].encode(), copy) for copy in copies]
    return rows


def expected(rows: list[tuple[int, bytes, bytes]]) -> dict[str, Any]:
    """Compute in plain Python what does not depend on how partitions interleave."""
    seen: set[str] = set()
    cards: dict[str, list[int]] = defaultdict(list)
    found: dict[str, Any] = {"rows": {}, "shops": defaultdict(list), "rejected": Counter(), "duplicates": Counter()}
    for _, _, value in rows:
        try:
            order = json.loads(value)
        except ValueError:
            found["rejected"]["decode"] += 1
            continue
        id = f"orders/{order['id']}"
        if id in seen:
            found["duplicates"][id] += 1
            continue
        seen.add(id)
        cards[order["card"]].append(order["amount"])
        if order["shop"] == "none":
            found["rejected"][id] += 1
            continue
        found["rows"][id] = (len(cards[order["card"]]), sum(cards[order["card"]]))
        found["shops"][order["shop"]].append(order["amount"])
    return found


def check(cluster: Any, output: str, rows: list[tuple[int, bytes, bytes]]) -> None:
    wanted = expected(rows)
    got: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in cluster.consume(output):
        row = json.loads(record.value)
        got[row["shop"]].append(row)
    flat = [row for mine in got.values() for row in mine]
    assert len(flat) == len(wanted["rows"])
    assert {row["id"]: (row["n"], row["sum"]) for row in flat} == wanted["rows"]
    for shop, amounts in wanted["shops"].items():
        assert [row["shop_n"] for row in got[shop]] == list(range(1, len(amounts) + 1))
        assert got[shop][-1]["shop_sum"] == sum(amounts)
    sides = {
        side: [json.loads(record.value) for record in cluster.consume(f"{output}.{side}")]
        for side in ("rejected", "duplicates")
    }
    assert Counter(row["id"] for row in sides["duplicates"]) == wanted["duplicates"]
    steps = ("decode" if "decode" in row["operator"] else row["id"] for row in sides["rejected"])
    assert Counter(steps) == wanted["rejected"]


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if b"streamml.local.worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_workers_of_both_segments_are_killed_and_nothing_is_lost_or_doubled(cluster: Any, tmp_path: Path) -> None:
    source, output = cluster.topic("orders", partitions=4), cluster.name("scores")
    rows = orders(40_000)
    cluster.produce(source, rows)
    (tmp_path / "orders.py").write_text(JOB)
    command = [str(Path(sys.executable).with_name("streamml")), "run", "orders.py", "--plain"]
    command += ["--source", cluster.uri(source, until="latest", start="earliest")]
    command += ["--sink", cluster.uri(output, create="true", partitions=3), "--state-dir", "state"]
    command += ["--checkpoint-interval", "100ms", "--batch-size", "100", "--workers"]
    killed: list[int] = []
    deadline = time.monotonic() + 150
    with (tmp_path / "log").open("ab") as log:
        job = subprocess.Popen([*command, "2"], cwd=tmp_path, stdout=log, stderr=log)
        try:
            while len(killed) < 4 and job.poll() is None:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                there = workers_of(job.pid)
                taken = list((tmp_path / "state").glob("gen-0001/segment-*/worker-*/checkpoints/chk-*"))
                if len(there) == 4 and len(taken) > 2 * len(killed) and not set(there) & set(killed):
                    victim = sorted(there)[len(killed)]  # the oldest are of the first segment
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                time.sleep(0.05)
            assert job.wait(200) == 0, (tmp_path / "log").read_text()
            assert len(killed) >= 2, "the job was over before workers of both segments could be killed"
            check(cluster, output, rows)
            again = subprocess.run([*command, "3"], cwd=tmp_path, stdout=log, stderr=log, timeout=150, check=False)
            assert again.returncode == 0, (tmp_path / "log").read_text()
            check(cluster, output, rows)  # nothing is new, with other workers
        finally:
            job.kill()
            job.wait()
