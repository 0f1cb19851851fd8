"""Which feature moved a score, and by how much: for linear models and tree ensembles in ONNX.

Contributions are measured against a reference, some hundred rows of usual traffic: the base is the mean raw score of
the reference, and the contributions of a row add up to its raw score less the base. The raw score is what the model
adds up, before a sigmoid or softmax.

- A linear model: weight times (value less the mean of the reference).
- Trees: the path that a row takes. Each node is worth the mean raw score of the reference rows that reach it; the step
  from a node to its child is the doing of the feature that the node asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamml.errors import ModelError
from streamml.models.attribution_trees import TREES, Trees
from streamml.models.loaded import LoadedModel
from streamml.models.signature import Array

__all__ = ["Attribution", "attribute"]

_LINEAR = ("LinearRegressor", "LinearClassifier")


class _Parts(Protocol):
    """A model that is a sum of parts by feature."""

    base: float

    def contributions(self, x: Array) -> Array:
        """Return one row of contributions for each row of inputs."""
        ...


class Attribution:
    """Attributes the scores of one model.

    Args:
        model: a loaded model with one matrix input, of a linear model or a tree ensemble.
        reference: columns of the reference rows, in the order of the features; None takes the bundle's golden rows.
        target: number of the class or target that is explained; None takes the last one, the positive class of two.

    Raises:
        ModelError: the model is of another kind, or there is no reference.

    Attributes:
        base: the mean raw score of the reference.
    """

    def __init__(
        self, model: LoadedModel, reference: Sequence[Sequence[Any]] | None = None, target: int | None = None
    ) -> None:
        self._model = model
        graph = _graph(model)
        if len(model.inputs) != 1 or len(model.inputs[0].shape) != 2:
            msg = f"{model.where}: attribution wants one matrix input, got {', '.join(map(str, model.inputs))}"
            raise ModelError(msg)
        self._input = model.inputs[0].name
        known = self._reference(reference)
        main, scale, offset = _main(model.where, graph, self._input)
        self._scale, self._offset = scale, offset
        self._parts: _Parts
        if main.op_type in TREES:
            self._parts = Trees(model.where, main, self._scaled(known), target)
        else:
            self._parts = _Linear(model.where, graph, main, self._scaled(known), target)
        self.base = self._parts.base

    def contributions(self, columns: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
        """Return for each row, given by columns, the contribution of each feature."""
        found = self._parts.contributions(self._scaled(self._model.matrix(columns)[self._input])).tolist()
        return [dict(zip(self._model.features, row, strict=True)) for row in found]

    def _reference(self, reference: Sequence[Sequence[Any]] | None) -> Array:
        if reference is not None:
            return self._model.matrix(reference)[self._input]
        if self._model.bundle is None:
            msg = f"{self._model.where}: wanted reference rows; pass some hundred usual ones, a bare file has none"
            raise ModelError(msg)
        return self._model.bundle.golden()[0][self._input]

    def _scaled(self, x: Array) -> Array:
        x = x.astype(np.float32)
        return x if self._scale is None else (x - self._offset) * self._scale


def attribute(
    model: LoadedModel, columns: Sequence[Sequence[Any]], reference: Sequence[Sequence[Any]] | None = None
) -> list[dict[str, float]]:
    """Return for each row, given by columns, by how much each feature moved its raw score; see `Attribution`."""
    return Attribution(model, reference).contributions(columns)


class _Linear:
    def __init__(self, where: str, graph: Any, node: Any, reference: Array, target: int | None) -> None:
        weights, intercept = _weights(where, graph, node)
        at = len(weights) - 1 if target is None else target
        if not 0 <= at < len(weights):
            msg = f"{where}: there is no target {target}; the model has {len(weights)}, from 0"
            raise ModelError(msg)
        self._weights, self._mean = weights[at], reference.astype(np.float64).mean(axis=0)
        self.base = float(self._weights @ self._mean + intercept[at])

    def contributions(self, x: Array) -> Array:
        found: Array = self._weights * (x.astype(np.float64) - self._mean)
        return found


def _weights(where: str, graph: Any, node: Any) -> tuple[Array, Array]:
    """Return weights [targets, features] and intercepts of a linear node."""
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in _LINEAR:
        intercepts = np.asarray(attributes.get("intercepts", [0.0]), np.float64)
        weights = np.asarray(attributes["coefficients"], np.float64)
        return weights.reshape(max(1, len(intercepts)), -1), intercepts
    constants = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    weights = constants[node.input[1]]
    weights = weights if attributes.get("transB") else weights.T
    added = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "MatMul":
        after = [n for n in graph.node if n.op_type == "Add" and node.output[0] in n.input]
        added = next((name for n in after for name in n.input if name in constants), "")
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        msg = f"{where}: attribution knows no Gemm with transA, alpha or beta; export the model with plain weights"
        raise ModelError(msg)
    return weights, np.broadcast_to(constants[added].reshape(-1) if added else np.zeros(1), len(weights))


def _graph(model: LoadedModel) -> Any:
    path = getattr(model.runtime, "path", None)
    if path is None or Path(path).suffix != ".onnx":
        msg = f"{model.where}: attribution knows ONNX models; convert it (streamml.models.to_onnx), or leave it out"
        raise ModelError(msg)
    try:
        import onnx
    except ImportError as exc:
        msg = f"{model.where}: attribution reads the graph with onnx, which is not installed; run: pip install onnx"
        raise ModelError(msg) from exc
    return onnx.load(str(path)).graph


def _main(where: str, graph: Any, given: str) -> tuple[Any, Array | None, Array | None]:
    """Return the node that adds up, and the scale and offset of a scaler before it."""
    import onnx

    constants = {t.name for t in graph.initializer}
    dense = [n for n in graph.node if n.op_type in ("Gemm", "MatMul") and n.input[1] in constants]
    mains = [n for n in graph.node if n.op_type in (*_LINEAR, *TREES)] or dense
    kinds = ", ".join(dict.fromkeys(n.op_type for n in graph.node))
    if len(mains) != 1:
        msg = f"{where}: attribution knows one linear or tree ensemble node, got {len(mains)} in a graph of {kinds}"
        raise ModelError(msg)
    makers = {name: n for n in graph.node for name in n.output}
    scale = offset = None
    name = mains[0].input[0]
    while name != given:
        node = makers.get(name)
        again = scale is not None and node is not None and node.op_type == "Scaler"
        if node is None or again or node.op_type not in ("Identity", "Cast", "Scaler"):
            msg = f"{where}: attribution can't follow {node.op_type if node else name!r} before the {mains[0].op_type}"
            raise ModelError(msg)
        if node.op_type == "Scaler":
            found = {a.name: np.asarray(onnx.helper.get_attribute_value(a), np.float32) for a in node.attribute}
            scale, offset = found["scale"], found["offset"]
        name = node.input[0]
    return mains[0], scale, offset
