"""Versions of one small model in a registry: what each does can be worked out by hand."""

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
from streamml.models.registry import Registry  # noqa: E402

TABLE = 100
"""Inputs from here on make every version but the robust ones raise."""


def write_times(path: Path, factor: float, *, fragile: bool = False, work: int = 0) -> Path:
    """Write `y = factor * x`; a fragile one raises when x is not below `TABLE`; `work` multiplies large matrices."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y0"])]
    constants = {"factor": np.array([factor], np.float32)}
    last = "y0"
    if fragile:  # looks up a table of zeros at row x
        constants |= {"table": np.zeros(TABLE, np.float32)}
        nodes += [
            helper.make_node("Cast", ["x"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "place"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["y1"]),
        ]
        last = "y1"
    for step in range(work):
        constants[f"w{step}"] = np.zeros((1, 40_000), np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"w{step}"], [f"wide{step}"]),
            helper.make_node("ReduceSum", [f"wide{step}"], [f"sum{step}"], keepdims=0),
            helper.make_node("Add", [last, f"sum{step}"], [f"z{step}"]),
        ]
        last = f"z{step}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    kept = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1])] for n in ("x", "y")]
    graph = helper.make_graph(nodes, "times", *infos, kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


@pytest.fixture
def push(registry: Registry, tmp_path: Path) -> Callable[..., None]:
    """Add a version that multiplies by a factor."""

    def add(version: int, factor: float, name: str = "times", **options: Any) -> None:
        model = write_times(tmp_path / "made" / f"{name}{version}.onnx", factor, **options)
        golden = {"x": np.arange(5, dtype=np.float32).reshape(-1, 1)}
        folder = Path(registry.place) / name / str(version)
        Bundle.write(folder, model, name=name, version=version, features=["x"], golden=golden)

    return add


@pytest.fixture
def roll(registry: Registry) -> Callable[..., None]:
    """Write a rollout."""

    def write(action: str, effective: int, champion: int, name: str = "times", **more: Any) -> None:
        registry.append(name, "prod", action, effective=effective, champion=champion, who="me", why="", at=0, **more)

    return write
