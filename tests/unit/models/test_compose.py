"""Ensembles, cascades and functions around models, against NumPy on the members' own answers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models import (
    CallableModel,
    Cascade,
    Ensemble,
    ModelRuntime,
    OnnxModel,
    Policy,
    Postprocess,
    Preprocess,
    TensorSpec,
    describe,
    open_model,
    package,
)

X = TensorSpec("x", "float32", (None, 3))
SCORE = TensorSpec("score", "float32", (None, 1))
ROWS = {"x": np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32)}


@pytest.fixture
def weighted(write_onnx: Callable[..., Path]) -> Callable[..., Path]:
    """A file of `score = sigmoid(x w)`, with one more output of its own."""

    def make(name: str, weights: list[float]) -> Path:
        return write_onnx(
            [
                ("MatMul", ["x", "w"], ["h"], {}),
                ("Sigmoid", ["h"], ["score"], {}),
                ("Identity", ["h"], [f"{name}_raw"], {}),
            ],
            {"x": ("float32", ["n", 3])},
            {"score": ("float32", ["n", 1]), f"{name}_raw": ("float32", ["n", 1])},
            {"w": np.array(weights, np.float32).reshape(3, 1)},
            name,
        )

    return make


@pytest.fixture
def files(weighted: Callable[..., Path]) -> list[Path]:
    return [weighted("a", [1, 0, 0]), weighted("b", [0, 2, 0]), weighted("c", [1, -1, 3])]


def alone(path: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    return np.asarray(ort.InferenceSession(str(path)).run(["score"], rows)[0])


def constant(name: str, values: Any, dtype: str = "int64") -> CallableModel:
    array = np.array(values, dtype=object if dtype == "str" else dtype)
    return CallableModel(lambda _: {name: array}, [X], [TensorSpec(name, dtype, (None,))])


def loaded(model: ModelRuntime) -> ModelRuntime:
    model.load()
    return model


@pytest.mark.parametrize("weights", [(), (1, 2, 5)])
def test_the_mean_is_that_of_the_members_answers(files: list[Path], weights: tuple[float, ...]) -> None:
    model = loaded(Ensemble([OnnxModel(path) for path in files], weights=weights))
    assert [spec.name for spec in model.outputs] == ["score"], "only what all members have"
    expected = np.average([alone(path, ROWS) for path in files], axis=0, weights=weights or None)
    found = model.predict(ROWS)["score"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_row_scores_the_same_in_a_batch_of_any_size(files: list[Path]) -> None:
    members = [OnnxModel(path) for path in files]
    for model, names in (
        (Ensemble(members, weights=[1, 2, 3]), ["score"]),
        (Cascade(members[0], members[1], output="score", low=0.3, high=0.7), ["score", "stage"]),
    ):
        model.load()
        whole = model.predict(ROWS)
        singles = [model.predict({"x": row[None]}) for row in ROWS["x"]]
        for name in names:
            assert b"".join(single[name].tobytes() for single in singles) == whole[name].tobytes()
        model.close()


@pytest.mark.parametrize(
    ("votes", "weights", "winners"),
    [
        (([1, 2, 3], [1, 3, 2], [2, 3, 1]), (), [1, 3, 1]),
        (([1, 2, 3], [1, 3, 2], [2, 3, 1]), (1, 1, 5), [2, 3, 1]),
        (([9, 2], [4, 2]), (), [4, 2]),
        (([9, 2], [4, 2]), (0.5, 0.5), [4, 2]),
        (([9], [4], [9], [4]), (0.1, 0.3, 0.3, 0.1), [4]),
    ],
)
def test_the_value_with_most_votes_wins_and_of_equal_ones_the_smallest(
    votes: Any, weights: tuple[float, ...], winners: list[int]
) -> None:
    rows = {"x": np.zeros((len(winners), 3), np.float32)}
    for dtype in ("int64", "str"):
        members = [constant("label", [str(v) for v in vote] if dtype == "str" else vote, dtype) for vote in votes]
        found = loaded(Ensemble(members, how="vote", weights=weights)).predict(rows)["label"]
        assert found.tolist() == ([str(w) for w in winners] if dtype == "str" else winners)


def test_each_member_gets_the_inputs_that_it_takes() -> None:
    y = TensorSpec("y", "float32", (None,))
    one = CallableModel(lambda given: {"score": given["x"][:, :1]}, [X], [SCORE])
    two = CallableModel(lambda given: {"score": given["y"].reshape(-1, 1)}, [y], [SCORE])
    model = loaded(Ensemble([one, two]))
    assert [spec.name for spec in model.inputs] == ["x", "y"]
    found = model.predict({"x": np.ones((2, 3), np.float32), "y": np.array([3, 5], np.float32)})
    assert found["score"].tolist() == [[2.0], [3.0]]


def test_a_cascade_asks_the_large_model_for_the_unsure_rows_only(files: list[Path]) -> None:
    asked: list[int] = []

    def large(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        asked.append(len(given["x"]))
        return {"score": given["x"][:, :1] * 0 + 9, "more": given["x"]}

    second = CallableModel(large, [X], [SCORE, TensorSpec("more", "float32", (None, 3))])
    model = loaded(Cascade(OnnxModel(files[0]), second, output="score", low=0.3, high=0.7))
    first = alone(files[0], ROWS)
    unsure = (first >= np.float32(0.3)) & (first <= np.float32(0.7))
    assert 0 < unsure.sum() < len(unsure)
    found = model.predict(ROWS)
    assert list(found) == ["score", "stage"]
    assert found["score"].tobytes() == np.where(unsure, np.float32(9), first).tobytes()
    assert found["stage"].tolist() == unsure.reshape(-1).astype(int).tolist()
    assert asked == [int(unsure.sum())]
    sure = {"x": np.array([[10, 0, 0], [-10, 0, 0]], np.float32)}
    assert model.predict(sure)["stage"].tolist() == [0, 0]
    assert len(asked) == 1, "no unsure row, so no call"


def test_a_score_that_is_no_number_is_unsure() -> None:
    first = CallableModel(lambda given: {"score": given["x"][:, :1] * np.nan}, [X], [SCORE])
    second = CallableModel(lambda given: {"score": given["x"][:, :1] * 0 + 1}, [X], [SCORE])
    model = loaded(Cascade(first, second, output="score", low=0.4, high=0.6))
    assert model.predict({"x": np.ones((2, 3), np.float32)})["score"].tolist() == [[1.0], [1.0]]


def test_functions_go_before_and_after_a_model(linear: Path) -> None:
    a = TensorSpec("a", "float32", (None,))
    done = TensorSpec("high", "bool", (None,))
    inner = Postprocess(OnnxModel(linear), lambda found: {"high": found["score"][:, 0] > 200}, [done])
    model = loaded(Preprocess(lambda given: {"x": np.stack([given["a"]] * 3, axis=1)}, inner, [a]))
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == ["a: float32[?]", "high: bool[?]"]
    assert model.predict({"a": np.array([1, 2], np.float32)})["high"].tolist() == [False, True]
    with pytest.raises(ModelError, match=re.escape("preprocessing: wanted a: float32[?], got float64[1]")):
        model.predict({"a": np.array([1.0])})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda m: Ensemble([]), "wanted members, and 'mean' or 'vote', got 0 members"),
        (lambda m: Ensemble(m, how="max"), "wanted members, and 'mean' or 'vote', got 2 members and 'max'"),
        (lambda m: Ensemble(m, weights=[1]), "wanted 2 weights of at least 0 and not all 0, got [1]"),
        (lambda m: Ensemble(m, weights=[0, 0]), "wanted 2 weights of at least 0 and not all 0"),
        (lambda m: Ensemble(m, weights=[1, -1]), "wanted 2 weights of at least 0 and not all 0"),
        (lambda m: Ensemble(m, how="vote"), "its members have no output of labels of the same name and shape"),
        (lambda m: Ensemble([m[0], constant("other", [1])]), "its members have no output of floats of the same name"),
        (lambda m: Cascade(*m, output="score", low=1, high=0), "wanted low <= high, got 1 and 0"),
        (lambda m: Cascade(*m, output="none", low=0, high=1), "wanted 'none', one for each row"),
    ],
)
def test_what_can_not_work_is_refused_before_it_serves(build: Any, text: str) -> None:
    members = [CallableModel(lambda given: {"score": given["x"][:, :1]}, [X], [SCORE]) for _ in range(2)]
    with pytest.raises(ModelError, match=re.escape(text)):
        build(members).load()


def test_members_that_want_different_things_by_one_name_are_refused(files: list[Path]) -> None:
    other = CallableModel(lambda given: {"score": given["x"]}, [TensorSpec("x", "float64", (None,))], [SCORE])
    with pytest.raises(ModelError, match=re.escape("its members want different things as 'x': x: float32[?, 3]")):
        Ensemble([OnnxModel(files[0]), other]).load()


def test_a_member_that_can_not_be_loaded_leaves_none_loaded(files: list[Path], tmp_path: Path) -> None:
    first = OnnxModel(files[0])
    with pytest.raises(ModelError, match="there is no such file"):
        Ensemble([first, OnnxModel(tmp_path / "none.onnx")]).load()
    with pytest.raises(ModelError, match="before load or after close"):
        first.predict(ROWS)


def test_a_bundle_holds_a_cascade_of_a_model_and_an_ensemble(files: list[Path], tmp_path: Path) -> None:
    ensemble = describe.EnsembleOf(members=("b.onnx", "c.onnx"), weights=(1, 3))
    describe.write_description(files[0].parent / "both.json", ensemble)
    said = describe.CascadeOf(first="a.onnx", second="both.json", output="score", low=0.3, high=0.7)
    path = describe.write_description(files[0].parent / "cascade.json", said)
    made = package(path, tmp_path / "bundle", name="m", version=1, features=["p", "q", "r"], golden=ROWS)
    names = ["a.onnx", "b.onnx", "both.json", "c.onnx", "golden.npz", "model.json"]
    assert sorted(made.manifest.files) == names
    assert sorted(p.name for p in made.path.iterdir()) == sorted([*names, "bundle.json"])
    first, b, c = (alone(file, ROWS) for file in files)
    unsure = (first >= np.float32(0.3)) & (first <= np.float32(0.7))
    expected = np.where(unsure, b * 0.25 + c * 0.75, first)
    with open_model(made.path) as model:
        found = model.score(ROWS["x"].T.tolist(), 60)
    np.testing.assert_allclose(found["score"], expected[:, 0], rtol=1e-6)
    assert found["stage"] == unsure[:, 0].astype(int).tolist()


def test_a_member_of_a_bundle_that_was_changed_is_refused(files: list[Path], tmp_path: Path) -> None:
    path = files[0].parent / "pair.json"
    describe.write_description(path, describe.EnsembleOf(members=("a.onnx", "b.onnx")))
    made = package(path, tmp_path / "bundle", name="m", version=1, features=["p", "q", "r"], golden=ROWS)
    (made.path / "b.onnx").write_bytes(files[2].read_bytes())
    with pytest.raises(ModelError, match=re.escape("b.onnx was changed or cut short")):
        open_model(made.path)


def test_a_bundle_holds_functions_by_name_if_they_are_allowed(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "steps.py").write_text(
        "import numpy as np\n"
        "def join(given): return {'x': np.stack([given[k] for k in 'pqr'], axis=1).astype(np.float32)}\n"
        "def percent(found): return {'percent': found['score'][:, 0] * 100}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "steps", raising=False)
    path = files[0].parent / "piped.json"
    describe.write_description(path, describe.PipelineOf(model="a.onnx", before="steps:join", after="steps:percent"))
    policy = Policy(allow=("steps",))
    golden = {name: ROWS["x"][:, at].astype(np.float64) for at, name in enumerate("pqr")}
    made = package(path, tmp_path / "b", name="m", version=1, features=list("pqr"), golden=golden, policy=policy)
    with open_model(made.path, policy=policy) as model:
        expected = alone(files[0], ROWS)[:, 0] * 100
        assert model.score(ROWS["x"].T.tolist(), 60) == {"percent": expected.tolist()}
    with pytest.raises(ModelError, match=re.escape("it runs code, 'steps:percent', which is not allowed")):
        open_model(made.path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is no description of a model"),
        ("{}", "it is no description of a model"),
        ('{"runtime": "magic"}', "it is no description of a model (Invalid value 'magic'"),
        ('{"runtime": "ensemble", "members": ["../a.onnx"]}', "its file '../a.onnx' is missing; wanted it beside"),
        ('{"runtime": "ensemble", "members": ["none.onnx"]}', "its file 'none.onnx' is missing"),
        ('{"runtime": "ensemble", "members": ["a.onnx"], "note": 1}', "unknown field `note`"),
        ('{"runtime": "ensemble", "members": ["m.json"]}', "more than 5 deep; do they go round?"),
        ('{"runtime": "pipeline", "model": "a.onnx"}', "wanted a function before or after the model"),
    ],
)
def test_a_description_that_can_not_be_served_is_refused(files: list[Path], text: str, said: str) -> None:
    path = files[0].parent / "m.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=re.escape(said)):
        open_model(path)


def test_a_description_uses_no_file_that_its_bundle_does_not_name(files: list[Path], tmp_path: Path) -> None:
    """A description inside a bundle can't reach files that were put beside it, whose sums nobody checks."""
    from streamml.models.runtimes import make_runtime

    path = files[0].parent / "pair.json"
    describe.write_description(path, describe.EnsembleOf(members=("a.onnx", "b.onnx")))
    make_runtime(path, files=["a.onnx", "b.onnx"])
    with pytest.raises(ModelError, match=re.escape("its file 'b.onnx' is missing")):
        make_runtime(path, files=["a.onnx"])
