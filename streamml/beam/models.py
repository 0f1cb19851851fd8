"""Our bundles in Beam's `RunInference`, and Beam's model handlers behind our port of model runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from streamml.errors import ModelError
from streamml.models import LoadedModel, open_model, resolve
from streamml.models.signature import Array, TensorSpec, check_inputs

__all__ = ["BundleHandler", "HandlerModel", "bundle_handler"]


class BundleHandler(ModelHandler):
    """A model bundle as Beam's `ModelHandler`; made by `bundle_handler`.

    An example is a mapping with the model's features. The bundle is checked when it is loaded: files, description and
    golden rows.
    """

    def __init__(self, model: str, models: Sequence[str], features: Sequence[str], batch: Mapping[str, int]) -> None:
        super().__init__()
        self._model, self._models, self._features, self._batch = model, tuple(models), tuple(features), dict(batch)

    def load_model(self) -> LoadedModel:
        """Load, check and warm up the model."""
        return open_model(resolve(self._model, self._models), self._features)

    def run_inference(
        self, batch: Sequence[Mapping[str, Any]], model: LoadedModel, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Score a batch.

        Raises:
            ModelError: an example lacks a feature, or the model fails; the message names the row.
        """
        columns: list[list[Any]] = []
        for feature in model.features:
            try:
                columns.append([example[feature] for example in batch])
            except (KeyError, TypeError) as exc:
                msg = f"{model.where}: wanted mappings with {list(model.features)}, got an example without {exc}"
                raise ModelError(msg) from exc
        scores = model.score(columns, len(batch))
        version = f"{model.name}:{model.version}"
        for row, example in enumerate(batch):
            yield PredictionResult(example, {name: column[row] for name, column in scores.items()}, version)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of Beam's metrics."""
        return "streamml"

    def batch_elements_kwargs(self) -> Mapping[str, int]:
        """Return the bounds of batches."""
        return self._batch


def bundle_handler(
    model: str | Path, *, models: Sequence[str] = (), features: Sequence[str] = (), **batch: int
) -> BundleHandler:
    """Return a model bundle as a handler for Beam's `RunInference`.

    Args:
        model: a bundle folder, an `.onnx` file, or the name of a bundle in the folders `models`.
        models: folders that are searched, as the workers see them.
        features: features in order, for a bare `.onnx` file.
        batch: `min_batch_size` and `max_batch_size`, as for Beam's `BatchElements`.

    >>> bundle_handler("fraud@prod", models=["models"], max_batch_size=256).batch_elements_kwargs()
    {'max_batch_size': 256}
    """
    return BundleHandler(str(model), models, features, batch)


class HandlerModel:
    """A Beam `ModelHandler` as a `streamml.models.ModelRuntime`: one matrix in, one column of results out.

    Args:
        handler: a handler that takes NumPy arrays, one row each.
        width: number of features.
        dtype: type of the matrix.
        output: name of the output.

    >>> HandlerModel(None, width=2).inputs[0].shape
    (None, 2)
    """

    def __init__(self, handler: Any, *, width: int, dtype: str = "float32", output: str = "output") -> None:
        self._handler = handler
        self._model: Any = None
        self.inputs: Sequence[TensorSpec] = (TensorSpec("input", dtype, (None, width)),)
        self.outputs: Sequence[TensorSpec] = (TensorSpec(output, "float64", (None,)),)

    def load(self) -> None:
        """Load the model; what its outputs are is known from a row of zeros.

        Raises:
            ModelError: the handler can't load it.
        """
        try:
            self._model = self._handler.load_model()
        except Exception as exc:
            msg = f"handler {type(self._handler).__name__}: the model can't be loaded: {exc}"
            raise ModelError(msg) from exc
        found = self._run(np.zeros((1, self._width), self.inputs[0].dtype))
        name = self.outputs[0].name
        self.outputs = (TensorSpec(name, found.dtype.name, (None, *found.shape[1:])),)

    def warm_up(self, rows: Sequence[int] = (1, 256)) -> None:
        """Predict zeros in batches of these sizes."""
        for count in rows:
            self._run(np.zeros((count, self._width), self.inputs[0].dtype))

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the output for a batch of rows.

        Raises:
            ModelError: the input does not fit, or the handler fails.
        """
        check_inputs(f"handler {type(self._handler).__name__}", self.inputs, inputs)
        return {self.outputs[0].name: self._run(inputs["input"])}

    def close(self) -> None:
        """Release the model."""
        self._model = None

    @property
    def _width(self) -> int:
        return int(self.inputs[0].shape[1] or 0)

    def _run(self, matrix: Array) -> Array:
        where = f"handler {type(self._handler).__name__}"
        if self._model is None:
            msg = f"{where}: call load() first"
            raise ModelError(msg)
        try:
            found = [_inference(made) for made in self._handler.run_inference(list(matrix), self._model)]
        except Exception as exc:
            msg = f"{where}: {type(exc).__name__}: {exc}"
            raise ModelError(msg) from exc
        if len(found) != len(matrix):
            msg = f"{where}: wanted {len(matrix)} results, got {len(found)}"
            raise ModelError(msg)
        return np.asarray(found)


def _inference(made: Any) -> Any:
    return made.inference if isinstance(made, PredictionResult) else made
