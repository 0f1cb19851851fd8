"""Estimators of scikit-learn, XGBoost and LightGBM as ONNX graphs, checked row by row against the estimator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array

__all__ = ["to_onnx"]

_INPUT = "features"
_OPSET = {"": 18, "ai.onnx.ml": 3}
"""Operator sets that all converters of scikit-learn know."""


def to_onnx(
    estimator: Any,
    features: Sequence[str],
    sample: Array | Mapping[str, Array],
    *,
    tolerance: float = 1e-5,
    dtype: str = "float32",
) -> bytes:
    """Convert a fitted estimator, and refuse the conversion if it scores the sample otherwise than the estimator.

    The graph's first output is `score`: what a regressor predicts, the probability of the second class of two, or the
    decision function of an outlier detector. Classifiers give `probabilities` and `label` as well.

    Args:
        estimator: a regressor, a classifier with `predict_proba`, an outlier detector; of scikit-learn (pipelines too),
            XGBoost or LightGBM.
        features: names of the columns in the order in which it was trained.
        sample: typical rows, some hundreds if there are as many: a matrix, or columns by name (for pipelines that
            treat columns differently or take text). They stay as they are for the estimator; the graph gets them as
            `dtype`, just as it will when it serves.
        tolerance: largest difference of a score, absolute and relative to its size.
        dtype: `float32`, or `float64` where the converter has it.

    Returns:
        The graph, as the bytes of an `.onnx` file.

    Raises:
        ModelError: a converter is not installed, the estimator can't be converted, or the scores differ; names the
            worst row.
    """
    title = f"converting {type(estimator).__name__}"
    given, wanted = _rows(title, features, sample, estimator)
    if dtype not in ("float32", "float64") or not len(wanted):
        msg = f"{title}: wanted at least one row and dtype float32 or float64, got {len(wanted)} rows and {dtype!r}"
        raise ModelError(msg)
    feeds = {
        name: column if column.dtype.kind in "OU" else column.astype(dtype) if column.dtype.kind == "f" else column
        for name, column in given.items()
    }
    kinds = {name: ("str" if a.dtype.kind in "OU" else a.dtype.name, a.shape[1]) for name, a in feeds.items()}
    try:
        model = _converter(estimator)(estimator, kinds)
    except ModelError:
        raise
    except Exception as exc:  # each converter has exceptions of its own
        text = str(exc).strip().partition("\n")[0]
        msg = f"{title}: it can't be converted ({type(exc).__name__}: {text}); export it to ONNX by other means"
        raise ModelError(msg) from exc
    data = _finish(title, model, estimator)
    _check(title, data, feeds, estimator, wanted, list(features), tolerance)
    return data


def _rows(
    title: str, features: Sequence[str], sample: Array | Mapping[str, Array], estimator: Any
) -> tuple[dict[str, Array], Any]:
    """Return the inputs by name as matrices, and the rows as the estimator takes them."""
    if isinstance(sample, Mapping):
        if missing := [name for name in features if name not in sample]:
            msg = f"{title}: the sample has no column {missing[0]!r}; it has {', '.join(sample)}"
            raise ModelError(msg)
        columns = {name: np.asarray(sample[name]).reshape(-1, 1) for name in features}
        columns = {n: c.astype(object) if c.dtype.kind in "OU" else _number(c) for n, c in columns.items()}
        return columns, _frame({name: column[:, 0] for name, column in columns.items()})
    matrix = np.asarray(sample)
    if matrix.ndim != 2 or matrix.shape[1] != len(features) or matrix.dtype.kind not in "fiub":
        got = f"{matrix.dtype.name}{list(matrix.shape)}"
        msg = f"{title}: wanted a matrix of numbers with {len(features)} columns ({', '.join(features)}), got {got}"
        raise ModelError(msg)
    matrix = matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
    named = getattr(estimator, "feature_names_in_", None) is not None
    rows = _frame(dict(zip(features, matrix.T, strict=True))) if named else matrix
    return {_INPUT: matrix}, rows


def _number(column: Array) -> Array:
    return column.astype(np.int64) if column.dtype.kind in "iub" else column


def _frame(columns: Mapping[str, Array]) -> Any:
    try:
        import pandas
    except ImportError as exc:
        msg = "converting: columns by name need pandas, which is not installed; run: pip install pandas"
        raise ModelError(msg) from exc
    return pandas.DataFrame(dict(columns))


def _converter(estimator: Any) -> Callable[[Any, Mapping[str, tuple[str, int]]], Any]:
    package = type(estimator).__module__.partition(".")[0]
    return {"xgboost": _from_xgboost, "lightgbm": _from_lightgbm}.get(package, _from_sklearn)


def _from_sklearn(estimator: Any, kinds: Mapping[str, tuple[str, int]]) -> Any:
    try:
        import skl2onnx
        from skl2onnx.common import data_types as types
    except ImportError as exc:
        msg = "converting needs skl2onnx, which is not installed; run: pip install 'streamml[convert]'"
        raise ModelError(msg) from exc
    made = {
        "float32": types.FloatTensorType,
        "float64": types.DoubleTensorType,
        "int64": types.Int64TensorType,
        "str": types.StringTensorType,
    }
    initial = [(name, made[kind]([None, width])) for name, (kind, width) in kinds.items()]
    options = {"zipmap": False} if hasattr(estimator, "predict_proba") else None
    if hasattr(estimator, "steps") and options:
        options = {id(estimator): options}  # type: ignore[dict-item]
    return skl2onnx.convert_sklearn(estimator, initial_types=initial, options=options, target_opset=_OPSET)


def _from_xgboost(estimator: Any, kinds: Mapping[str, tuple[str, int]]) -> Any:
    tools, initial = _onnxmltools(kinds)
    plain = copy.deepcopy(estimator)
    booster = plain.get_booster()
    booster.feature_names = booster.feature_types = None  # the converter takes numbered columns only
    return tools.convert_xgboost(plain, initial_types=initial)


def _from_lightgbm(estimator: Any, kinds: Mapping[str, tuple[str, int]]) -> Any:
    tools, initial = _onnxmltools(kinds)
    return tools.convert_lightgbm(estimator, initial_types=initial, zipmap=False)


def _onnxmltools(kinds: Mapping[str, tuple[str, int]]) -> tuple[Any, list[Any]]:
    try:
        import onnxmltools
        from onnxmltools.convert.common import data_types as types
    except ImportError as exc:
        msg = "converting trees needs onnxmltools, which is not installed; run: pip install 'streamml[convert]'"
        raise ModelError(msg) from exc
    made = {"float32": types.FloatTensorType, "float64": types.DoubleTensorType}
    if list(kinds) != [_INPUT]:
        msg = "converting trees: wanted the sample as one matrix of numbers, got columns by name"
        raise ModelError(msg)
    return onnxmltools, [(name, made[kind]([None, width])) for name, (kind, width) in kinds.items()]


def _finish(title: str, model: Any, estimator: Any) -> bytes:
    """Make `score` the first output, and say of every output that the batch is of any size."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    outputs = {output.name: output for output in graph.output}
    for output in outputs.values():
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].dim_param = "rows"
    if _classifies(estimator):
        probabilities, label = outputs.get("probabilities"), outputs.get("label")
        if probabilities is None or label is None:
            msg = f"{title}: wanted the outputs label and probabilities, got {', '.join(outputs)}"
            raise ModelError(msg)
        ordered = [probabilities, label]
        if len(estimator.classes_) == 2:
            graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "streamml_second"))
            node = helper.make_node("Gather", ["probabilities", "streamml_second"], ["score"], axis=1)
            graph.node.append(node)
            kind = probabilities.type.tensor_type.elem_type
            ordered.insert(0, helper.make_tensor_value_info("score", kind, ["rows", 1]))
    else:
        source = outputs.get("scores") or outputs.get("variable") if hasattr(estimator, "predict") else None
        if source is None or source.type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            msg = f"{title}: wanted a regressor, an outlier detector or a classifier with predict_proba"
            raise ModelError(msg)
        graph.node.append(helper.make_node("Identity", [source.name], ["score"]))
        width = [d.dim_value for d in source.type.tensor_type.shape.dim[1:]] or [1]
        ordered = [helper.make_tensor_value_info("score", source.type.tensor_type.elem_type, ["rows", *width])]
    del graph.output[:]
    graph.output.extend(ordered)
    if not any(opset.domain == "" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 13))
    return bytes(model.SerializeToString())


