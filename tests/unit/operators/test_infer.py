"""`Infer`: versions by event time, canary, shadows, fallbacks; each event has one score or one rejection."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.contract import Context, KeyedOperator
from streamml.errors import ModelError, PlanError
from streamml.models import Bundle
from streamml.models.loaded import LoadedModel
from streamml.models.registry import Registry
from streamml.models.rollout import Guard, Split, sticky
from streamml.models.serving import Serving
from streamml.models.signature import TensorSpec
from streamml.operators import Breaker, Infer, LastValue
from streamml.records import Record
from streamml.testing import advance, checkpoint, crash, event
from streamml.testing import run as play

Roll = Callable[..., None]


class Same(KeyedOperator):
    """Gives the stage a key."""

    def on_event(self, event: Record, ctx: Context) -> None:
        ctx.emit(event)


def run(registry: Registry, script: list[Any], *, batch_size: int = 50, **options: Any) -> Any:
    infer = Infer("times@prod", inputs=["x"], outputs={"y": 0}, **options)
    return play([Same(), infer], script, batch_size=batch_size, models=(registry.place,))


def scored(result: Any) -> list[tuple[Any, ...]]:
    return [(e.key, e.timestamp, e.x, e.y, e.model_version) for e in result.main]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_version_in_force_at_the_events_time_scores_it_whatever_the_order(
    registry: Registry, push: Roll, roll: Roll, batch_size: int
) -> None:
    for version in (1, 2, 3):
        push(version, 10**version)
    roll("promote", 0, 1)
    roll("promote", 4_000, 2)
    roll("canary", 7_000, 2, splits=(Split(3, 30),))
    roll("promote", 9_000, 3)
    rnd = random.Random(batch_size)
    events = [(f"k{rnd.randrange(40)}", rnd.randrange(12_000), float(i % 50)) for i in range(400)]
    result = run(registry, [event(k, t=f"{t}ms", x=x) for k, t, x in events], batch_size=batch_size)

    def oracle(key: str, at: int) -> int:
        if at < 4_000:
            return 1
        if at < 7_000:
            return 2
        return 3 if at >= 9_000 or sticky("times", key) < 3_000 else 2

    base = result.main[0].timestamp - events[0][1]
    assert scored(result) == [
        (k, base + t, x, x * 10 ** oracle(k, base + t), f"times:{oracle(k, base + t)}") for k, t, x in events
    ]
    assert {e.model_version for e in result.main} == {"times:1", "times:2", "times:3"}
    assert all(e.id.endswith("/" + e.model_version) for e in result.main)


def test_a_row_that_a_canary_fails_on_is_scored_by_the_champion(registry: Registry, push: Roll, roll: Roll) -> None:
    push(1, 1.0)
    push(2, 2.0, fragile=True)
    roll("canary", 0, 1, splits=(Split(2, 100),))
    result = run(registry, [event("k", t="1s", x=x) for x in (3.0, 500.0, 4.0)])
    assert [(e.y, e.model_version) for e in result.main] == [(6.0, "times:2"), (500.0, "times:1"), (8.0, "times:2")]
    assert not result.side("rejected")


def test_a_canary_that_fails_is_rolled_back_by_the_job_and_the_history_says_why(
    registry: Registry, push: Roll, roll: Roll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamml.models.serving._REPLAY", 10**13)  # these events are of 1970
    monkeypatch.setitem(Serving.__init__.__kwdefaults__, "lead", 100_000)  # and come far faster than they happened
    push(1, 1.0)
    push(2, 1.0, fragile=True)
    roll("canary", 0, 1, splits=(Split(2, 50),), guard=Guard(errors=0.001, slowdown=None))
    rnd = random.Random(5)
    script = []
    for i in range(20_000):
        x = 500.0 if rnd.random() < 0.05 else 1.0
        script.append(event(f"k{rnd.randrange(500)}", t=f"{i * 10}ms", x=x))
    result = run(registry, script, batch_size=100)
    assert len(result.main) == 20_000
    assert [e.x for e in result.main] == [e.y for e in result.main]
    (news,) = result.side("rollout")
    assert (news["action"], news["versions"]) == ("rollback", [2])
    assert "rows failed" in news["why"]
    _, record = registry.records("times")
    assert (record.action, record.champion, record.splits, record.who) == ("rollback", 1, (), "script/times")
    by_canary = [e.timestamp for e in result.main if e.model_version == "times:2"]
    assert max(by_canary) < record.effective < result.main[-1].timestamp


def test_shadows_score_beside_and_change_nothing(registry: Registry, push: Roll, roll: Roll) -> None:
    push(1, 1.0)
    push(2, 1.01)
    push(3, 3.0, fragile=True)
    roll("shadow", 0, 1, shadows=(2, 3))
    result = run(registry, [event("a", t="1s", x=1.0), event("b", t="2s", x=500.0)])
    assert [(e.y, e.model_version) for e in result.main] == [(1.0, "times:1"), (500.0, "times:1")]
    said = [(s["key"], s["model_version"], s["scores"]["y"], s["champion_scores"], s["differs"]) for s in
            result.side("shadow")]  # fmt: skip
    assert said == [
        ("a", "times:2", pytest.approx(1.01), {"y": 1.0}, False),
        ("b", "times:2", pytest.approx(505.0), {"y": 500.0}, True),
        ("a", "times:3", 3.0, {"y": 1.0}, True),
        ("b", "times:3", None, {"y": 500.0}, True),
    ]
    assert "indices element out of data bounds" in result.side("shadow")[3]["error"]


def test_the_chain_of_fallbacks_is_gone_through_in_order_and_marked(registry: Registry, push: Roll, roll: Roll) -> None:
    push(1, 1.0, fragile=True)
    push(7, -1.0, name="small", fragile=True)
    roll("promote", 0, 1)
    rows = [("a", "1s", 5.0), ("a", "2s", 500.0), ("b", "3s", 600.0), ("a", "4s", None)]
    script = [event(key, t=t, x=x) for key, t, x in rows]
    result = run(registry, script, fallback=["small", LastValue("1m"), 0.5])
    assert [(e.y, e.model_version, e.degraded) for e in result.main] == [
        (5.0, "times:1", None),
        (5.0, "times:1", "error"),  # what the key had last
        (0.5, "constant", "error"),
    ]
    (rejected,) = result.side("rejected")  # what the model can't take is no failure of the model
    assert "input x is missing" in rejected["reason"]
    result = run(registry, script[:3], fallback="small:7")
    assert [(e.x, e.y, e.degraded) for e in result.main] == [(5.0, 5.0, None)]
    assert [r["model_version"] for r in result.side("rejected")] == ["times:1", "times:1"]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_the_last_value_of_a_key_outlives_a_crash_and_ends_with_its_ttl(
    registry: Registry, push: Roll, roll: Roll, batch_size: int
) -> None:
    push(1, 1.0, fragile=True)
    script = [
        event("a", t="1s", x=5.0), event("b", t="1s", x=6.0), checkpoint(), event("a", t="2s", x=500.0), crash(),
        event("b", t="3s", x=500.0), event("b", t="4s", x=7.0), event("b", t="5s", x=500.0),
        advance("60s"), event("a", t="70s", x=500.0),
    ]  # fmt: skip
    result = run(registry, script, batch_size=batch_size, fallback=LastValue("10s"))
    assert [(e.key, e.y, e.degraded) for e in result.main] == [
        ("a", 5.0, None),
        ("b", 6.0, None),
        ("a", 5.0, "error"),
        ("b", 6.0, "error"),
        ("b", 7.0, None),
        ("b", 7.0, "error"),
    ]
    assert [r["key"] for r in result.side("rejected")] == ["a"]


def test_a_late_model_gives_way_to_the_fallback(
    registry: Registry, push: Roll, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(1, 1.0)
    gate = threading.Event()
    real = LoadedModel.predict

    def hang(self: LoadedModel, inputs: Any, rows: int) -> Any:
        if float(inputs["x"].max()) == 13.0:
            gate.wait(60)
        return real(self, inputs, rows)

    monkeypatch.setattr(LoadedModel, "predict", hang)
    script = [event("a", t="1s", x=1.0), event("a", t="2s", x=13.0), event("a", t="3s", x=2.0)]
    result = run(registry, script, batch_size=1, deadline="200ms", fallback=-1)
    gate.set()
    assert [(e.y, e.degraded) for e in result.main] == [(1.0, None), (-1, "deadline"), (2.0, None)]


def test_an_open_breaker_spares_the_model_and_closes_when_it_works_again(
    registry: Registry, push: Roll, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(1, 1.0)
    calls, down = [], [True]
    real = LoadedModel.predict

    def fail(self: LoadedModel, inputs: Any, rows: int) -> Any:
        calls.append(rows)
        if down[0]:
            msg = "down"
            raise ModelError(msg)
        return real(self, inputs, rows)

    monkeypatch.setattr(LoadedModel, "predict", fail)
    script = [event("a", t=f"{i}s", x=1.0) for i in range(30)]
    result = run(registry, script, batch_size=1, fallback=0, breaker=Breaker(count=5, pause="1h"))
    assert [e.degraded for e in result.main] == ["error"] * 5 + ["breaker"] * 25
    assert len(calls) == 5


def test_features_are_logged_with_their_hash(registry: Registry, push: Roll) -> None:
    from streamml.models.parity import feature_hash

    push(1, 1.0)
    result = run(registry, [event("a", t="1s", x=1.5), event("a", t="2s", x=None)], log_features=True)
    (logged,) = result.side("features")
    assert (logged["features"], logged["model_version"]) == ({"x": 1.5}, "times:1")
    assert logged["hash"] == feature_hash([1.5])


def test_a_runtime_of_ones_own_scores_as_well(tmp_path: Path) -> None:
    class Doubling:
        inputs = (TensorSpec("x", "float64", (None, 1)),)
        outputs = (TensorSpec("y", "float64", (None, 1)),)

        def load(self) -> None: ...
        def warm_up(self, rows: Any = ()) -> None: ...
        def close(self) -> None: ...
        def predict(self, inputs: Any) -> Any:
            return {"y": 2 * inputs["x"]}

    result = play([Infer(Doubling(), inputs=["x"], outputs={"y": 0})], [event("k", t="1s", x=4.0)])
    assert [(e.y, e.model_version) for e in result.main] == [(8.0, "Doubling:0")]


def test_what_moved_a_score_adds_up_to_it(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LinearRegression

    rows = np.array([[0, 0], [1, 0], [0, 1], [3, 3]], np.float32)
    fitted = LinearRegression().fit(rows, rows @ [2.0, -1.0] + 5)
    model = tmp_path / "plane.onnx"
    model.write_bytes(skl2onnx.to_onnx(fitted, rows[:1], target_opset=17).SerializeToString())
    Bundle.write(tmp_path / "plane", model, name="plane", version=1, features=["a", "b"], golden={"X": rows})
    infer = Infer(str(tmp_path / "plane"), outputs={"y": 0}, explain=True)
    result = play([infer], [event("k", t="1s", a=4.0, b=1.0), event("k", t="2s", a=None, b=1.0)])
    (said,) = result.side("attribution")
    assert said["base"] == pytest.approx(6.0)  # the mean of 5, 7, 4 and 8
    assert said["contributions"] == pytest.approx({"a": 2 * (4 - 1), "b": -1 * (1 - 1)}, abs=1e-5)
    assert result.main[0].y == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outputs": {}}, "outputs is empty"),
        ({"deadline": 0}, "leaves no time"),
        ({"fallback": [object()]}, "fallback"),
        ({"fallback": {"other": 1}}, "fallback"),
        ({"fallback": [LastValue(), LastValue()]}, "LastValue once"),
        ({"outputs": {"a": 0, "b": 0}, "fallback": 0.5}, "a value for each of a, b"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Infer("times", **options)
