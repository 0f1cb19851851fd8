"""The vectorised function around a model, as the workers run it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyflink.table import FunctionContext, ScalarFunction

from streamml.errors import ModelError, PlanError

__all__ = ["ModelFunction"]


class ModelFunction(ScalarFunction):
    """Scores columns with a bundle.

    A row that fails is found by halving the batch, and gets NULL; the others are scored.

    Args:
        folder: the bundle, as a worker finds it.
        features: its features in order, with the type of each in the model.
        outputs: name of the output of each field of the result.
        row: return a row of all fields, not the one value.
        missing: hand NULL to the model as NaN.
    """

    def __init__(
        self, folder: str, features: Mapping[str, str], outputs: Mapping[str, str], *, row: bool, missing: bool
    ) -> None:
        self._folder = folder
        self._integers = ["int" in dtype for dtype in features.values()]
        self._features = tuple(features)
        self._outputs = dict(outputs)
        self._row = row
        self._missing = missing

    def open(self, function_context: FunctionContext) -> None:
        """Load, check and warm up the model."""
        from streamml.models import open_model

        self._model = open_model(self._folder)
        self._scored, self._errors = _counters(function_context, f"{self._model.name}:{self._model.version}")

    def close(self) -> None:
        """Release the model."""
        self._model.close()

    def eval(self, *columns: Any) -> Any:
        """Return the results for columns of a batch."""
        import pandas as pd

        if len(columns) != len(self._features):
            said = ", ".join(self._features)
            msg = f"{self._model.where}: wanted {len(self._features)} arguments ({said}), got {len(columns)}"
            raise PlanError(msg)
        rows = max((len(column) for column in columns if isinstance(column, pd.Series)), default=1)
        series = [column if isinstance(column, pd.Series) else pd.Series([column] * rows) for column in columns]
        kept = np.ones(rows, bool)
        for column in series if not self._missing else ():
            kept &= column.notna().to_numpy()
        places: list[int] = np.flatnonzero(kept).tolist()
        values = [column[kept].tolist() for column in series]
        values = [_whole(column) if whole else column for column, whole in zip(values, self._integers, strict=True)]
        found: dict[str, list[Any]] = {field: [None] * rows for field in self._outputs}
        scored = self._score(values, places, found) if places else 0
        self._scored.inc(scored)
        self._errors.inc(rows - scored)
        made = {field: pd.Series(results, dtype=object) for field, results in found.items()}
        return pd.DataFrame(made) if self._row else next(iter(made.values()))

    def _score(self, columns: list[list[Any]], places: list[int], found: dict[str, list[Any]]) -> int:
        """Put the results of rows at their places; returns how many rows could be scored."""
        try:
            results = self._model.predict(self._model.matrix(columns), len(places))
            made = {field: results[output] for field, output in self._outputs.items()}
            for values in made.values():
                if isinstance(values[0], float) and not math.isfinite(sum(values)):
                    msg = f"{self._model.where}: an output is not a number"
                    raise ModelError(msg)
        except Exception:  # whatever a model raises: the rows that it fails on are found, and counted
            if len(places) == 1:
                return 0
            middle = len(places) // 2
            halves = ((slice(0, middle), places[:middle]), (slice(middle, None), places[middle:]))
            return sum(self._score([column[part] for column in columns], half, found) for part, half in halves)
        for field, values in made.items():
            column = found[field]
            for place, value in zip(places, values, strict=True):
                column[place] = value
        return len(places)


class _Uncounted:
    """A counter where Flink has switched off the metrics of Python."""

    def inc(self, n: int = 1) -> None:
        pass


def _counters(context: FunctionContext, version: str) -> tuple[Any, Any]:
    try:
        group = context.get_metric_group().add_group("model", version)
    except RuntimeError:  # python.metric.enabled is false
        return _Uncounted(), _Uncounted()
    return group.counter("streamml_model_scored_total"), group.counter("streamml_model_errors_total")


def _whole(values: list[Any]) -> list[Any]:
    """Return whole numbers, which come as floats where some are NULL, as whole numbers again."""
    return [int(value) if type(value) is float and value.is_integer() else value for value in values]