def _classifies(estimator: Any) -> bool:
    return hasattr(estimator, "predict_proba") and hasattr(estimator, "classes_")


def _check(
    title: str,
    data: bytes,
    feeds: Mapping[str, Array],
    estimator: Any,
    rows: Any,
    features: Sequence[str],
    tolerance: float,
) -> None:
    """Compare what the graph gives with what the estimator gives."""
    try:
        import onnxruntime as ort
    except ImportError as exc:
        msg = f"{title}: needs onnxruntime, which is not installed; run: pip install 'streamml[onnx]'"
        raise ModelError(msg) from exc
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    if _classifies(estimator):
        wanted, got = np.asarray(estimator.predict_proba(rows)), found["probabilities"]
    elif hasattr(estimator, "decision_function") and not hasattr(estimator, "predict_proba"):
        wanted, got = np.asarray(estimator.decision_function(rows)), found["score"]
    else:
        wanted, got = np.asarray(estimator.predict(rows)), found["score"]
    count = len(wanted)
    wanted, got = wanted.reshape(count, -1), np.asarray(got).reshape(len(got), -1)
    if wanted.shape != got.shape:
        msg = f"{title}: the estimator gives {list(wanted.shape)} values, its conversion {list(got.shape)}"
        raise ModelError(msg)
    off = np.abs(got - wanted) / (1 + np.abs(wanted))
    off = np.where(np.isnan(wanted) & np.isnan(got), 0.0, np.nan_to_num(off, nan=np.inf))
    worst = int(off.max(axis=1).argmax())
    if off[worst].max() > tolerance:
        at = int(off[worst].argmax())
        values = [column[worst].tolist() for column in feeds.values()]
        flat = dict(zip(features, (value for row in values for value in row), strict=True))
        many = int((off.max(axis=1) > tolerance).sum())
        msg = (
            f"{title}: {many} of {count} rows differ by more than {tolerance:g}, the most in row {worst} ({flat}): "
            f"the estimator gives {wanted[worst, at]:.9g}, its conversion {got[worst, at]:.9g}; "
            "try dtype='float64', or round the features as the model will get them before you train"
        )
        raise ModelError(msg)
    if _classifies(estimator):
        _check_labels(title, np.asarray(estimator.predict(rows)), found["label"], wanted, tolerance)


def _check_labels(title: str, wanted: Array, got: Array, probabilities: Array, tolerance: float) -> None:
    """Compare the labels; they may differ where two classes are as likely as each other."""
    two = np.sort(probabilities, axis=1)[:, -2:]
    sure = two[:, 1] - two[:, 0] > 2 * tolerance
    numbers = wanted.dtype.kind in "biuf" and got.dtype.kind in "biuf"  # truth values come as 0 and 1
    wrong = sure & (wanted != got if numbers else wanted.astype(str) != got.astype(str))
    if wrong.any():
        row = int(wrong.argmax())
        msg = f"{title}: {wrong.sum()} labels differ, first in row {row}: wanted {wanted[row]}, got {got[row]}"
        raise ModelError(msg)
