"""The trees of an ONNX ensemble, node by node, for `attribution`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array

__all__ = ["TREES", "Trees"]

TREES = ("TreeEnsembleRegressor", "TreeEnsembleClassifier")
_ASKS: dict[str, Callable[[Any, Any], Any]] = {
    "BRANCH_LEQ": operator.le,
    "BRANCH_LT": operator.lt,
    "BRANCH_GTE": operator.ge,
    "BRANCH_GT": operator.gt,
    "BRANCH_EQ": operator.eq,
    "BRANCH_NEQ": operator.ne,
}

_Key = tuple[int, int]
"""Tree and node."""


class _Node(NamedTuple):
    """One node; `yes` and `no` are keys of its children, `ask` is None in a leaf."""

    feature: int
    ask: Callable[[Any, Any], Any] | None
    limit: np.float32
    yes: _Key
    no: _Key
    missing: bool


class Trees:
    """A tree ensemble whose nodes are worth the mean raw score of the reference rows that reach them.

    Args:
        where: the model, for messages.
        node: the ensemble.
        reference: rows of the reference.
        target: class or target that is explained; None takes the last one.

    Attributes:
        base: the mean raw score of the reference.
    """

    def __init__(self, where: str, node: Any, reference: Array, target: int | None) -> None:
        import onnx

        self._where = where
        said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        kind = "class" if node.op_type == "TreeEnsembleClassifier" else "target"
        ids = said[f"{kind}_ids"]
        wanted = max(ids) if target is None else target
        if wanted not in ids:
            msg = f"{where}: there is no {kind} {target}; the trees have {sorted(set(ids))}"
            raise ModelError(msg)
        self._nodes: dict[_Key, _Node] = {}
        missing = said.get("nodes_missing_value_tracks_true") or [0] * len(said["nodes_nodeids"])
        for tree, at, feature, mode, limit, yes, no, to_yes in zip(
            said["nodes_treeids"],
            said["nodes_nodeids"],
            said["nodes_featureids"],
            said["nodes_modes"],
            said["nodes_values"],
            said["nodes_truenodeids"],
            said["nodes_falsenodeids"],
            missing,
            strict=True,
        ):
            name = mode.decode() if isinstance(mode, bytes) else str(mode)
            ask = None if name == "LEAF" else _ASKS[name]
            self._nodes[tree, at] = _Node(feature, ask, np.float32(limit), (tree, yes), (tree, no), bool(to_yes))
        children = {child for n in self._nodes.values() if n.ask for child in (n.yes, n.no)}
        self._roots = [key for key in self._nodes if key not in children]
        averaged = said.get("aggregate_function", b"SUM") == b"AVERAGE"
        share = 1 / len(self._roots) if averaged else 1.0
        leaves: dict[_Key, float] = {}
        weights = zip(said[f"{kind}_treeids"], said[f"{kind}_nodeids"], ids, said[f"{kind}_weights"], strict=True)
        for tree, at, index, weight in weights:
            if index == wanted:
                leaves[tree, at] = leaves.get((tree, at), 0.0) + weight * share
        self._worth: dict[_Key, float] = {}
        reached: dict[_Key, int] = {}
        for row in reference:
            for root in self._roots:
                for key in self._path(root, row):
                    reached[key] = reached.get(key, 0) + 1
        for root in self._roots:
            self._value(root, leaves, reached)
        values = said.get("base_values") or [0.0]
        start = values[wanted] if wanted < len(values) else values[-1]
        self.base = float(start + sum(self._worth[root] for root in self._roots))

    def contributions(self, x: Array) -> Array:
        """Return one row of contributions for each row of inputs."""
        found = np.zeros(x.shape, np.float64)
        for row, given in enumerate(x):
            for root in self._roots:
                path = self._path(root, given)
                for key, following in pairwise(path):
                    found[row, self._nodes[key].feature] += self._worth[following] - self._worth[key]
        return found

    def _path(self, key: _Key, row: Array) -> list[_Key]:
        """Return the nodes that a row passes."""
        path = [key]
        node = self._nodes[key]
        while node.ask is not None:
            value = row[node.feature]
            yes = node.missing if value != value else node.ask(value, node.limit)
            key = node.yes if yes else node.no
            path.append(key)
            node = self._nodes[key]
        return path

    def _value(self, root: _Key, leaves: dict[_Key, float], reached: dict[_Key, int]) -> None:
        """Work out the worth of a tree's nodes, leaves first; where no reference row came, both sides count alike."""
        order = [root]
        for key in order:
            node = self._nodes[key]
            if node.ask is not None:
                order += [node.yes, node.no]
        for key in reversed(order):
            node = self._nodes[key]
            if node.ask is None:
                self._worth[key] = leaves.get(key, 0.0)
                continue
            a, b = reached.get(node.yes, 0), reached.get(node.no, 0)
            a, b = (a, b) if a + b else (1, 1)
            self._worth[key] = (a * self._worth[node.yes] + b * self._worth[node.no]) / (a + b)
