"""The model of the benchmarks: an MLP 16-64-32-1 with seeded weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

SIZES = (16, 64, 32, 1)


def write_mlp(path: Path, seed: int = 0) -> Path:
    """Write the model as ONNX: one float32 input `x` [n, 16], one output `y` [n, 1] between 0 and 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes, weights, name = [], [], "x"
    for layer, (width, height) in enumerate(itertools.pairwise(SIZES)):
        weights.append(numpy_helper.from_array((rng.normal(size=(width, height)) / 8).astype("f4"), f"w{layer}"))
        weights.append(numpy_helper.from_array(rng.normal(size=height).astype("f4"), f"b{layer}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        name = f"a{layer}" if layer < 2 else "y"
        nodes.append(helper.make_node("Relu" if layer < 2 else "Sigmoid", [f"g{layer}"], [name]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZES[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZES[-1]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path
