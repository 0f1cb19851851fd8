"""Estimators as ONNX graphs, and bundles of them, against the estimators' own answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, open_model, package, to_onnx

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

F = ("a", "b", "c", "d")
# Values that float32 holds, as most features are (counts, cents), so that rounding can't move a row over a split.
X = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32).astype(np.float64)
TWO = (X[:, 0] + X[:, 1] ** 2 > 1).astype(int)
THREE = (X[:, 0] > 0).astype(int) + TWO
AMOUNT = X[:, 0] * 3 + X[:, 2] ** 2


def served(estimator: Any, folder: Path, rows: np.ndarray = X, **options: Any) -> dict[str, list[Any]]:
    """What a bundle of the estimator answers for the rows."""
    package(estimator, folder, name="m", version=1, features=F, golden={"rows": X[:100]}, **options)
    with open_model(folder) as model:
        assert model.features == F
        return model.score([column.tolist() for column in rows.T], len(rows))


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=20),
    ],
    ids=["pipeline", "boosting"],
)
def test_a_classifier_of_two_scores_the_probability_of_the_second(estimator: Any, tmp_path: Path) -> None:
    found = served(estimator.fit(X, TWO), tmp_path / "b")
    assert list(found) == ["score", "probabilities", "label"]
    expected = estimator.predict_proba(X)
    np.testing.assert_allclose(found["score"], expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found["label"] == estimator.predict(X).tolist()


def test_a_classifier_of_three_gives_probabilities_and_labels_of_text(tmp_path: Path) -> None:
    names = np.array(["low", "mid", "top"])[THREE]
    estimator = LogisticRegression().fit(X, names)
    found = served(estimator, tmp_path / "b")
    assert list(found) == ["probabilities", "label"]
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(X), atol=1e-5)
    assert found["label"] == estimator.predict(X).tolist()


@pytest.mark.parametrize("labels", [TWO == 1, TWO.astype(float), TWO * 7 - 3], ids=["bool", "float", "int"])
def test_labels_that_are_numbers_or_truth_values_are_the_same_numbers(labels: np.ndarray, tmp_path: Path) -> None:
    estimator = LogisticRegression().fit(X, labels)
    found = served(estimator, tmp_path / "b")
    assert found["label"] == estimator.predict(X).tolist()


@pytest.mark.parametrize("estimator", [LinearRegression(), RandomForestRegressor(10, random_state=0)])
def test_a_regressor_scores_what_it_predicts(estimator: Any, tmp_path: Path) -> None:
    found = served(estimator.fit(X, AMOUNT), tmp_path / "b")
    np.testing.assert_allclose(found["score"], estimator.predict(X), rtol=1e-5, atol=1e-5)


def test_an_outlier_detector_scores_its_decision_function(tmp_path: Path) -> None:
    estimator = IsolationForest(n_estimators=20, random_state=0).fit(X)
    found = served(estimator, tmp_path / "b")
    np.testing.assert_allclose(found["score"], estimator.decision_function(X), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xgboost", "lightgbm"])
def test_boosted_trees_of_other_packages_score_as_they_do(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxmltools")
    module = pytest.importorskip(kind)
    classifier, regressor = (
        (module.XGBClassifier(n_estimators=20), module.XGBRegressor(n_estimators=20))
        if kind == "xgboost"
        else (module.LGBMClassifier(n_estimators=20, verbose=-1), module.LGBMRegressor(n_estimators=20, verbose=-1))
    )
    found = served(classifier.fit(X, TWO), tmp_path / "c", tolerance=1e-4)
    np.testing.assert_allclose(found["probabilities"], _quiet(classifier.predict_proba, X), atol=1e-4)
    assert next(iter(found)) == "score"
    found = served(regressor.fit(X, AMOUNT), tmp_path / "r", tolerance=1e-4)
    np.testing.assert_allclose(found["score"], _quiet(regressor.predict, X), rtol=1e-4, atol=1e-4)


def _quiet(call: Any, rows: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LightGBM made up names of columns, and misses them in the matrix
        return call(rows)


def test_columns_of_numbers_and_text_stay_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder

    random = np.random.default_rng(1)
    frame = pandas.DataFrame({"amount": X[:, 0], "country": random.choice(["de", "fr"], 400), "n": THREE})
    columns = make_column_transformer((StandardScaler(), ["amount", "n"]), (OneHotEncoder(), ["country"]))
    estimator = make_pipeline(columns, LogisticRegression()).fit(frame, TWO)
    golden = {name: frame[name].to_numpy()[:80] for name in frame}
    package(estimator, tmp_path / "b", name="m", version=1, features=list(frame), golden=golden)
    with open_model(tmp_path / "b") as model:
        assert [str(spec) for spec in model.inputs] == ["amount: float32[?, 1]", "country: str[?, 1]", "n: int64[?, 1]"]
        found = model.score([frame[name].tolist() for name in frame], 400)
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(frame), atol=1e-5)


def test_a_conversion_that_differs_is_refused_with_the_worst_row() -> None:
    """A split between two numbers that are one number in float32: the graph can't see what the estimator sees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    edge = 16_777_216.0  # from here on float32 has even numbers only
    rows = np.array([[edge - 1], [edge]] * 30 + [[edge + 1]] * 40)
    estimator = HistGradientBoostingRegressor(max_iter=1, learning_rate=1.0, min_samples_leaf=1)
    estimator.fit(rows, (rows[:, 0] > edge).astype(float))
    sample = np.array([[edge - 1], [edge + 1], [edge]])
    assert estimator.predict(sample).tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    text = (
        "converting HistGradientBoostingRegressor: 1 of 3 rows differ by more than 1e-05, the most in row 1 ({'big': "
    )
    values = ".*the estimator gives 1[.0-9]*, its conversion -?[.0-9e-]+;"
    with pytest.raises(ModelError, match=re.escape(text) + values):
        to_onnx(estimator, ["big"], sample)


