"""Contributions against the models that scikit-learn, XGBoost and LightGBM trained, and by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, save

from streamml.errors import ModelError
from streamml.models import LoadedModel, open_model
from streamml.models.attribution import Attribution, attribute

NAMES = ["a", "b", "c", "d"]
RNG = np.random.default_rng(4)
X = RNG.normal(0, 2, (400, 4)).astype(np.float32)
LINE = X @ np.array([1.0, -2.0, 0.0, 0.5]) + 0.3
CURVE = np.sin(X[:, 0]) + X[:, 1] * (X[:, 2] > 0)
Y = (RNG.normal(0, 0.1, 400) + CURVE > 0.5).astype(int)
ROWS = RNG.normal(0, 2, (50, 4)).astype(np.float32)

Raw = Callable[[np.ndarray], np.ndarray]


def columns(x: np.ndarray) -> list[list[float]]:
    return [column.tolist() for column in x.T]


def converted(estimator: Any, path: Path) -> LoadedModel:
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import FloatTensorType

    classifies = hasattr(estimator, "predict_proba")
    options = {id(estimator): {"zipmap": False}} if classifies else None
    made = skl2onnx.convert_sklearn(
        estimator,
        initial_types=[("x", FloatTensorType([None, 4]))],
        options=options,
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    save(made, path)
    return open_model(path, NAMES)


def linear_regression() -> tuple[Any, Raw]:
    model = pytest.importorskip("sklearn.linear_model").LinearRegression().fit(X, LINE)
    return model, model.predict


def scaled_logistic_regression() -> tuple[Any, Raw]:
    linear = pytest.importorskip("sklearn.linear_model").LogisticRegression()
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), linear).fit(X, Y)
    return model, model.decision_function


def boosted_regression() -> tuple[Any, Raw]:
    model = pytest.importorskip("sklearn.ensemble").GradientBoostingRegressor(n_estimators=20, random_state=1)
    model.fit(X, CURVE)
    return model, model.predict


def boosted_classes() -> tuple[Any, Raw]:
    model = pytest.importorskip("sklearn.ensemble").GradientBoostingClassifier(n_estimators=20, random_state=1)
    model.fit(X, Y)
    return model, model.decision_function


def forest() -> tuple[Any, Raw]:
    model = pytest.importorskip("sklearn.ensemble").RandomForestClassifier(n_estimators=10, max_depth=5, random_state=1)
    model.fit(X, Y)
    return model, lambda x: model.predict_proba(x)[:, 1]


@pytest.mark.parametrize(
    "train", [linear_regression, scaled_logistic_regression, boosted_regression, boosted_classes, forest]
)
def test_contributions_add_up_to_the_raw_score_less_the_base(
    train: Callable[[], tuple[Any, Raw]], tmp_path: Path
) -> None:
    estimator, raw = train()
    model = converted(estimator, tmp_path / "model.onnx")
    attribution = Attribution(model, columns(X))
    assert attribution.base == pytest.approx(float(np.mean(raw(X))), abs=1e-5)
    found = attribution.contributions(columns(ROWS))
    assert [sum(row.values()) + attribution.base for row in found] == pytest.approx(raw(ROWS).tolist(), abs=1e-4)
    assert all(list(row) == NAMES for row in found)
    assert found == attribute(model, columns(ROWS), columns(X))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_boosting_libraries_add_up_too(library: str, tmp_path: Path) -> None:
    module, tools = pytest.importorskip(library), pytest.importorskip("onnxmltools")
    from onnxmltools.convert.common.data_types import FloatTensorType

    kind = module.XGBRegressor if library == "xgboost" else module.LGBMRegressor
    quiet = {} if library == "xgboost" else {"verbose": -1}
    trained = kind(n_estimators=15, max_depth=4, n_jobs=1, **quiet).fit(X, CURVE)
    convert = getattr(tools, f"convert_{library}")
    path = tmp_path / "model.onnx"
    save(convert(trained, initial_types=[("x", FloatTensorType([None, 4]))], target_opset=15), path)
    model = open_model(path, NAMES)
    attribution = Attribution(model, columns(X))
    raw = np.ravel(model.runtime.predict({"x": ROWS})[model.output_names[0]])
    sums = [sum(row.values()) + attribution.base for row in attribution.contributions(columns(ROWS))]
    assert sums == pytest.approx(raw.tolist(), abs=1e-4)
    assert sums == pytest.approx(np.ravel(trained.predict(ROWS)).tolist(), abs=1e-3)


def test_linear_contributions_are_weight_times_distance_from_the_mean(tmp_path: Path) -> None:
    estimator, _ = linear_regression()
    model = converted(estimator, tmp_path / "model.onnx")
    (found,) = attribute(model, [[1.0], [2.0], [3.0], [4.0]], columns(X))
    by_hand = estimator.coef_ * (np.array([1.0, 2.0, 3.0, 4.0]) - X.astype(float).mean(axis=0))
    assert list(found.values()) == pytest.approx(by_hand.tolist(), abs=1e-5)


def one_tree(path: Path, **more: Any) -> LoadedModel:
    """`a <= 0 ? 10 : (b <= 1 ? 20 : 40)`, where a missing b counts as small."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * 5,
        nodes_nodeids=[0, 1, 2, 3, 4],
        nodes_featureids=[0, 0, 1, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.0, 0.0, 1.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 3, 0, 0],
        nodes_falsenodeids=[2, 0, 4, 0, 0],
        nodes_missing_value_tracks_true=[0, 0, 1, 0, 0],
        target_treeids=[0, 0, 0],
        target_nodeids=[1, 3, 4],
        target_ids=[0, 0, 0],
        target_weights=[10.0, 20.0, 40.0],
        n_targets=1,
        **more,
    )
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", 2), ("y", 1))]
    graph = helper.make_graph([node], "tree", *([info] for info in infos))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return open_model(path, ["a", "b"])


