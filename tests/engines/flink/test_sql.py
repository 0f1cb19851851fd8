"""Models in Flink SQL: scores are those of the model called directly, and bad rows harm nobody."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError, PlanError
from streamml.models import Bundle

pd = pytest.importorskip("pandas")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("pyflink")

pytestmark = pytest.mark.flink

ROOT = Path(__file__).parents[3]
FRAUD = ROOT / "jobs" / "bundles" / "fraud"


class Counting:
    """A metric group of Flink that remembers."""

    def __init__(self) -> None:
        self.counted: defaultdict[str, int] = defaultdict(int)
        self.name = ""

    def get_metric_group(self) -> Counting:
        return self

    def add_group(self, key: str, value: str) -> Counting:
        assert (key, value) == ("model", "linear:1")
        return self

    def counter(self, name: str) -> Any:
        counted = self.counted

        class Counter:
            def inc(self, n: int = 1) -> None:
                counted[name] += n

        return Counter()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """`score = a + 10 b`, and `parts = [a, 10 b]`."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axes"], ["score"], keepdims=1),
    ]
    constants = {"w": np.array([1, 10], np.float32), "axes": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [
            helper.make_tensor_value_info("score", kind, ["n", 1]),
            helper.make_tensor_value_info("parts", kind, ["n", 2]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    golden = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    return Bundle.write(tmp_path / "linear", path, name="linear", version=1, features=["a", "b"], golden=golden)


def opened(bundle: Bundle, outputs: dict[str, str], **options: Any) -> tuple[Any, Counting]:
    from streamml.flink.sql_function import ModelFunction

    function = ModelFunction(str(bundle.path), {"a": "float32", "b": "float32"}, outputs, **options)
    group = Counting()
    function.open(group)
    return function, group


def test_null_and_bad_rows_get_null_and_are_counted_and_the_others_are_scored(bundle: Bundle) -> None:
    function, group = opened(bundle, {"score": "score"}, row=False, missing=False)
    a = pd.Series([1.0, None, 3.0, 1e300, 5.0])
    b = pd.Series([1, 2, 3, 4, 5])
    found = function.eval(a, b)
    assert found.tolist() == [11.0, None, 33.0, None, 55.0]
    assert group.counted == {"streamml_model_scored_total": 3, "streamml_model_errors_total": 2}
    assert function.eval(pd.Series(["x"]), pd.Series([1])).tolist() == [None]
    assert function.eval(pd.Series([], dtype=float), pd.Series([], dtype=float)).tolist() == []
    function.close()


def test_constants_are_arguments_too_and_a_row_has_all_outputs(bundle: Bundle) -> None:
    function, _ = opened(bundle, {"p": "score", "parts": "parts"}, row=True, missing=False)
    found = function.eval(pd.Series([1.0, None]), 2)
    assert found.to_dict("records") == [{"p": 21.0, "parts": [1.0, 20.0]}, {"p": None, "parts": None}]
    with pytest.raises(PlanError, match=r"wanted 2 arguments \(a, b\), got 1"):
        function.eval(pd.Series([1.0]))


def test_a_null_is_nan_for_a_model_that_takes_missing_values(bundle: Bundle) -> None:
    function, group = opened(bundle, {"score": "score"}, row=False, missing=True)
    assert function.eval(pd.Series([1.0, None]), pd.Series([1.0, 1.0])).tolist() == [11.0, None]
    assert group.counted["streamml_model_errors_total"] == 1  # this model answers NaN, which is no score


class Environment:
    """What `register` asks of a table environment."""

    def __init__(self) -> None:
        self.archives: list[tuple[str, str]] = []
        self.functions: dict[str, Any] = {}

    def add_python_archive(self, path: str, target: str) -> None:
        self.archives.append((path, target))

    def create_temporary_function(self, name: str, function: Any) -> None:
        self.functions[name] = function


def test_what_cannot_be_a_function_is_refused_when_it_is_registered(bundle: Bundle, tmp_path: Path) -> None:
    from streamml.flink.sql import register

    t_env: Any = Environment()
    with pytest.raises(PlanError, match="there is no output of the model 'scores'"):
        register(t_env, "f", str(bundle.path), outputs=["scores"])
    with pytest.raises(PlanError, match="wanted a list of outputs"):
        register(t_env, "f", str(bundle.path), outputs=[])
    with pytest.raises(ModelError, match=r"bare \.onnx file"):
        register(t_env, "f", str(tmp_path / "linear.onnx"))
    with pytest.raises(ModelError, match="there is no model 'fraudd'"):
        register(t_env, "f", "fraudd@prod", models=[FRAUD.parent])
    assert (t_env.archives, t_env.functions) == ([], {})
    register(t_env, "f", str(bundle.path), outputs={"p": 0, "parts": "parts"})
    ((archive, folder),) = t_env.archives
    assert Path(archive).is_file()
    assert folder.startswith("streamml-linear-")
    assert list(t_env.functions) == ["f"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scores_of_a_sql_query_on_a_cluster_are_those_of_the_model(
    session_cluster: Any, flink: None, tmp_path: Path
) -> None:
    from streamml.flink.cluster import flink_home

    rows = [
        {"tx_id": f"t{n}", "card_id": f"c{n % 7}", "amount": None if n % 7 == 3 else 1.5 * (n % 11), "ts": 400 * n}
        for n in range(600)
    ]
    path = tmp_path / "payments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    program = ROOT / "examples" / "flink_sql_scores.py"
    done = subprocess.run(
        [flink_home() / "bin" / "flink", "run", "-py", program, path],
        env={**os.environ, "FLINK_CONF_DIR": str(session_cluster.folder / "conf")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    windows: defaultdict[tuple[str, int], list[Any]] = defaultdict(list)
    for row in rows:
        windows[str(row["card_id"]), int(row["ts"]) // 60_000].append(row["amount"])  # type: ignore[call-overload]
    model = ort.InferenceSession(FRAUD / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = []
    for (card, minute), amounts in sorted(windows.items()):
        score = None
        if None not in amounts:
            n, spent, most = len(amounts), sum(amounts), max(amounts)
            features = np.array([[most, n, spent, spent / n, most, n, 0.0]], np.float32)
            score = float(model.run(["score"], {"features": features})[0][0][0])
        wanted.append((card, minute, len(amounts), score))
    assert len(found) == len(wanted) == 28
    found.sort(key=lambda row: (row["card_id"], row["window_end"]))
    for row, (card, _, n, score) in zip(found, wanted, strict=True):
        assert (row["card_id"], row["n"]) == (card, n)
        assert row["score"] == (score if score is None else pytest.approx(score, rel=1e-5))
    assert sum(score is None for *_, score in wanted) == 4
