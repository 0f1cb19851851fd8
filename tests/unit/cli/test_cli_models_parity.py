"""`streamml models parity`: what a job logged holds against its code, and does not when either was changed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.models import Bundle, Guard, Registry, Split, rolling  # noqa: E402

JOB = '''\
"""Score payments."""

import streamml as sml
from streamml.operators import Features, Infer, count, mean, trailing


class Payment(sml.Event, id="id", key="card", time="ts"):
    id: str
    card: str
    ts: int
    amount: float


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    window = trailing("10s", tile="1s")
    return (
        sml.Pipeline("pay", schema=Payment, out_of_orderness="1s")
        .key_by("card")
        .then(Features(window=window, fields={"n": count(), "mean": mean("amount")}))
        .then(Infer("fraud@prod", inputs=["amount", "n", "mean"], outputs={"score": 0}, log_features=True))
        .select("id", "score", "model_version")
    )
'''


@pytest.fixture
def registry(home: Path) -> Registry:
    """Two versions of `fraud`, the first in force."""
    registry = Registry(home / "models")
    for version in (1, 2):
        weights = numpy_helper.from_array(np.array([[1], [0.1], [version]], np.float32), "w")
        infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w])] for n, w in (("x", 3), ("s", 1))]
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["s"])], "m", *infos, [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, home / "model.onnx")
        golden = {"x": np.ones((2, 3), np.float32)}
        features = ["amount", "n", "mean"]
        folder = home / f"bundle{version}"
        Bundle.write(folder, home / "model.onnx", name="fraud", version=1, features=features, golden=golden)
        rolling.push(registry, "fraud", folder)
    return registry


@pytest.fixture
def logged(cli: Any, home: Path, registry: Registry) -> Path:
    """The log of a run on 400 payments, in `out.features.jsonl`; the events are in `events.jsonl`."""
    (home / "job.py").write_text(JOB)
    chance, start = random.Random(3), int(time.time() * 1000) - 60_000  # a guard acts on what is live
    start -= start % 1_000
    events = [
        {"id": f"e{i}", "card": f"c{chance.randrange(7)}", "ts": start + i * 90, "amount": chance.random()}
        for i in range(400)
    ]
    (home / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    done = cli("run", "job.py", "--source", "events.jsonl", "--sink", "out.jsonl", "--batch-size", "37")
    assert done.code == 0, done.err
    return home / "out.features.jsonl"


@pytest.fixture
def parity(cli: Any, logged: Path) -> Callable[..., Any]:
    def call(*options: object, log: object = logged, events: object = "events.jsonl") -> Any:
        return cli("models", "parity", "job.py", "--log", log, "--events", events, "--json", *options)

    return call


def test_a_job_that_was_not_tampered_with_is_equal_row_by_row(parity: Callable[..., Any], cli: Any) -> None:
    done = parity()
    assert done.code == 0
    assert (done.json["holds"], done.json["equal"], done.json["unlogged"]) == (True, 400, 0)
    text = cli("models", "parity", "job.py", "--log", "out.features.jsonl", "--events", "events.jsonl").out
    assert text.splitlines()[:2] == ["equal      400", "different  0"]


def test_a_job_whose_features_are_computed_otherwise_now_is_found(parity: Callable[..., Any], home: Path) -> None:
    (home / "job.py").write_text(JOB.replace('trailing("10s"', 'trailing("9s"'))
    done = parity()
    assert done.code == 5 and "features differ" in done.err
    log = [json.loads(line) for line in (home / "out.features.jsonl").read_text().splitlines()]
    assert set(done.json["features"]) == {"n", "mean"}
    assert done.json["equal"] + done.json["different"] == len(log)
    assert 0 < done.json["different"] == done.json["features"]["n"]["rows"]


def test_a_tampered_log_is_found_by_row_and_feature(parity: Callable[..., Any], home: Path, logged: Path) -> None:
    rows = [json.loads(line) for line in logged.read_text().splitlines()]
    rows[17]["features"]["amount"] += 0.25
    rows[30]["hash"] = rows[31]["hash"]
    (home / "tampered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = parity(log=home / "tampered.jsonl")
    assert (done.code, done.json["equal"], done.json["different"]) == (5, 398, 2)
    gaps = done.json["features"]
    assert (gaps["amount"]["rows"], round(gaps["amount"]["largest"], 9)) == (1, 0.25)
    assert gaps["amount"]["example"][0] == "pay/e17"
    assert gaps["(order or type)"]["example"][0] == "pay/e30"
    assert parity("--tolerance", "0.3", log=home / "tampered.jsonl").code == 0


def test_rows_that_can_not_be_computed_again_are_missing(parity: Callable[..., Any], home: Path) -> None:
    lines = (home / "events.jsonl").read_text().splitlines()
    (home / "part.jsonl").write_text("\n".join(lines[:390]) + "\n")
    done = parity(events="part.jsonl")
    assert (done.code, done.json["equal"], done.json["missing"]) == (5, 390, 10)
    assert done.json["missing_ids"][0] == "pay/e390" and "logged rows were not computed" in done.err


def test_events_before_the_log_began_do_no_harm(parity: Callable[..., Any], home: Path, logged: Path) -> None:
    (home / "end.jsonl").write_text("\n".join(logged.read_text().splitlines()[300:]) + "\n")
    done = parity(log=home / "end.jsonl")
    assert (done.code, done.json["equal"], done.json["unlogged"]) == (0, 100, 300)


def test_it_writes_nothing_into_the_registry(
    parity: Callable[..., Any], registry: Registry, logged: Path, cli: Any
) -> None:
    """A canary whose guard it crosses at once is rolled back by a job, but not by this."""
    guard = Guard(errors=None, slowdown=None, disagreement=0.0001, tolerance=1e-6, false_alarms=0.5)
    registry.append("fraud", "prod", "canary", effective=0, champion=1, splits=[Split(2, 50)], guard=guard,
                    who="me", why="", at=0)  # fmt: skip
    before = registry.records("fraud")
    assert parity().json["equal"] == 400
    assert registry.records("fraud") == before
    cli("run", "job.py", "--source", "events.jsonl", "--sink", "again.jsonl", "--batch-size", "20")
    assert [record.action for record in registry.records("fraud")[len(before) :]] == ["rollback"]


def test_a_job_that_logs_no_features_says_how_to(cli: Any, home: Path, logged: Path) -> None:
    (home / "job.py").write_text(JOB.replace(", log_features=True", ""))
    done = cli("models", "parity", "job.py", "--log", logged, "--events", "events.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "build it with Infer(..., log_features=True)" in done.err