def test_one_tree_by_hand(tmp_path: Path) -> None:
    """Of four reference rows two go left; of the others one has a small b: (10 + 10 + 20 + 40) / 4 is 20, (20 + 40) / 2
    is 30."""
    model = one_tree(tmp_path / "tree.onnx")
    attribution = Attribution(model, [[-1, -2, 3, 4], [9, 9, 0, 5]])
    assert attribution.base == 20.0
    assert attribution.contributions([[-5, 5, 5], [0, 0, 2]]) == [
        {"a": -10.0, "b": 0.0},
        {"a": 10.0, "b": -10.0},
        {"a": 10.0, "b": 10.0},
    ]


def test_base_values_and_missing_values_count(tmp_path: Path) -> None:
    model = one_tree(tmp_path / "tree.onnx", base_values=[100.0])
    attribution = Attribution(model, [[-1, -2, 3, 4], [9, 9, 0, 5]])
    assert attribution.base == 120.0
    (found,) = attribution.contributions([[5], [None]])
    assert found == {"a": 10.0, "b": -10.0}
    raw = model.runtime.predict({"x": np.array([[5, np.nan]], np.float32)})["y"].item()
    assert raw == 120.0 + 10.0 - 10.0


def test_golden_rows_are_the_reference_of_a_bundle(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    """The fixture's model is a + 10 b + 100 c; golden rows are 0 to 11, three in a row: means of 4.5, 5.5, 6.5."""
    make_bundle(tmp_path / "linear")
    model = open_model(tmp_path / "linear")
    attribution = Attribution(model)
    assert attribution.base == pytest.approx(4.5 + 55 + 650)
    assert attribution.contributions([[5.5], [5.5], [5.5]]) == [{"a": 1.0, "b": 0.0, "c": -100.0}]


def test_models_of_other_kinds_are_refused(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    deep = write_onnx(
        [("MatMul", ["x", "w"], ["h"], {}), ("Relu", ["h"], ["r"], {}), ("MatMul", ["r", "v"], ["y"], {})],
        {"x": ("float32", ["n", 2])},
        {"y": ("float32", ["n", 1])},
        {"w": np.ones((2, 2), np.float32), "v": np.ones((2, 1), np.float32)},
    )
    model = open_model(deep, ["a", "b"])
    said = "one linear or tree ensemble node, got 2 in a graph of MatMul, Relu"
    with pytest.raises(ModelError, match=re.escape(said)):
        Attribution(model, [[1.0], [2.0]])
    tree = one_tree(tmp_path / "tree.onnx")
    with pytest.raises(ModelError, match="wanted reference rows"):
        Attribution(tree)
    with pytest.raises(ModelError, match="there is no target 3"):
        Attribution(tree, [[1.0], [2.0]], target=3)
