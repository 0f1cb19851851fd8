"""Every exported operator goes through `yield_checks` on the day it is exported; a new one needs `EXAMPLES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamml.operators
from streamml.contract import Operator
from streamml.drift import Profile
from streamml.operators import (
    Dedupe,
    DriftMonitor,
    Features,
    Filter,
    FlatMap,
    Infer,
    InferSequence,
    Map,
    Session,
    Window,
    all_time,
    count,
    distinct,
    ewma,
    last,
    maximum,
    mean,
    minimum,
    quantile,
    rate,
    session,
    since_last,
    sliding,
    total,
    trailing,
    tumbling,
    variance,
)
from streamml.testing import Capability, Case, Engine, RunOptions, advance, checkpoint, crash, event, rescale
from streamml.testing.checks import yield_checks
from streamml.testing.compare import compare
from streamml.testing.probes import Alarm, BatchAlarm, Judge, Remember, WallAlarm
from streamml.testing.reference import answer
from streamml.testing.script import Step

CHECKS = ("batches", "batch_equals_loop", "restore", "ttl", "order", "poison", "pickle", "example")

SCRIPT = [
    event("a", t="1s", n=1, x=1.5, words="a b"),
    event("b", t="2s", n=1, x=2, words="b"),
    event("a", t="2500ms", n=2, x=-3, words=""),
    event("a", t="1200ms", n=1, x=0, words="a a"),
    advance("2s"),
    event("a", t="1900ms", n=3, x=1e6, words="late"),
    event("b", t="4s", n=2, x=4.25, words="c"),
    event("a", t="3s", n=4, x=2, words="d e f"),
    advance("6s"),
    event("a", t="7s", n=1, x=1, words="g"),
    event("b", t="5s", n=1, x=1, words="h"),
    event("c", t="12s", n=1, x=1, words="i"),
    advance("14s"),
    event("a", t="15s", n=1, x=0.5, words="j"),
]
LONG = [event(f"k{i % 7}", t=i * 50, x=(i * 37 % 100) / 100) for i in range(300)]
LONG += [
    advance("10s"),
    *(event(f"k{i % 7}", t=15_000 + i * 50, x=(i * 37 % 200) / 100) for i in range(150)),
    advance("20s"),
]

MANY = {
    "rows": count(),
    "sum": total("x"),
    "mean": mean("x"),
    "variance": variance("x"),
    "least": minimum("x"),
    "most": maximum("x"),
    "last": last("x"),
    "since": since_last(),
    "ewma": ewma("x", half_life="3s"),
    "rate": rate(per="2s"),
    "distinct": distinct("n"),
    "median": quantile("x", 0.5),
}


def big(e: Any) -> bool:
    return e.n > 1


def doubled(e: Any) -> dict[str, Any]:
    return {"double": e.x * 2}


def split(e: Any) -> list[str]:
    return e.words.split()


def tiny_model(folder: Path) -> str:
    """Write a model of one input, 2 x + 1."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Mul", ["x", "two"], ["twice"]),
        onnx.helper.make_node("Add", ["twice", "one"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [onnx.helper.make_tensor_value_info("x", kind, [None, 1])],
        [onnx.helper.make_tensor_value_info("y", kind, [None, 1])],
        [onnx.helper.make_tensor("two", kind, [1], [2.0]), onnx.helper.make_tensor("one", kind, [1], [1.0])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def smoothing(folder: Path) -> str:
    """Write a model with state, `level' = 0.75 level + 0.25 x` for a batch of rows."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Mul", ["x", "quarter"], ["new"]),
        onnx.helper.make_node("Mul", ["level", "rest"], ["old"]),
        onnx.helper.make_node("Add", ["new", "old"], ["next"]),
        onnx.helper.make_node("Identity", ["next"], ["y"]),
    ]
    shaped = {name: onnx.helper.make_tensor_value_info(name, kind, ["n", 1]) for name in ("x", "level", "next", "y")}
    numbers = [onnx.helper.make_tensor(name, kind, [1], [value]) for name, value in (("quarter", 0.25), ("rest", 0.75))]
    graph = onnx.helper.make_graph(
        nodes, "smooth", [shaped["x"], shaped["level"]], [shaped["next"], shaped["y"]], numbers
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "smooth.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def smooth(folder: Path, **options: Any) -> InferSequence:
    return InferSequence(smoothing(folder), {"x": "x"}, {"level": "next"}, {"y": "y"}, **{"ttl": "3s", **options})


@dataclass(frozen=True)
class Example:
    """How to build an operator, what to feed it, and what it must reject (None: nothing)."""

    build: Callable[[Path], Operator]
    script: Sequence[Step] = tuple(SCRIPT)
    poison: dict[str, Any] | None = None


EXAMPLES: dict[type[Operator], dict[str, Example]] = {
    Dedupe: {
        "by field": Example(lambda _: Dedupe("n", ttl="4s"), poison={}),
        "by id": Example(lambda _: Dedupe(ttl="4s")),
    },
    DriftMonitor: {
        "one feature": Example(
            lambda _: DriftMonitor(
                Profile.fit({"x": [i / 1000 for i in range(1000)]}, bins=4), features=["x"], every="10s"
            ),
            LONG,
        ),
    },
    Features: {
        "trailing": Example(
            lambda _: Features(trailing("3s", tile="500ms"), MANY, allowed_lateness="1s"), poison={"x": "?", "n": 1}
        ),
        "tumbling": Example(lambda _: Features(tumbling("4s", tile="2s"), MANY), poison={"x": float("nan"), "n": 1}),
        "all time": Example(lambda _: Features(all_time(), MANY, allowed_lateness="3s"), poison={}),
    },
    Filter: {"a function": Example(lambda _: Filter(big), poison={})},
    FlatMap: {"a function": Example(lambda _: FlatMap(split), poison={})},
    Infer: {
        "bare model": Example(
            lambda folder: Infer(tiny_model(folder), inputs=["x"], outputs={"y": 0}), poison={"x": None}
        ),
    },
    InferSequence: {
        "as they come": Example(smooth, poison={"x": None}),
        "in order of time": Example(lambda folder: smooth(folder, out_of_order="late")),
        "reset, by batches": Example(lambda folder: smooth(folder, reset="words", batch=True), poison={"x": None}),
    },
    Map: {"a function": Example(lambda _: Map(doubled, adding=["double"]), poison={"x": None})},
    Session: {
        "many": Example(lambda _: Session("2s", MANY, allowed_lateness="1s"), poison={"x": float("inf"), "n": 1})
    },
    Window: {
        "tumbling": Example(lambda _: Window(tumbling("2s"), MANY), poison={"x": float("nan"), "n": 1}),
        "sliding": Example(
            lambda _: Window(sliding("4s", slide="1s"), MANY, allowed_lateness="2s", early="500ms"), poison={}
        ),
        "session": Example(
            lambda _: Window(session("2s"), MANY, allowed_lateness="2s", early="1s"), poison={"x": None, "n": 1}
        ),
    },
}
PROBES: dict[type[Operator], dict[str, Example]] = {
    Alarm: {"plain": Example(lambda _: Alarm(delay="2s"), poison={"poison": True})},
    BatchAlarm: {"plain": Example(lambda _: BatchAlarm(delay="2s"), poison={"poison": True})},
    Judge: {"plain": Example(lambda _: Judge(allowed_lateness="1s"))},
    Remember: {
        "ttl": Example(lambda _: Remember(ttl="3s"), poison={"n": 9, "poison": True}),
        "for ever": Example(lambda _: Remember(), poison={"n": 9, "poison": True, "clear": True}),
    },
    WallAlarm: {"plain": Example(lambda _: WallAlarm(delay="2s"))},
}
TRIALS = [
    pytest.param(example, check, id=f"{kind.__name__}, {name}, {check}")
    for table in (EXAMPLES, PROBES)
    for kind, examples in table.items()
    for name, example in examples.items()
    for check in CHECKS
]


def exported() -> list[type[Operator]]:
    found = [getattr(streamml.operators, name) for name in streamml.operators.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Operator)]


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_every_exported_operator_is_checked(kind: type[Operator]) -> None:
    where = f"add {kind.__name__} to EXAMPLES in tests/conformance/test_operators.py: how to build it, with a script"
    assert EXAMPLES.get(kind), f"streamml.operators exports {kind.__name__}, and no test builds it: {where}"


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_drift_monitor_gives_what_the_reference_gives(engine: Engine, batch_size: int, tmp_path: Path) -> None:
    example = EXAMPLES[DriftMonitor]["one feature"]
    case = Case("drift", [example.build(tmp_path)], example.script)
    expected = answer(case)
    assert [record["window_start"] for record in expected.sides["drift"]] == [10_000, 20_000]
    assert compare(engine.run(case, RunOptions(batch_size=batch_size)), expected) == []


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_a_model_scores_each_row_and_rejects_those_that_it_can_not_take(
    engine: Engine, batch_size: int, tmp_path: Path
) -> None:
    script = [event("k", t=n, x=x) for n, x in enumerate([1.0, None, 2, "?", -3.5])]
    case = Case("infer", [Infer(tiny_model(tmp_path), inputs=["x"], outputs={"y": 0})], script)
    scored = {0: 3.0, 2: 5.0, 4: -6.0}
    result = engine.run(case, RunOptions(batch_size=batch_size))
    assert {record.id.split("/")[1]: record.y for record in result.main} == {f"e{n}": y for n, y in scored.items()}
    assert [record["id"] for record in result.side("rejected")] == ["script/e1", "script/e3"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("batch_size", [3, 1000])
def test_a_sequence_model_goes_on_where_it_was_cut(engine: Engine, batch_size: int, tmp_path: Path) -> None:
    """Cut twice, and where the engine can, with other numbers of workers; single precision by hand."""
    events = [event(f"k{n % 5}", t=n, x=float(n * 7 % 11)) for n in range(40)]
    cuts = [rescale(2), rescale(1)] if Capability.RESCALE in engine.capabilities else [crash(), crash()]
    script = [*events[:13], checkpoint(), cuts[0], *events[13:28], checkpoint(), cuts[1], *events[28:]]
    result = engine.run(Case("smooth", [smooth(tmp_path)], script), RunOptions(batch_size=batch_size))
    for key in range(5):
        level, wanted = np.float32(0), []
        for n in range(key, 40, 5):
            level = np.float32(n * 7 % 11) * np.float32(0.25) + level * np.float32(0.75)
            wanted.append(float(level))
        assert [record.y for record in result.main if record.key == f"k{key}"] == wanted


@pytest.mark.parametrize(("example", "check"), TRIALS)
def test_an_operator_keeps_the_contract(engine: Engine, tmp_path: Path, example: Example, check: str) -> None:
    checks = dict(yield_checks(example.build(tmp_path), example.script, poison=example.poison, engine=engine))
    assert set(checks) <= set(CHECKS), "add the new check to CHECKS"
    if check not in checks:
        pytest.skip("does not apply")
    checks[check]()
