"""Inputs that are arrays, one for each row and input: of one shape, or of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamml.errors import ModelError, suggest
from streamml.models.buckets import Buckets
from streamml.models.loaded import LoadedModel
from streamml.models.signature import Array, TensorSpec

__all__ = ["Tensors"]

Group = tuple[list[int], dict[str, Array]]
"""Rows, and the inputs for them."""


class Tensors:
    """Turns columns of arrays (or lists) into the inputs of a model.

    Args:
        model: the model.
        names: the input that each column is for.
        buckets: lengths that rows are padded to, for inputs with a dimension of any size beside the batch.
        lengths: the input that takes the rows' own lengths, if there is one.

    Raises:
        ModelError: the model has other inputs, or one of any length and there are no buckets.
    """

    def __init__(
        self, model: LoadedModel, names: Sequence[str], buckets: Sequence[int] = (), lengths: str = ""
    ) -> None:
        self._where = model.where
        specs = {spec.name: spec for spec in model.inputs}
        for name in (*names, *([lengths] if lengths else [])):
            if name not in specs:
                msg = f"{model.where}: there is no input {name!r}. {suggest(name, specs)}"
                raise ModelError(msg)
        if missing := [name for name in specs if name not in names and name != lengths]:
            msg = f"{model.where}: nothing is given for input {missing[0]!r}; name a field or a constant for it"
            raise ModelError(msg)
        self._specs = [specs[name] for name in names]
        self._lengths = specs[lengths] if lengths else None
        self._free = [None in spec.shape[1:] for spec in self._specs]
        if any(spec.shape[2:].count(None) for spec in self._specs):
            msg = f"{model.where}: wanted inputs of which only the first two dimensions may have any size"
            raise ModelError(msg)
        if any(self._free) != bool(buckets):
            free = ", ".join(str(spec) for spec, free in zip(self._specs, self._free, strict=True) if free) or "none"
            msg = (
                f"{model.where}: inputs of any length: {free}; give buckets=(16, 32, ...) if and only if there are some"
            )
            raise ModelError(msg)
        self._buckets = Buckets(buckets) if buckets else None

    def groups(self, columns: Sequence[Sequence[Any]], rows: int) -> tuple[list[Group], dict[int, ModelError]]:
        """Return the rows that can be scored together with their inputs, and why other rows can't be scored.

        Args:
            columns: for each input a value for each row; constants too.
            rows: how many rows.
        """
        good: list[int] = []
        values: list[list[Array]] = []
        bad: dict[int, ModelError] = {}
        for row in range(rows):
            try:
                values.append(self._row([column[row] for column in columns]))
            except (ModelError, TypeError, ValueError, OverflowError) as exc:
                bad[row] = exc if isinstance(exc, ModelError) else ModelError(f"{self._where}: {exc}")
            else:
                good.append(row)
        if not good:
            return [], bad
        if self._buckets is None:
            return [(good, self._stack(values, range(len(good)), None, None))], bad
        first = self._free.index(True)
        found = []
        for bucket in self._buckets.groups([row[first] for row in values]):
            inputs = self._stack(values, bucket.rows, bucket.batch.shape[1], bucket.lengths)
            found.append(([good[place] for place in bucket.rows], inputs))
        return found, bad

    def _row(self, values: Sequence[Any]) -> list[Array]:
        """Return the arrays of one row."""
        made: list[Array] = []
        length: int | None = None
        for spec, free, value in zip(self._specs, self._free, values, strict=True):
            if value is None:
                msg = f"{self._where}: input {spec.name!r} is missing"
                raise ModelError(msg)
            array = np.asarray(value, dtype=object if spec.dtype == "str" else spec.dtype)
            if not _fits(spec, array):
                msg = f"{self._where}: wanted {spec} without the batch, got {array.dtype}{list(array.shape)}"
                raise ModelError(msg)
            if free:
                if length is not None and len(array) != length:
                    msg = (
                        f"{self._where}: input {spec.name!r}: wanted {length} values as in the other, got {len(array)}"
                    )
                    raise ModelError(msg)
                length = len(array)
                if self._buckets is not None and length > self._buckets.lengths[-1]:
                    msg = (
                        f"{self._where}: input {spec.name!r}: wanted at most {self._buckets.lengths[-1]} values, got "
                        f"{length}; cut it, or add a longer bucket"
                    )
                    raise ModelError(msg)
            made.append(array)
        return made

    def _stack(
        self, values: list[list[Array]], places: Sequence[int], length: int | None, lengths: Array | None
    ) -> dict[str, Array]:
        inputs: dict[str, Array] = {}
        for at, (spec, free) in enumerate(zip(self._specs, self._free, strict=True)):
            column = [values[place][at] for place in places]
            if not spec.shape:
                inputs[spec.name] = column[0]
            elif not free:
                inputs[spec.name] = np.stack(column)
            else:
                padded = np.zeros((len(column), length or 0, *column[0].shape[1:]), column[0].dtype)
                for row, array in enumerate(column):
                    padded[row, : len(array)] = array
                inputs[spec.name] = padded
        if self._lengths is not None and lengths is not None:
            inputs[self._lengths.name] = lengths.astype(self._lengths.dtype)
        return inputs


def _fits(spec: TensorSpec, array: Array) -> bool:
    """Return whether an array is one row of an input; an input without a batch takes one value for all rows."""
    shape = spec.shape[1:]
    return array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
