"""Small models, written node by node so that their answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.models import Bundle  # noqa: E402

TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "str": TensorProto.STRING}


@pytest.fixture
def write_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Write a graph: nodes as (op, inputs, outputs, attributes), inputs and outputs as name -> (dtype, shape)."""

    def write(nodes: list[Any], inputs: Any, outputs: Any, constants: Any = None, name: str = "model") -> Path:
        infos = [
            [helper.make_tensor_value_info(key, TYPES[dtype], shape) for key, (dtype, shape) in side.items()]
            for side in (inputs, outputs)
        ]
        made = [helper.make_node(op, given, found, **attributes) for op, given, found, attributes in nodes]
        kept = [numpy_helper.from_array(np.asarray(value), key) for key, value in (constants or {}).items()]
        graph = helper.make_graph(made, name, *infos, kept)
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return write


@pytest.fixture
def linear(write_onnx: Callable[..., Path]) -> Path:
    """`score = 1 * a + 10 * b + 100 * c`, so that the order of features shows."""
    weights = np.array([[1], [10], [100]], np.float32)
    return write_onnx(
        [("MatMul", ["x", "w"], ["score"], {})],
        {"x": ("float32", ["n", 3])},
        {"score": ("float32", ["n", 1])},
        {"w": weights},
        "linear",
    )


@pytest.fixture
def make_bundle(linear: Path, tmp_path: Path) -> Callable[..., Bundle]:
    def make(folder: Path | None = None, **options: Any) -> Bundle:
        golden = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
        given = {"name": "linear", "version": 1, "features": ["a", "b", "c"], "golden": golden, **options}
        return Bundle.write(folder or tmp_path / "bundle", linear, **given)

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()
