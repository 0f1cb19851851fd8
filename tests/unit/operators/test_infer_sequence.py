"""`InferSequence`: a GRU against NumPy and against onnxruntime called by hand, cut, restored and disturbed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.errors import PlanError  # noqa: E402
from streamml.models import Bundle, Registry  # noqa: E402
from streamml.operators import InferSequence  # noqa: E402
from streamml.operators.hidden_state import Hidden, from_wire, to_wire  # noqa: E402
from streamml.testing import advance, checkpoint, crash, event, restart, run  # noqa: E402

WIDE = 5
RNG = np.random.default_rng(3)
W, R = (RNG.normal(0, 0.7, (1, 3 * WIDE, n)).astype(np.float32) for n in (2, WIDE))
B = RNG.normal(0, 0.3, (1, 6 * WIDE)).astype(np.float32)
V = RNG.normal(0, 1, (WIDE, 1)).astype(np.float32)


def write_gru(path: Path, *, batch: Any = "n", scale: float = 1.0) -> str:
    """Write a GRU of two inputs a, b and five hidden values, batch first; `y` is a weighted sum of the hidden ones."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["x1"]),
        helper.make_node("Unsqueeze", ["h", "zero"], ["h1"]),
        helper.make_node("GRU", ["x1", "w", "r", "b", "", "h1"], ["", "h2"], hidden_size=WIDE),
        helper.make_node("Squeeze", ["h2", "zero"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "v"], ["y"]),
        helper.make_node("Log", ["x"], ["log_x"]),  # no finite number where x is not above 0
    ]
    constants = {"w": W, "r": R, "b": B, "v": V * np.float32(scale), "zero": np.array([0], np.int64)}
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    f = TensorProto.FLOAT
    given = [helper.make_tensor_value_info(n, f, [batch, w]) for n, w in (("x", 2), ("h", WIDE))]
    found = [helper.make_tensor_value_info(n, f, [batch, w]) for n, w in (("y", 1), ("h_next", WIDE), ("log_x", 2))]
    graph = helper.make_graph(nodes, "gru", given, found, kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.fixture
def gru(tmp_path: Path) -> str:
    return write_gru(tmp_path / "gru.onnx")


def sequence(gru: str, **options: Any) -> InferSequence:
    return InferSequence(gru, {"x": ["a", "b"]}, {"h": "h_next"}, {"y": "y"}, **{"ttl": "10s", **options})


def by_numpy(rows: Sequence[tuple[float, float]], h: np.ndarray | None = None) -> list[float]:
    """The equations of the GRU, in double precision."""
    h = np.zeros(WIDE) if h is None else h
    w, r, bias = W[0].astype(float), R[0].astype(float), B[0].astype(float)
    wz, wr, wh = np.split(w, 3)
    rz, rr, rh = np.split(r, 3)
    bias_w, bias_r = np.split(bias, 2)
    (bz, br, bh), (cz, cr, ch) = np.split(bias_w, 3), np.split(bias_r, 3)
    found = []
    for row in rows:
        x = np.array(row)
        z = 1 / (1 + np.exp(-(wz @ x + rz @ h + bz + cz)))
        reset = 1 / (1 + np.exp(-(wr @ x + rr @ h + br + cr)))
        h = (1 - z) * np.tanh(wh @ x + rh @ (reset * h) + bh + ch) + z * h
        found.append(float(h @ V[:, 0]))
    return found


def by_hand(gru: str, rows: Sequence[tuple[float, float]]) -> list[float]:
    """The same file, called with onnxruntime alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(gru, options, providers=["CPUExecutionProvider"])
    h = np.zeros((1, WIDE), np.float32)
    found = []
    for row in rows:
        y, h = session.run(["y", "h_next"], {"x": np.array([row], np.float32), "h": h})
        found.append(y.item())
    return found


def stream(n: int, keys: int = 3, seed: int = 5) -> list[Any]:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.1, 2, (n, 2)).tolist()
    chosen = rng.integers(0, keys, n).tolist()
    return [event(f"k{k}", t=i * 100, a=a, b=b) for i, (k, (a, b)) in enumerate(zip(chosen, values, strict=True))]


def of_key(found: Any, key: str) -> list[float]:
    return [record.y for record in found.main if record.key == key]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_each_key_is_a_sequence_of_its_own(gru: str, size: int) -> None:
    """Equal to the bit to calls by hand, and to the equations but for rounding."""
    events = stream(60)
    found = run([sequence(gru)], events, batch_size=size)
    for key in ("k0", "k1", "k2"):
        rows = [(e.fields["a"], e.fields["b"]) for e in events if e.key == key]
        assert of_key(found, key) == by_hand(gru, rows)
        assert of_key(found, key) == pytest.approx(by_numpy(rows), abs=1e-5)
    assert [record.id for record in found.main] == [f"script/e{i}/gru:0" for i in range(60)]
    assert {record.model_version for record in found.main} == {"gru:0"}


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
@pytest.mark.parametrize("fault", [crash, restart])
def test_cut_anywhere_it_goes_on_to_the_bit(gru: str, fault: Callable[[], Any], store: str) -> None:
    events = stream(24)
    wanted = [(r.id, r.y) for r in run([sequence(gru)], events).main]
    for cut in range(1, 24, 1 if store == "memory" else 6):
        early = max(cut - 3, 0)
        script = [*events[:early], checkpoint(), *events[early:cut], fault(), *events[cut:]]
        found = run([sequence(gru)], script, batch_size=4, store=store)
        assert sorted((r.id, r.y) for r in found.main) == sorted(wanted)


def test_rows_of_different_keys_scored_together_agree_but_for_rounding(gru: str) -> None:
    events = stream(300, keys=40)
    alone = {r.id: r.y for r in run([sequence(gru)], events).main}
    found = run([sequence(gru, batch=True)], events, batch_size=100)
    assert {r.id: r.y for r in found.main} == pytest.approx(alone, abs=1e-5)
    assert [r.id for r in found.main] == [f"script/e{i}/gru:0" for i in range(300)]


@pytest.mark.parametrize("together", [False, True])
def test_a_promotion_starts_each_key_anew_and_no_key_goes_back(gru: str, tmp_path: Path, together: bool) -> None:
    golden = {"x": np.ones((2, 2), np.float32), "h": np.zeros((2, WIDE), np.float32)}
    registry = Registry(tmp_path / "models")
    for version in (1, 2):
        Bundle.write(
            tmp_path / "models" / "gru" / str(version), gru, name="gru", version=version, features=[], golden=golden
        )
    for number, effective in ((1, 0), (2, 10_000)):
        registry.append("gru", "prod", "promote", effective=effective, champion=number, who="", why="", at=0)
    times = [1_000, 2_000, 11_000, 9_000, 12_000]
    events = [event("k", t=t, a=1.0, b=0.5) for t in times]
    operators = [sequence("gru@prod", batch=together)]
    found = run(operators, events, models=(registry.place,))
    assert [r.model_version for r in found.main] == ["gru:1", "gru:1", "gru:2", "gru:2", "gru:2"]
    wanted = by_hand(gru, [(1.0, 0.5)] * 2) + by_hand(gru, [(1.0, 0.5)] * 3)
    assert [r.y for r in found.main] == pytest.approx(wanted, abs=1e-6 if together else 0)


def test_silence_of_the_ttl_starts_anew(gru: str) -> None:
    times = [0, 1_000, 10_999, 20_998, 30_998]
    events = [event("k", t=t, a=1.0, b=0.5) for t in times]
    found = [r.y for r in run([sequence(gru)], events).main]
    assert found == by_hand(gru, [(1.0, 0.5)] * 4) + by_hand(gru, [(1.0, 0.5)])


def test_a_late_event_of_a_key_that_is_past_its_ttl_starts_anew(gru: str) -> None:
    events = [event("k", t=0, a=1.0, b=0.5), advance("10s"), event("k", t=5_000, a=1.0, b=0.5)]
    found = [r.y for r in run([sequence(gru)], events).main]
    assert found == by_hand(gru, [(1.0, 0.5)]) * 2


def test_reset_field_starts_anew_with_its_event(gru: str) -> None:
    events = [event("k", t=i, a=1.0, b=0.5, begin=begin) for i, begin in enumerate([False, False, True, 0, None, 1])]
    found = [r.y for r in run([sequence(gru, reset="begin")], events).main]
    one = by_hand(gru, [(1.0, 0.5)] * 3)
    assert found == [one[0], one[1], one[0], one[1], one[2], one[0]]


def test_events_out_of_order_are_scored_as_they_come(gru: str) -> None:
    rows = [(1.0, 0.1), (1.0, 0.2), (1.0, 0.3)]
    events = [event("k", t=t, a=a, b=b) for t, (a, b) in zip((5_000, 1_000, 12_000), rows, strict=True)]
    assert [r.y for r in run([sequence(gru)], events).main] == by_hand(gru, rows)


@pytest.mark.parametrize("together", [False, True])
def test_events_out_of_order_can_be_late_instead(gru: str, together: bool) -> None:
    rows = [(1.0, 0.1), (1.0, 0.2), (1.0, 0.3)]
    events = [event("k", t=t, a=a, b=b) for t, (a, b) in zip((5_000, 1_000, 5_000), rows, strict=True)]
    found = run([sequence(gru, out_of_order="late", batch=together)], events)
    assert [r.y for r in found.main] == by_hand(gru, [rows[0], rows[2]])
    (late,) = found.side("late")
    assert (late["id"], late["late_by_ms"], late["newest"]) == ("script/e1", 4_000, 5_000)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "bad", [None, "1", float("nan"), [1.0, 2.0], 10**400], ids=["none", "text", "nan", "list", "huge"]
)
def test_a_row_that_does_not_fit_is_rejected_and_leaves_the_state_as_it_is(gru: str, bad: Any, together: bool) -> None:
    events = stream(12)
    wanted = [r.y for r in run([sequence(gru, batch=together)], events).main]
    poisoned = [*events[:6], event("k1", t=550, id="bad", a=bad, b=1.0), *events[6:]]
    found = run([sequence(gru, batch=together)], poisoned)
    assert [r.y for r in found.main] == pytest.approx(wanted, abs=1e-6 if together else 0)
    (record,) = found.side("rejected")
    assert record["id"] == "script/bad" and record["model_version"] == "gru:0"


@pytest.mark.parametrize("together", [False, True])
def test_a_row_whose_output_is_not_finite_is_rejected_alone(gru: str, together: bool) -> None:
    """The logarithm of the fifth row's input is none."""
    sick = InferSequence(gru, {"x": ["a", "b"]}, {"h": "h_next"}, {"y": "y", "log": "log_x"}, ttl="10s", batch=together)
    events = [event(f"k{i % 4}", t=i, a=1.0 if i != 4 else -1.0, b=1.0) for i in range(12)]
    found = run([sick], events)
    assert len(found.main) == 11 and all(r.log == [0.0, 0.0] for r in found.main)
    (record,) = found.side("rejected")
    assert record["id"] == "script/e4" and record["reason"] == "gru:0: output 'log_x' is not finite"
    assert of_key(found, "k0") == pytest.approx(by_hand(gru, [(1.0, 1.0)] * 2), abs=1e-6 if together else 0)


def test_another_version_of_the_model_starts_anew(tmp_path: Path) -> None:
    """State of version 1 means nothing to version 2, even where its shape is the same."""
    from streamml.models import Bundle

    for version, scale in ((1, 1.0), (2, 3.0)):
        model = write_gru(tmp_path / "made" / f"gru{version}.onnx", scale=scale)
        golden = {"x": np.ones((2, 2), np.float32), "h": np.zeros((2, WIDE), np.float32)}
        Bundle.write(
            tmp_path / "models/gru" / str(version), model, name="gru", version=version, features=[], golden=golden
        )
    hidden = Hidden(0, "gru:1", [np.ones((1, WIDE), np.float32)])
    one, two = (sequence(str(tmp_path / "models/gru" / str(v))) for v in (1, 2))
    events = [event("k", t=1, a=1.0, b=0.5), event("k", t=2, a=1.0, b=0.5)]
    assert [r.model_version for r in run([two], events).main] == ["gru:2", "gru:2"]
    first, second = run([one], events).main, run([two], events).main
    assert second[0].y == pytest.approx(3 * first[0].y)
    from streamml.contract import Context, Opening
    from streamml.records import Batch

    class Entry:
        def __init__(self) -> None:
            self.cells: list[Any] = [hidden]

    class Handle:
        slot = 0

    running = two.running({"hidden": Handle()})
    running.open(Opening())
    entry = Entry()
    batch = Batch(
        [{"a": 1.0, "b": 0.5}], times=[1], ids=["e"], watermarks=[0], watermark=0, keys=["k"], entries=[entry]
    )
    ctx = Context(running, None, None, lambda *_: pytest.fail("nothing is rejected"))
    assert running.on_batch(batch, ctx).column("y") == [second[0].y]
    assert entry.cells[0].version == "gru:2"
    running.close()


def test_state_may_start_with_other_values_than_zeros(gru: str) -> None:
    start = np.linspace(-0.5, 0.5, WIDE)
    events = [event("k", t=i, a=1.0, b=0.5) for i in range(3)]
    found = [r.y for r in run([sequence(gru, initial={"h": start.reshape(1, -1)})], events).main]
    assert found == pytest.approx(by_numpy([(1.0, 0.5)] * 3, start), abs=1e-5)
    ones = [r.y for r in run([sequence(gru, initial={"h": 1.0})], events).main]
    assert ones == pytest.approx(by_numpy([(1.0, 0.5)] * 3, np.ones(WIDE)), abs=1e-5)


@pytest.mark.parametrize(
    "tensor", [np.float32([[1.5, -0.0], [np.pi, 1e-40]]), np.int64([[1, -(2**62)]]), np.array(True)]
)
def test_stored_tensors_come_back_to_the_bit(tensor: Any) -> None:
    import msgspec

    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(Hidden(7, "m:1", [tensor]))))
    back = from_wire(wire)
    assert (back.time, back.version) == (7, "m:1")
    (read,) = back.tensors
    assert read.dtype == tensor.dtype and read.shape == tensor.shape and read.tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": {"z": "a"}}, "there is no input of the model 'z'"),
        ({"state": {"h": "hnext"}}, "there is no output of the model 'hnext'. Did you mean 'h_next'?"),
        ({"state": {"x": "log_x"}}, "input h: float32[?, 5] of the model gets no value"),
        ({"outputs": {"y": "why"}}, "there is no output of the model 'why'"),
        ({"initial": {"h": [1.0, 2.0]}}, "wanted an initial value that fits state h: float32[?, 5], got shape [2]"),
    ],
)
def test_what_the_model_does_not_have_is_refused_at_the_start(gru: str, options: dict[str, Any], said: str) -> None:
    wanted = {"inputs": {"x": ["a", "b"]}, "state": {"h": "h_next"}, "outputs": {"y": "y"}, **options}
    with pytest.raises(PlanError, match=re.escape(said)):
        run([InferSequence(gru, **wanted)], [event("k", t=0, a=1.0, b=1.0)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"state": {}}, "state=): wanted at least one"),
        ({"out_of_order": "drop"}, "wanted 'score' or 'late', got 'drop'"),
        ({"ttl": 0}, "ttl=)"),
        ({"initial": {"g": 1}}, "there is no state 'g'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        InferSequence("m.onnx", **{"inputs": {"x": "a"}, "state": {"h": "g"}, "outputs": {"y": "y"}, **options})


def test_a_model_of_one_row_can_not_be_batched(tmp_path: Path) -> None:
    one = write_gru(tmp_path / "one.onnx", batch=1)
    events = stream(10)
    assert len(run([sequence(one)], events).main) == 10
    with pytest.raises(PlanError, match="batch=True needs a batch dimension in state 'h'"):
        run([sequence(one, batch=True)], events)


@pytest.fixture(scope="session")
def silero() -> Path:
    """The voice activity detector that the package silero-vad ships, without its dependencies."""
    root = Path(__file__).parents[3] / ".cache/silero"
    found = root / "silero_vad/data/silero_vad.onnx"
    if not found.exists():
        uv = Path(sys.executable).with_name("uv")
        command = [uv, "pip", "install", "-q", "--no-deps", "--target", root, "silero-vad==6.2.3"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"silero-vad can't be fetched: {done.stderr.strip()[-200:]}")
    return found


@pytest.mark.slow
def test_a_real_streaming_model_cut_in_the_middle_of_a_sequence_goes_on_to_the_bit(silero: Path) -> None:
    """Two microphones, chunks of 32 ms with the 4 ms before them; equal to calls by hand and whatever is cut."""
    rng = np.random.default_rng(8)
    seconds = np.arange(16_000 * 2) / 16_000
    voice = sum(np.sin(2 * np.pi * f * seconds) / n for n, f in enumerate((140, 280, 420, 700, 1100), 1))
    voice *= 0.25 * (np.sin(2 * np.pi * 3 * seconds) > 0)
    chunks: list[tuple[str, list[float]]] = []
    for mic, loud in (("m1", 1.0), ("m2", 0.3)):
        signal = np.append(np.zeros(64), loud * voice + rng.normal(0, 0.01, len(voice))).astype(np.float32)
        chunks += [(mic, signal[at : at + 576].tolist()) for at in range(0, len(voice) - 512, 512)]
    half = len(chunks) // 2
    ordered = [chunks[i // 2 + (i % 2) * half] for i in range(2 * half)]
    events = [event(mic, t=i // 2 * 32, samples=samples) for i, (mic, samples) in enumerate(ordered)]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(silero), options, providers=["CPUExecutionProvider"])
    state = {mic: np.zeros((2, 1, 128), np.float32) for mic in ("m1", "m2")}
    wanted = []
    for mic, samples in ordered:
        given = {"input": np.array([samples], np.float32), "state": state[mic], "sr": np.array(16_000, np.int64)}
        output, state[mic] = session.run(["output", "stateN"], given)
        wanted.append(output.item())

    vad = InferSequence(
        str(silero),
        {"input": "samples"},
        {"state": "stateN"},
        {"speech": "output"},
        constants={"sr": 16_000},
        initial={"state": np.zeros((2, 1, 128))},
        ttl="30s",
    )
    assert [r.speech for r in run([vad], events).main] == wanted
    assert max(wanted) > 0.2 > min(wanted), "it hears something now and then"
    for cut in range(3, len(events), 20):
        script = [*events[: cut - 2], checkpoint(), *events[cut - 2 : cut], crash(), *events[cut:]]
        found = run([vad], script, batch_size=5, store="rocksdb")
        assert {r.id: r.speech for r in found.main} == {f"script/e{i}/silero_vad:0": y for i, y in enumerate(wanted)}
