from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, LoadedModel, open_model


@pytest.fixture
def model(bundle: Bundle) -> LoadedModel:
    return open_model(bundle.path)


def test_a_bundle_brings_its_name_version_and_features(make_bundle: Callable[..., Bundle]) -> None:
    model = open_model(make_bundle(version=4).path)
    assert (model.name, model.version, model.features, model.output_names) == ("linear", 4, ("a", "b", "c"), ("score",))


def test_a_bare_file_is_named_by_its_stem_and_takes_the_given_features(linear: Path) -> None:
    model = open_model(linear, ["p", "q", "r"])
    assert (model.name, model.version, model.features, model.profile) == ("linear", 0, ("p", "q", "r"), None)
    assert model.score([[1], [2], [3]], 1) == {"score": [321.0]}


def test_a_bare_file_without_features_says_how_to_name_them(linear: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("its features were not named: open_model(path, features=[...])")):
        open_model(linear).score([[1], [2], [3]], 1)


def test_features_other_than_those_of_the_bundle_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match=re.escape("wanted its features ['a', 'b', 'c'], got ['b', 'a', 'c']")):
        open_model(bundle.path, ["b", "a", "c"])


def test_a_column_without_a_name_fits_any_feature(bundle: Bundle, linear: Path) -> None:
    assert open_model(bundle.path, ["a", None, "c"]).features == ("a", "b", "c")
    assert open_model(linear, ["a", None, "c"]).features == ("a", "column_1", "c")
    with pytest.raises(ModelError, match=re.escape("got ['a', None, 'c', None]")):
        open_model(bundle.path, ["a", None, "c", None])


def test_arrays_made_before_are_scored_the_same(model: LoadedModel) -> None:
    columns = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert model.predict(model.matrix(columns), 2) == model.score(columns, 2) == {"score": [531.0, 642.0]}


def test_columns_become_one_matrix_in_the_order_of_features(model: LoadedModel) -> None:
    (name, matrix), *rest = model.matrix([[1, 2], [3.5, 4], [True, -1]]).items()
    assert (name, rest, matrix.dtype, matrix.flags["C_CONTIGUOUS"]) == ("x", [], np.float32, True)
    assert matrix.tolist() == [[1, 3.5, 1], [2, 4, -1]]


def test_scores_are_plain_python_values_one_per_row(model: LoadedModel) -> None:
    rows = 50
    columns = [[float(i * j % 7) for i in range(rows)] for j in (1, 2, 3)]
    found = model.score(columns, rows)["score"]
    assert found == [a + 10 * b + 100 * c for a, b, c in zip(*columns, strict=True)]
    assert {type(value) for value in found} == {float}


def test_no_rows_give_no_scores(model: LoadedModel) -> None:
    assert model.score([[], [], []], 0) == {"score": []}


def test_arrays_are_taken_as_columns(model: LoadedModel) -> None:
    columns: list[Any] = [np.array([1, 2]), np.array([0.0, 0.0]), [0, 1]]
    assert model.score(columns, 2) == {"score": [1.0, 102.0]}


def test_none_is_a_missing_value(model: LoadedModel) -> None:
    (score,) = model.score([[None], [1], [1]], 1)["score"]
    assert math.isnan(score)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ([[1.0]], "model linear:1: wanted 3 columns (a, b, c), got 1"),
        ([[1, 2], [1], [1, 2]], "feature 'b': wanted 2 values as in the first column, got 1"),
        ([[1], [1, 2], [1]], "feature 'b': wanted 1 values as in the first column, got 2"),
        ([[1, 1], [1, "2"], [1, 1]], "feature 'b', row 1: wanted a float32, got '2'"),
        ([[1], [1], [{"v": 1}]], "feature 'c', row 0: wanted a float32, got {'v': 1}"),
        ([[1, 2], [1, 1e39], [1, 2]], "feature 'b', row 1: wanted a float32, got 1e+39"),
        ([[10**400], [1], [1]], "feature 'a', row 0: wanted a float32, got 1000000"),
        ([[10**5000], [1], [1]], "feature 'a', row 0: wanted a float32, got a huge int"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_feature_and_row(model: LoadedModel, columns: Any, text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        model.score(columns, len(columns[0]))


def test_an_input_per_column_gets_its_column_in_its_type(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx(
        [("Identity", ["a"], ["x"], {}), ("Neg", ["b"], ["y"], {}), ("Identity", ["t"], ["z"], {})],
        {"a": ("float32", ["n"]), "b": ("int64", ["n", 1]), "t": ("str", ["n"])},
        {"x": ("float32", ["n"]), "y": ("int64", ["n", 1]), "z": ("str", ["n"])},
    )
    model = open_model(path, ["amount", "country", "city"])
    found = model.score([[1.5, 2.5], [2**53 + 1, 8], ["Bern", "Köln"]], 2)
    assert found == {"x": [1.5, 2.5], "y": [-(2**53) - 1, -8], "z": ["Bern", "Köln"]}
    with pytest.raises(ModelError, match=re.escape("feature 'country', row 0: wanted a int64, got 1.5")):
        model.score([[1.5], [1.5], ["Bern"]], 1)
    with pytest.raises(
        ModelError, match=re.escape("feature 'country', row 0: wanted a int64, got 18446744073709551616")
    ):
        model.score([[1.5], [2**64], ["Bern"]], 1)
    with pytest.raises(ModelError, match=re.escape("feature 'city', row 0: wanted a str, got None")):
        model.score([[1.5], [1], [None]], 1)


def test_a_bundle_with_text_inputs_is_verified(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx([("Identity", ["t"], ["z"], {})], {"t": ("str", ["n"])}, {"z": ("str", ["n"])})
    golden = {"t": np.array(["Bern", "Köln"], dtype=object)}
    made = Bundle.write(tmp_path / "text", path, name="text", version=1, features=["city"], golden=golden)
    assert open_model(made.path).score([["Rom"]], 1) == {"z": ["Rom"]}


def test_an_output_of_several_columns_gives_a_list_per_row(write_onnx: Callable[..., Path]) -> None:
    shape = ("float32", ["n", 2])
    model = open_model(write_onnx([("Neg", ["x"], ["y"], {})], {"x": shape}, {"y": shape}), ["a", "b"])
    assert model.score([[1, 2], [3, 4]], 2) == {"y": [[-1.0, -3.0], [-2.0, -4.0]]}


def test_an_output_that_is_not_one_result_per_row_is_refused(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx(
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})], {"x": ("float32", ["n", 2])}, {"y": ("float32", [])}, name="sum"
    )
    with pytest.raises(ModelError, match=re.escape("model sum:0: output 'y': wanted 2 rows, got shape []")):
        open_model(path, ["a", "b"]).score([[1, 2], [3, 4]], 2)


def test_a_closed_model_does_not_score(model: LoadedModel) -> None:
    model.close()
    with pytest.raises(ModelError, match="after close"):
        model.score([[1], [2], [3]], 1)


def test_an_input_that_is_not_made_of_columns_takes_no_features(write_onnx: Callable[..., Path]) -> None:
    shape = ("float32", ["n", 2, 2])
    path = write_onnx([("Neg", ["x"], ["y"], {})], {"x": shape}, {"y": shape})
    with pytest.raises(ModelError, match="wanted one matrix input or inputs of one column each"):
        open_model(path, ["a", "b"])
    model = open_model(path)
    assert model.runtime.predict({"x": np.ones((1, 2, 2), np.float32)})["y"].sum() == -4
