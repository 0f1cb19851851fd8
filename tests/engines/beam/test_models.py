"""Our bundles in Beam's `RunInference`, and Beam's handlers as our model runtime."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models import Bundle

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
beam = pytest.importorskip("apache_beam")
inference = pytest.importorskip("apache_beam.ml.inference.base")

from streamml.beam import HandlerModel, bundle_handler  # noqa: E402

Play = Callable[..., dict[str, list[Any]]]
ROWS = [{"a": float(n), "b": n % 3, "c": 0.5 * n} for n in range(40)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """`score = a + 10 b + 100 c`, so that the order of features shows."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.array([[1], [10], [100]], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [weights],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    golden = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    folder = tmp_path / "models" / "linear"
    Bundle.write(folder, path, name="linear", version=1, features=["a", "b", "c"], golden=golden)
    return folder


def score(row: dict[str, float]) -> float:
    return row["a"] + 10 * row["b"] + 100 * row["c"]


def test_a_bundle_scores_in_run_inference_what_a_sum_by_hand_gives(bundle: Path, play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        scored = pipeline | beam.Create(ROWS) | inference.RunInference(bundle_handler(bundle, max_batch_size=7))
        return {"scored": scored}

    found = play(build)["scored"]
    assert len(found) == len(ROWS)
    for made in found:
        assert made.inference["score"] == pytest.approx(score(made.example))
        assert made.model_id == "linear:1"


def test_a_missing_feature_and_a_changed_bundle_are_named(bundle: Path) -> None:
    handler = bundle_handler(bundle)
    model = handler.load_model()
    with pytest.raises(ModelError, match="'c'"):
        list(handler.run_inference([ROWS[0], {"a": 1, "b": 2}], model))
    (bundle / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ModelError, match="changed"):
        handler.load_model()


def test_a_beam_handler_is_a_model_runtime(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("apache_beam.ml.inference.sklearn_inference")
    linear = pytest.importorskip("sklearn.linear_model")
    matrix = np.array([[row["a"], row["b"], row["c"]] for row in ROWS])
    fitted = linear.LinearRegression().fit(matrix, [score(row) for row in ROWS])
    path = tmp_path / "linear.pickle"
    path.write_bytes(pickle.dumps(fitted))

    model = HandlerModel(sklearn.SklearnModelHandlerNumpy(str(path)), width=3, dtype="float64")
    with pytest.raises(ModelError, match="load"):
        model.predict({"input": matrix})
    model.load()
    model.warm_up()
    found = model.predict({"input": matrix})
    assert found["output"] == pytest.approx(np.array([score(row) for row in ROWS]))
    assert model.outputs[0].dtype == "float64"
    with pytest.raises(ModelError, match="input"):
        model.predict({"x": matrix})
    model.close()
    model.close()


def test_a_handler_that_can_not_load_is_named(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("apache_beam.ml.inference.sklearn_inference")
    model = HandlerModel(sklearn.SklearnModelHandlerNumpy(str(tmp_path / "none.pickle")), width=3)
    with pytest.raises(ModelError, match="SklearnModelHandlerNumpy"):
        model.load()
