"""Rollouts in a running job: promoted, canaried, refused and rolled back by the job itself, and replayed."""

from __future__ import annotations

import bisect
import hashlib
import importlib.util
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamml.connectors.memory import MemorySink, MemorySource
from streamml.errors import ModelError
from streamml.generate import Payments
from streamml.jobs.payments import pipeline
from streamml.local.engine import LocalEngine
from streamml.local.metering import Meter
from streamml.local.options import LocalOptions
from streamml.models import rolling
from streamml.models.registry import Registry
from streamml.models.rollout import Guard
from streamml.pipeline import JobConfig
from streamml.ports import Chunk, Sink
from streamml.records import Batch

pytest.importorskip("onnx")

RATE, SECONDS = 5_000, 50
BAD_CENTS = 99
pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(300)]


def load(name: str) -> Any:
    """Import a module that stands beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Paced(MemorySource):
    """Hands out lines at their rate, as a live source would."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        super().__init__(lines)
        self.started = 0.0
        self._out = 0

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        self.started = self.started or time.time()
        due = int((time.time() - self.started) * RATE) - self._out
        if due < 1:
            time.sleep(min(timeout, 0.001))
            return None
        chunk = super().poll(min(limit, due), 0.0)
        self._out += 0 if chunk is None else len(chunk.payloads)
        return chunk


class Timed(MemorySink):
    """Keeps records with the time at which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        now = time.time_ns() // 1_000_000
        self.seen += [(value.tx_id, now) for value in batch.values]
        super().write(batch, fields)


def engine(source: MemorySource, models: Path, sink: MemorySink, sides: Mapping[str, Sink], **options: Any) -> Any:
    job = pipeline(JobConfig(models=(str(models),), params={}))
    return LocalEngine(
        job, {"payments": source}, sink, sides, options=LocalOptions(**options), models=(str(models),), meter=Meter()
    )


def steps(registry: Registry, start: float, said: list[str]) -> None:
    """What the operators of the model do while the job runs; times are seconds from its start."""

    def at(second: float) -> int:
        time.sleep(max(start + second - time.time(), 0))
        return int(start * 1000)

    begin = at(3)
    rolling.promote(registry, "fraud", 2, effective=begin + 8_000, backdate=True)
    at(9)
    rolling.canary(registry, "fraud", 3, 5.0, Guard(), effective=begin + 13_000)
    at(13)
    try:
        rolling.promote(registry, "fraud", 4, effective=begin + 17_000)
    except ModelError as exc:
        said.append(str(exc))
    # Somebody goes round the command's check: then the job's own check must hold.
    registry.append("fraud", "prod", "promote", effective=begin + 17_000, champion=4, who="mallory", why="", at=begin)
    at(15)
    rolling.canary(registry, "fraud", 5, 20.0, Guard(errors=0.001), effective=begin + 19_000)
    at(30)
    rolling.canary(registry, "fraud", 6, 20.0, Guard(errors=0.001, slowdown=3.0), effective=begin + 34_000)


class Oracle:
    """Which version scores what: written again from the records' files, on its own."""

    def __init__(self, models: Path) -> None:
        records = [json.loads(path.read_bytes()) for path in sorted((models / "fraud" / "rollouts").glob("*.json"))]
        records = [record["rollout"] for record in records]
        refused = {record.get("refused") for record in records} - {None, 0}
        self._records = [r for r in records if r["number"] not in refused and not r.get("refused")]

    def version(self, card: str, amount: float, at: int) -> int:
        inforce = None
        for record in self._records:
            if record["effective"] <= at:
                inforce = record
        if inforce is None:
            return int(self._records[0]["champion"])
        digest = hashlib.blake2b(msgspec.msgpack.encode(card), digest_size=8, person=b"fraud").digest()
        bucket, upto = int.from_bytes(digest, "big") % 10_000, 0.0
        for split in inforce.get("splits", ()):
            upto += split["percent"] * 100
            if bucket < upto:
                fails = split["version"] == 5 and cents(amount) == BAD_CENTS
                return int(inforce["champion"] if fails else split["version"])
        return int(inforce["champion"])


