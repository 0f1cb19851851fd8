"""The input example of an MLflow model as arrays: the golden rows of its bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array

__all__ = ["Example", "example_of"]

_MOST = 256
"""Rows of an example that are kept."""


class Example(NamedTuple):
    """Typical rows.

    Attributes:
        arrays: by column for a table, by input for arrays; the empty name stands for the only input.
        columns: columns of a table in order, none for arrays.
    """

    arrays: dict[str, Array]
    columns: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return min((len(array) if array.ndim else 0 for array in self.arrays.values()), default=0)


def example_of(where: str, kind: str, content: Any) -> Example:
    """Read an example as MLflow writes it.

    Args:
        where: what messages name.
        kind: its type as the model's description says: `dataframe`, `ndarray`, `json_object`.
        content: the content of its file.

    Raises:
        ModelError: it is of a type that has no rows, or is cut short.

    >>> example_of("m", "dataframe", {"columns": ["a", "b"], "data": [[1.0, 2], [3.0, 4]]}).columns
    ('a', 'b')
    >>> example_of("m", "ndarray", [[1.0, 2.0]]).arrays[""].shape
    (1, 2)
    """
    found: Example | None = None
    try:
        if kind == "dataframe":
            found = _table(content)
        elif kind in ("ndarray", "json_object"):
            if isinstance(content, Mapping) and set(content) in ({"inputs"}, {"inputs", "params"}):
                content = content["inputs"]
            named = content if isinstance(content, Mapping) else {"": content}
            found = Example({str(name): _array(values) for name, values in named.items()}, ())
    except (KeyError, TypeError, ValueError) as exc:
        msg = f"{where}: its input example can't be read as a {kind} ({type(exc).__name__}: {exc}); log it anew"
        raise ModelError(msg) from exc
    if found is None:
        msg = f"{where}: its input example is a {kind or 'text'}; log it with a DataFrame or arrays as input_example"
        raise ModelError(msg)
    if not found.rows:
        msg = f"{where}: its input example has no rows; log it with some dozens of typical ones as input_example"
        raise ModelError(msg)
    return Example({name: array[:_MOST] for name, array in found.arrays.items()}, found.columns)


def _table(content: Any) -> Example:
    if isinstance(content, Sequence):  # by records
        content = {"columns": list(content[0]), "data": [[row[name] for name in content[0]] for row in content]}
    columns = tuple(map(str, content["columns"]))
    by_column = zip(*content["data"], strict=True)
    return Example({name: _array(list(v)) for name, v in zip(columns, by_column, strict=True)}, columns)


def _array(values: Any) -> Array:
    """Return values as an array: numbers, with NaN for what is missing, truth values, or text as objects."""
    array = np.asarray(values)
    if array.dtype.kind == "O":
        given = np.asarray(values, dtype=object)
        if odd := [each for each in given.reshape(-1).tolist() if not isinstance(each, int | float | None)]:
            msg = f"wanted numbers, or texts without gaps, got {odd[0]!r}"
            raise TypeError(msg)
        return given.astype(np.float64)
    return array.astype(object) if array.dtype.kind == "U" else array