@pytest.mark.parametrize(
    ("estimator", "features", "sample", "text"),
    [
        (LinearSVC().fit(X, TWO), F, X, "wanted a regressor, an outlier detector or a classifier with predict_proba"),
        (StandardScaler().fit(X), F, X, "wanted a regressor, an outlier detector or a classifier"),
        (LinearRegression(), F, X, "it can't be converted ("),
        (LinearRegression().fit(X, TWO), F[:3], X, "wanted a matrix of numbers with 3 columns (a, b, c), got float64"),
        (LinearRegression().fit(X, TWO), F, X[:0], "wanted at least one row and dtype float32 or float64, got 0 rows"),
        (LinearRegression().fit(X, TWO), F, {"a": X[:, 0]}, "the sample has no column 'b'; it has a"),
    ],
)
def test_what_can_not_be_converted_is_refused(estimator: Any, features: Any, sample: Any, text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        to_onnx(estimator, features, sample)


def test_a_missing_converter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ModelError, match=re.escape("pip install 'streamml[convert]'")):
        to_onnx(LinearRegression().fit(X, TWO), F, X)


def test_importing_it_imports_no_converter() -> None:
    program = "import sys, streamml.models.convert; print({'sklearn', 'skl2onnx', 'pandas', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_refused_conversion_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wanted a regressor"):
        package(LinearSVC().fit(X, TWO), tmp_path / "b", name="m", version=1, features=F, golden={"rows": X[:50]})
    assert not (tmp_path / "b").exists()


def test_golden_rows_may_be_a_file_of_columns(linear: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", c=np.array([3.0, 6.0]), a=np.array([1, 4]), b=np.array([2.0, 5.0]))
    made = package(linear, tmp_path / "b", name="m", version=1, features=["a", "b", "c"], golden=tmp_path / "rows.npz")
    inputs, outputs = Bundle.load(made.path).golden()
    assert inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert outputs["score"].tolist() == [[321], [654]]


@pytest.mark.parametrize(
    ("source", "golden", "text"),
    [
        ("none.onnx", {"x": np.zeros((2, 3))}, "there is no model file none.onnx; wanted a file, module:function"),
        (object(), {"x": np.zeros((2, 3))}, "wanted a model file, an estimator, a torch.nn.Module or module:function"),
        (LinearRegression().fit(X, TWO), {}, "there are no golden rows"),
        (LinearRegression().fit(X, TWO), {"a": X[:, 0], "b": X[:, 1]}, "the golden rows have no column 'c'"),
        (LinearRegression().fit(X, TWO), "none.npz", "none.npz can't be read"),
    ],
)
def test_what_is_no_model_is_refused(source: Any, golden: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        package(source, tmp_path / "b", name="m", version=1, features=F, golden=golden)
    assert not (tmp_path / "b").exists()