def cents(amount: float) -> int:
    """Return the cents as the model sees them: in 32-bit floats, cut off."""
    return int(np.float32(amount) * np.float32(100)) % 100


def test_a_running_job_changes_models_and_every_event_has_the_one_score_of_its_time(tmp_path: Path) -> None:
    models = tmp_path / "models"
    load("rollout_models").write_versions(models)
    registry = Registry(models)
    begin = time.time() + 10
    lines = list(Payments(RATE * SECONDS, seed=11, rate=RATE, cards=2_000, start_ms=int(begin * 1000)))
    registry.append("fraud", "prod", "promote", effective=0, champion=1, who="test", why="", at=0)
    sink, sides = Timed(), {name: MemorySink() for name in ("late", "rejected", "duplicates", "rollout")}
    source = Paced(lines)
    running = engine(source, models, sink, sides, state_dir=tmp_path / "state")
    said: list[str] = []
    time.sleep(max(begin - time.time(), 0))
    operators = threading.Thread(target=steps, args=(registry, begin, said))
    operators.start()
    running.run()
    operators.join()

    assert "golden rows" in said[0]  # the command would not have it
    records = registry.records("fraud")
    actions = Counter(record.action for record in records)
    assert actions == {"promote": 3, "canary": 3, "refuse": 1, "rollback": 2}
    assert [r["action"] for r in sides["rollout"].rows] == ["refuse", "rollback", "rollback"]
    assert running.meter.metrics.counter("streamml_rollouts_late_total", model="fraud").value == 0

    rows = [json.loads(row) if isinstance(row, bytes) else row for row in sink.rows]
    paid = {}
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
            paid.setdefault(row["tx_id"], {**row, "place": place})
        except (ValueError, KeyError, TypeError):
            continue
    assert len({row["tx_id"] for row in rows}) == len(rows)
    aside = sum(len(sides[name].rows) for name in ("late", "rejected", "duplicates"))
    assert len(rows) + aside == len(lines)

    oracle = Oracle(models)
    versions = Counter()
    for row in rows:
        event = paid[row["tx_id"]]
        wanted = oracle.version(event["card_id"], event["amount"], event["ts"])
        assert row["model_version"] == f"fraud:{wanted}", (event, row)
        versions[row["model_version"]] += 1
    assert set(versions) == {"fraud:1", "fraud:2", "fraud:3", "fraud:5", "fraud:6"}

    order: dict[str, list[int]] = {}
    for row in rows:
        order.setdefault(row["card_id"], []).append(paid[row["tx_id"]]["place"])
    assert all(places == sorted(places) for places in order.values())
    arrived = [(now, now - (source.started * 1000 + paid[tx]["place"] * 1000 / RATE)) for tx, now in sink.seen]
    report(sorted(arrived), int(begin * 1000), records)

    again, others = MemorySink(), {name: MemorySink() for name in sides}
    engine(MemorySource(lines), models, again, others).run()
    replayed = {row["tx_id"]: row for row in again.rows}
    assert {tx: row["model_version"] for tx, row in replayed.items()} == {r["tx_id"]: r["model_version"] for r in rows}
    for row in rows:
        assert row["score"] == pytest.approx(replayed[row["tx_id"]]["score"], abs=1e-6)


def report(times: list[tuple[int, float]], begin: int, records: list[Any]) -> None:
    """Print the latency around the changes; nothing is asserted, since machines are noisy."""
    starts = [now for now, _ in times]

    def p99(first: int, last: int) -> float:
        part = sorted(late for _, late in times[bisect.bisect(starts, first) : bisect.bisect(starts, last)])
        return part[len(part) * 99 // 100] if part else 0.0

    print()
    for record in records[1:]:
        at = record.effective
        print(
            f"{record.action} at {(at - begin) / 1000:.1f} s: p99 {p99(at - 4_000, at):.0f} ms before, "
            f"{p99(at, at + 4_000):.0f} ms after"
        )
