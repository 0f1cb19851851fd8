from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamml.errors import ModelError, ModelMemoryError
from streamml.models import OnnxModel

X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture
def model(linear: Path) -> OnnxModel:
    made = OnnxModel(linear)
    made.load()
    return made


def test_importing_models_loads_no_runtime() -> None:
    program = "import sys, streamml.models; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_it_describes_inputs_and_outputs(model: OnnxModel) -> None:
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == ["x: float32[?, 3]", "score: float32[?, 1]"]


def test_it_predicts(model: OnnxModel) -> None:
    assert model.predict({"x": X})["score"].tolist() == [[321.0]]


def test_it_takes_and_gives_several_named_arrays_of_several_types(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx(
        [("Add", ["p", "q"], ["sum"], {}), ("Neg", ["k"], ["minus"], {}), ("Identity", ["t"], ["text"], {})],
        {"p": ("float32", ["n"]), "q": ("float32", ["n"]), "k": ("int64", ["n", 2]), "t": ("str", ["n"])},
        {"sum": ("float32", ["n"]), "minus": ("int64", ["n", 2]), "text": ("str", ["n"])},
    )
    model = OnnxModel(path)
    model.load()
    model.warm_up()
    found = model.predict(
        {
            "k": np.array([[1, 2], [3, 4]]),
            "t": np.array(["a", "b"], dtype=object),
            "p": np.array([1, 2], np.float32),
            "q": np.array([10, 20], np.float32),
        }
    )
    assert {name: array.tolist() for name, array in found.items()} == {
        "sum": [11.0, 22.0],
        "minus": [[-1, -2], [-3, -4]],
        "text": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "model linear.onnx: input 'x' is missing; wanted x: float32[?, 3]; got []"),
        ({"x": X, "xx": X}, "model linear.onnx: there is no input 'xx'. Did you mean 'x'? Known: x."),
        ({"x": X.astype(np.float64)}, "model linear.onnx: wanted x: float32[?, 3], got float64[1, 3]"),
        ({"x": X[:, :2]}, "model linear.onnx: wanted x: float32[?, 3], got float32[1, 2]"),
        ({"x": X[0]}, "model linear.onnx: wanted x: float32[?, 3], got float32[3]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(model: OnnxModel, inputs: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        model.predict(inputs)


def test_a_failure_inside_the_graph_names_the_shapes(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx(
        [("Gather", ["table", "k"], ["v"], {})],
        {"k": ("int64", ["n"])},
        {"v": ("float32", ["n"])},
        {"table": np.zeros(3, np.float32)},
    )
    model = OnnxModel(path)
    model.load()
    with pytest.raises(ModelError, match=re.escape("model model.onnx: failed on k[1] (")):
        model.predict({"k": np.array([7])})


def test_it_refuses_to_predict_before_load_and_after_close(linear: Path, model: OnnxModel) -> None:
    with pytest.raises(ModelError, match="before load or after close"):
        OnnxModel(linear).predict({"x": X})
    model.close()
    model.close()
    with pytest.raises(ModelError, match="before load or after close"):
        model.predict({"x": X})


def test_a_file_that_is_not_there_or_cut_short_is_refused(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("there is no such file")):
        OnnxModel(tmp_path / "none.onnx").load()
    linear.write_bytes(linear.read_bytes()[:-20])
    with pytest.raises(ModelError, match=re.escape(f"model {linear}: onnxruntime ") + ".* can't load it"):
        OnnxModel(linear).load()


def test_an_output_that_is_no_tensor_is_refused_with_the_way_to_export(write_onnx: Callable[..., Path]) -> None:
    import onnx
    from onnx import TensorProto, helper

    path = write_onnx(
        [("SequenceConstruct", ["x"], ["s"], {})], {"x": ("float32", ["n"])}, {"s": ("float32", ["n"])}, name="seq"
    )
    graph = onnx.load(path)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
    graph.graph.output[0].type.CopyFrom(kind)
    onnx.save(graph, path)
    with pytest.raises(ModelError, match=re.escape("'s' is a seq(tensor(float)), wanted a tensor") + ".*ZipMap"):
        OnnxModel(path).load()


def test_a_missing_runtime_says_what_to_install(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=re.escape("pip install 'streamml[onnx]'")):
        OnnxModel(linear).load()


def test_several_inputs_and_outputs_are_bit_for_bit_those_of_a_direct_run(write_onnx: Callable[..., Path]) -> None:
    import onnxruntime as ort

    random = np.random.default_rng(3)
    path = write_onnx(
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            ("Add", ["h", "y"], ["sum"], {}),
            ("Sigmoid", ["sum"], ["score"], {}),
            ("ReduceSum", ["h", "axes"], ["total"], {"keepdims": 0}),
        ],
        {"x": ("float32", ["n", 7]), "y": ("float32", ["n", 3])},
        {"score": ("float32", ["n", 3]), "total": ("float32", ["n"])},
        {"w": random.normal(size=(7, 3)).astype(np.float32), "axes": np.array([1])},
    )
    model = OnnxModel(path)
    model.load()
    direct = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 17, 300):
        given = {"y": random.normal(size=(rows, 3)).astype(np.float32)}
        given["x"] = random.normal(size=(rows, 7)).astype(np.float32)
        expected = dict(zip(["score", "total"], direct.run(["score", "total"], given), strict=True))
        found = model.predict(given)
        assert list(found) == ["score", "total"]
        for name, array in expected.items():
            assert found[name].tobytes() == array.tobytes(), (name, rows)


def test_a_provider_that_is_not_there_is_refused_and_not_passed_over(linear: Path) -> None:
    text = "model linear.onnx: this onnxruntime has no SpecialExecutionProvider; it has "
    with pytest.raises(ModelError, match=re.escape(text) + ".*CPUExecutionProvider"):
        OnnxModel(linear, providers=["SpecialExecutionProvider", "CPUExecutionProvider"]).load()


def test_a_lack_of_memory_is_told_from_other_failures(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx([("ConstantOfShape", ["k"], ["v"], {})], {"k": ("int64", [1])}, {"v": ("float32", ["n"])})
    model = OnnxModel(path)
    model.load()
    with pytest.raises(ModelMemoryError, match=re.escape("model model.onnx: out of memory on k[1] (")):
        model.predict({"k": np.array([10**14])})
    assert len(model.predict({"k": np.array([10])})["v"]) == 10
    with pytest.raises(ModelError) as other:
        model.predict({"k": np.array([-1])})
    assert not isinstance(other.value, ModelMemoryError)


def test_a_row_on_which_the_model_fails_writes_nothing_past_the_caller(write_onnx: Callable[..., Path]) -> None:
    program = (
        "import numpy as np, sys\n"
        "from streamml.models import OnnxModel\n"
        "model = OnnxModel(sys.argv[1])\n"
        "model.load()\n"
        "try:\n    model.predict({'k': np.array([7])})\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    path = write_onnx(
        [("Gather", ["table", "k"], ["v"], {})],
        {"k": ("int64", ["n"])},
        {"v": ("float32", ["n"])},
        {"table": np.zeros(3, np.float32)},
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("ModelError", "")
