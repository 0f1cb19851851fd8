from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError, ModelMemoryError
from streamml.models import Bundle, CallableModel, Policy, TensorSpec, describe, open_model, package

X, Y = TensorSpec("x", "float64", (None, 2)), TensorSpec("y", "float64", (None,))
ROWS = {"x": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
CODE = """
import pathlib
import numpy as np

pathlib.Path(__file__).with_name("imported").touch()

def score(inputs):
    return {"sum": inputs["x"].sum(1), "many": inputs["x"].sum(1) > 5}

class Scaled:
    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, inputs):
        return {"y": inputs["x"].sum(1) * self.factor}

    def close(self):
        pathlib.Path(__file__).with_name("closed").touch()

number = 7
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "scores.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "scores", raising=False)
    return folder


def loaded(function: Any, outputs: Any = (Y,), **options: Any) -> CallableModel:
    model = CallableModel(function, [X], outputs, **options)
    model.load()
    return model


def test_a_bundle_holds_a_function_by_name(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(allow=("scores",))
    made = package("scores:score", tmp_path / "b", name="s", version=1, features=["a", "b"], golden=ROWS, policy=policy)
    assert [str(spec) for spec in made.manifest.outputs] == ["sum: float64[?]", "many: bool[?]"]
    with open_model(tmp_path / "b", policy=policy) as model:
        assert model.score([[1, 4], [2, 5]], 2) == {"sum": [3.0, 9.0], "many": [False, True]}
    monkeypatch.setenv("STREAMML_ALLOW_CODE", "scores:score")
    open_model(tmp_path / "b").close()


def test_code_that_is_not_allowed_is_not_even_imported(code: Path, tmp_path: Path) -> None:
    policy = Policy(allow=("scores",))
    package("scores:score", tmp_path / "b", name="s", version=1, features=["a", "b"], golden=ROWS, policy=policy)
    (code / "imported").unlink()
    del sys.modules["scores"]
    for way in (
        lambda: open_model(tmp_path / "b"),
        lambda: Bundle.load(tmp_path / "b").verify(),
        lambda: open_model(tmp_path / "b", policy=Policy(allow=("scores.sub", "score", "scores:other"))),
        lambda: package("scores:score", tmp_path / "c", name="s", version=1, features=[], golden=ROWS),
    ):
        with pytest.raises(ModelError, match=re.escape("it runs code, 'scores:score', which is not allowed")):
            way()
    assert not (code / "imported").exists()


def test_a_class_is_built_once_with_its_arguments_and_closed(code: Path, tmp_path: Path) -> None:
    policy = Policy(allow=("scores:Scaled",))
    said = describe.PythonCode(function="scores:Scaled", arguments={"factor": 10.0})
    package(said, tmp_path / "b", name="s", version=1, features=["a", "b"], golden=ROWS, policy=policy)
    (code / "closed").unlink()
    model = open_model(tmp_path / "b", policy=policy)
    assert model.score([[1], [2]], 1) == {"y": [30.0]}
    assert not (code / "closed").exists()
    model.close()
    model.close()
    assert (code / "closed").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scores:scor", "'scores' has no 'scor'. Did you mean 'score'?"),
        ("scores:number", "wanted a function or a class whose objects can be called, got int"),
        ("scores", "wanted code as 'module:name', got 'scores'"),
        ("scores:a.b", "wanted code as 'module:name', got 'scores:a.b'"),
        ("absent:f", "'absent' can't be imported (ModuleNotFoundError: No module named 'absent')"),
    ],
)
def test_what_is_no_function_is_refused(code: Path, name: str, text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        loaded(name, policy=Policy(allow=("scores", "absent")))


def test_arguments_that_do_not_fit_are_refused(code: Path) -> None:
    policy = Policy(allow=("scores",))
    with pytest.raises(ModelError, match=re.escape("can't be built with {'speed': 1}")):
        loaded("scores:Scaled", arguments={"speed": 1}, policy=policy)
    with pytest.raises(ModelError, match="a function takes no arguments"):
        loaded("scores:score", arguments={"speed": 1}, policy=policy)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda _: {}, "output 'y' is missing; got none"),
        (lambda _: {"y": [1.0, 2.0, 3.0]}, "output 'y': wanted a NumPy array, got list"),
        (lambda _: None, "output 'y': wanted a NumPy array, got NoneType"),
        (lambda given: given["x"], "wanted output y: float64[?], got float64[3, 2]"),
        (lambda given: given["x"].sum(1).astype(np.float32), "wanted output y: float64[?], got float32[3]"),
        (lambda _: [np.zeros(3), np.zeros(3)], "wanted the outputs y: float64[?], got 2 arrays without name"),
        (lambda given: given["z"], "failed on x[3, 2] (KeyError: 'z')"),
    ],
)
def test_what_does_not_answer_as_described_is_refused(function: Any, text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        loaded(function).predict(ROWS)


def test_inputs_are_checked_before_the_function_sees_them() -> None:
    with pytest.raises(ModelError, match=re.escape("wanted x: float64[?, 2], got float64[3, 1]")):
        loaded(lambda given: given["x"][:, 1]).predict({"x": ROWS["x"][:, :1]})


def test_a_lack_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(ModelMemoryError, match=re.escape("out of memory on x[3, 2] (")):
        loaded(lambda _: {"y": np.zeros(10**15)}).predict(ROWS)


def test_it_refuses_to_predict_before_load_and_after_close() -> None:
    model = CallableModel(lambda given: given["x"].sum(1), [X], [Y])
    with pytest.raises(ModelError, match="before load or after close"):
        model.predict(ROWS)
    model.load()
    model.close()
    with pytest.raises(ModelError, match="before load or after close"):
        model.predict(ROWS)
