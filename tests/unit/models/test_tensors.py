"""Models whose inputs are arrays: of one shape, of any length, and a scalar for all rows."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError, ModelMemoryError
from streamml.models import open_model
from streamml.models.scorer import Scorer


@pytest.fixture
def summing(write_onnx: Callable[..., Path]) -> Path:
    """`y = factor * sum(x[:n])` for rows of any length, with `n` as an input."""
    nodes: list[Any] = [
        ("Shape", ["x"], ["shape"], {}),
        ("Gather", ["shape", "one"], ["width"], {}),
        ("Range", ["zero", "width", "one"], ["places"], {}),
        ("Unsqueeze", ["n", "axis"], ["ends"], {}),
        ("Less", ["places", "ends"], ["inside"], {}),
        ("Where", ["inside", "x", "nothing"], ["kept"], {}),
        ("ReduceSum", ["kept", "axis"], ["total"], {"keepdims": 0}),
        ("Mul", ["total", "factor"], ["y"], {}),
    ]
    return write_onnx(
        nodes,
        {"x": ("float32", ["rows", "length"]), "n": ("int64", ["rows"]), "factor": ("float32", [])},
        {"y": ("float32", ["rows"])},
        {"one": np.int64(1), "zero": np.int64(0), "axis": np.array([1], np.int64), "nothing": np.float32(0)},
        "summing",
    )


def scorer(path: Path, **options: Any) -> Scorer:
    given = {"buckets": (2, 4, 8), "lengths": "n", **options}
    return Scorer(open_model(path, warm_up=False), {"x": "values", "factor": 3.0}, {"y": 0}, **given)


def test_rows_of_any_length_are_scored_in_buckets_and_come_back_in_order(summing: Path) -> None:
    made = scorer(summing)
    calls: list[tuple[int, ...]] = []
    predict = made.model.runtime.predict

    def watched(inputs: Any) -> Any:
        calls.append(inputs["x"].shape)
        return predict(inputs)

    made.model.runtime.predict = watched  # type: ignore[method-assign]
    values = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    outcome = made.score([values, [3.0] * 5], 5, 0, inf)
    assert outcome.columns == {"y": [3.0 * sum(row) for row in values]}
    assert calls == [(2, 2), (2, 4), (1, 8)]


def test_rows_that_do_not_fit_are_rejected_and_the_others_scored(summing: Path) -> None:
    values = [[1.0], None, [1.0] * 9, "text", [[1.0]], [2.0, 2.0]]
    outcome = scorer(summing).score([values, [1.0] * 6], 6, 0, inf)
    assert outcome.columns["y"] == [1.0, None, None, None, None, 4.0]
    said = {row: (failure.reason, str(failure.error)) for row, failure in outcome.failures.items()}
    assert {reason for reason, _ in said.values()} == {"input"}
    assert "is missing" in said[1][1]
    assert "at most 8 values, got 9" in said[2][1]
    assert "float32[1, 1]" in said[4][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": ()}, "give buckets="),
        ({"lengths": "m"}, "there is no input 'm'"),
        ({"lengths": ""}, "nothing is given for input 'n'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_the_start(
    summing: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        scorer(summing, **options)


def test_a_batch_that_is_too_large_for_the_memory_is_halved_and_the_size_remembered(linear: Path) -> None:
    made = Scorer(open_model(linear, ["a", "b", "c"]), (), {"score": 0})
    predict, sizes = made.model.runtime.predict, []

    def small(inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        if sizes[-1] > 3:
            msg = "out of memory"
            raise ModelMemoryError(msg)
        return predict(inputs)

    made.model.runtime.predict = small  # type: ignore[method-assign]
    columns = [[float(i) for i in range(10)] for _ in range(3)]
    assert made.score(columns, 10, 0, inf).columns == {"score": [111.0 * i for i in range(10)]}
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    sizes.clear()
    made.score(columns, 10, 0, inf)
    assert sizes == [2] * 5
