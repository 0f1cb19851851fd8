"""A model that is ready to score rows: columns in, lists out."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from streamml.drift.profile import Profile
from streamml.errors import ModelError
from streamml.models.bundle import Bundle
from streamml.models.policy import Policy
from streamml.models.runtime import ModelRuntime, RuntimeOptions
from streamml.models.runtimes import ENDINGS, make_runtime
from streamml.models.signature import Array, TensorSpec, with_features

__all__ = ["LoadedModel", "open_model"]


_NAN = float("nan")
_FLOATS = {"float16": "d", "float32": "d", "float64": "d"}
_CODES = {
    **_FLOATS,
    **{"bool": "b", "int8": "b", "int16": "h", "int32": "i", "int64": "q"},
    **{"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"},
}
"""Type codes of `array` that hold the values of a NumPy type."""


class LoadedModel:
    """A loaded and checked model.

    Attributes:
        name: name of the model.
        version: its version, 0 for a file that is not in a bundle.
        inputs: inputs with their features.
        outputs: outputs in order.
        features: the features in the order in which `score` takes their columns.
        runtime: the runtime, for models whose inputs are not columns.
        bundle: the bundle, None for a file that is not in one.
    """

    def __init__(
        self,
        runtime: ModelRuntime,
        *,
        name: str,
        version: int = 0,
        features: Sequence[str] = (),
        bundle: Bundle | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.runtime = runtime
        self.bundle = bundle
        self.features = tuple(features)
        self.inputs: tuple[TensorSpec, ...] = with_features(self.where, runtime.inputs, self.features)
        self.outputs: tuple[TensorSpec, ...] = tuple(runtime.outputs)
        self._types: list[Any] = [np.dtype(object if s.dtype == "str" else s.dtype) for s in self.inputs]

    def __repr__(self) -> str:
        return f"LoadedModel({self.name}:{self.version}, features={list(self.features)})"

    @property
    def where(self) -> str:
        """How messages name the model."""
        return f"model {self.name}:{self.version}"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in order."""
        return tuple(spec.name for spec in self.outputs)

    @property
    def profile(self) -> Profile | None:
        """The reference profile for drift, None when the model has none."""
        return None if self.bundle is None else self.bundle.profile

    def matrix(self, columns: Sequence[Sequence[Any]]) -> dict[str, Array]:
        """Turn the columns of the features, in their order, into the inputs of the model.

        None becomes NaN where the input is a float.

        Raises:
            ModelError: the number or length of the columns is wrong, or a value does not fit its input.
        """
        if len(columns) != len(self.features):
            said = ", ".join(self.features) or "its features were not named: open_model(path, features=[...])"
            msg = f"{self.where}: wanted {len(self.features)} columns ({said}), got {len(columns)}"
            raise ModelError(msg)
        rows = len(columns[0]) if columns else 0
        for feature, column in zip(self.features, columns, strict=True):
            if len(column) != rows:
                msg = (
                    f"{self.where}: feature {feature!r}: wanted {rows} values as in the first column, got {len(column)}"
                )
                raise ModelError(msg)
        inputs: dict[str, Array] = {}
        at = 0
        with np.errstate(over="raise"):
            for spec, dtype in zip(self.inputs, self._types, strict=True):
                width = len(spec.features)
                table = np.empty((rows, width), dtype)
                for place in range(width):
                    try:
                        table[:, place] = _column(columns[at + place], spec.dtype)
                    except (TypeError, ValueError, OverflowError, FloatingPointError) as exc:
                        raise self._misfit(spec, place, columns[at + place], exc) from exc
                at += width
                inputs[spec.name] = table if len(spec.shape) == 2 else table.reshape(rows)
        return inputs

    def score(self, columns: Sequence[Sequence[Any]], rows: int) -> dict[str, list[Any]]:
        """Score rows given by columns; return plain lists by output, one value (or list of values) per row.

        Args:
            columns: the columns of the features, in their order.
            rows: number of rows.

        Raises:
            ModelError: the columns do not fit, the model fails, or it does not return one result per row.
        """
        return self.predict(self.matrix(columns), rows)

    def predict(self, inputs: Mapping[str, Array], rows: int) -> dict[str, list[Any]]:
        """Score rows given by arrays as `matrix` makes them; else the same as `score`."""
        if not rows:
            return {spec.name: [] for spec in self.outputs}
        found = self.runtime.predict(inputs)
        scores: dict[str, list[Any]] = {}
        for name, values in found.items():
            if values.ndim == 0 or len(values) != rows:
                msg = (
                    f"{self.where}: output {name!r}: wanted {rows} rows, got shape {list(values.shape)}; "
                    "export the model with the batch as first dimension"
                )
                raise ModelError(msg)
            scores[name] = (values.reshape(rows) if values.shape[1:] == (1,) else values).tolist()
        return scores

    def close(self) -> None:
        """Release the model."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _misfit(self, spec: TensorSpec, place: int, column: Sequence[Any], exc: Exception) -> ModelError:
        """Return the error that names the first value which is at fault."""
        at, value = next(((i, v) for i, v in enumerate(column) if not _fits(v, spec.dtype)), (0, column[0]))
        try:
            shown = repr(value)
        except ValueError:  # Python refuses to write out integers of thousands of digits
            shown = f"a huge {type(value).__name__}"
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        where = f"{self.where}: feature {spec.features[place]!r}, row {at}"
        return ModelError(f"{where}: wanted a {spec.dtype}, got {shown} ({exc})")


def open_model(
    path: str | Path,
    features: Sequence[str | None] = (),
    *,
    warm_up: bool = True,
    policy: Policy | None = None,
    options: RuntimeOptions | None = None,
) -> LoadedModel:
    """Load, check and warm up the model in a bundle folder, or in a bare file that describes itself.

    Args:
        path: the folder or the file (`.onnx`, `.pt2`, a description). A bare file has the name of its stem and
            version 0, and is not checked.
        features: features in order, None for a column without a name. A bare file takes them as they are; a bundle
            has its own, and refuses others than those.
        warm_up: predict golden rows, or zeros for a bare file, so that the first event does not pay for lazy set-up.
        policy: code that may run, keys that are trusted; default: from the environment, see `Policy.from_env`.
        options: threads, providers, device; default: from the environment, see `RuntimeOptions.from_env`.

    Raises:
        ModelError: the bundle or file is broken, was changed, is not allowed, or does not fit the features.
    """
    path = Path(path)
    policy = policy or Policy.from_env()
    bundle = None if path.suffix in ENDINGS and not path.is_dir() else Bundle.load(path)
    if bundle is not None:
        bundle.check_signature(policy)
        bundle.check_files()  # before the runtime parses the file
        runtime = bundle.runtime(policy=policy, options=options)
    elif policy.require_signature:
        msg = f"model {path}: a bare file is not signed, and the policy wants a signature; package and sign it"
        raise ModelError(msg)
    else:
        runtime = make_runtime(path, policy=policy, options=options)
    runtime.load()
    try:
        if bundle is None:
            names = [f"column_{i}" if name is None else name for i, name in enumerate(features)]
            model = LoadedModel(runtime, name=path.stem, features=names)
        else:
            bundle.check_model(runtime)
            said = bundle.manifest
            own = [name if given is None else given for given, name in zip(features, said.features, strict=False)]
            if features and (len(own) < len(features) or tuple(own) != said.features):
                msg = f"{bundle.where}: wanted its features {list(said.features)}, got {list(features)}"
                raise ModelError(msg)
            model = LoadedModel(runtime, name=said.name, version=said.version, features=said.features, bundle=bundle)
        if warm_up:
            _warm_up(runtime, bundle)
    except BaseException:
        runtime.close()
        raise
    return model


def _warm_up(runtime: ModelRuntime, bundle: Bundle | None) -> None:
    """Predict batches of typical rows; zeros may be none that the model takes, such as an unknown category."""
    golden = bundle.golden()[0] if bundle is not None else {}
    if len({len(array) if array.ndim else 0 for array in golden.values()} - {0}) != 1:
        runtime.warm_up()
        return
    for rows in (1, 256):
        runtime.predict({name: array[np.arange(rows) % len(array)] for name, array in golden.items()})


def _column(column: Sequence[Any], dtype: str) -> Any:
    """Return a column as an array; unlike NumPy, `array` takes no text for a number and lets none overflow."""
    if isinstance(column, np.ndarray):
        return column
    if dtype == "str":
        if not all(isinstance(value, str) for value in column):
            msg = "wanted text"
            raise TypeError(msg)
        return column
    try:
        return array(_CODES[dtype], column)
    except TypeError:
        if dtype not in _FLOATS or None not in column:
            raise
        return array("d", [_NAN if value is None else value for value in column])


def _fits(value: Any, dtype: str) -> bool:
    try:
        np.empty(1, object if dtype == "str" else dtype)[:] = _column([value], dtype)
    except (TypeError, ValueError, OverflowError, FloatingPointError):
        return False
    return True
