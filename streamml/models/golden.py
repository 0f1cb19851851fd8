"""Golden rows: inputs, and the outputs that the model gave for them when its bundle was made."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array, TensorSpec

__all__ = ["GOLDEN", "aligned", "difference", "read_arrays", "read_golden", "write_golden"]

GOLDEN = "golden.npz"


def write_golden(folder: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write golden rows into a bundle's folder."""
    arrays = {f"input:{key}": array for key, array in inputs.items()}
    arrays |= {f"output:{key}": array for key, array in outputs.items()}
    stored: dict[str, Any] = {key: a.astype(str) if a.dtype.kind == "O" else a for key, a in arrays.items()}
    np.savez(folder / GOLDEN, **stored)


def aligned(inputs: Sequence[TensorSpec], golden: Mapping[str, Array]) -> dict[str, Array]:
    """Return golden rows as the inputs take them: columns by feature as matrices, numbers of another type converted.

    What can't be made to fit stays as it is, for the model to refuse.

    >>> x = TensorSpec("x", "float32", (None, 2), ("a", "b"))
    >>> aligned([x], {"b": np.array([2.0]), "a": np.array([1.0])})["x"].tolist()
    [[1.0, 2.0]]
    """
    features = {feature for spec in inputs for feature in spec.features}
    if features and features <= set(golden):
        golden = {spec.name: np.stack([golden[name].reshape(-1) for name in spec.features], axis=1) for spec in inputs}
    specs = {spec.name: spec for spec in inputs}
    return {name: _fitted(specs[name], array) if name in specs else array for name, array in golden.items()}


def _fitted(spec: TensorSpec, array: Array) -> Array:
    """Convert numbers to the input's type where no meaning is lost, and a column to its shape."""
    if (
        array.dtype.kind in "iufb"
        and spec.dtype != "str"
        and (np.can_cast(array.dtype, spec.dtype, "same_kind") or np.dtype(spec.dtype).kind == "f")
    ):
        array = array.astype(spec.dtype)
    if array.ndim == 2 and len(spec.shape) == 1 and array.shape[1] == 1:
        return array.reshape(-1)
    return array.reshape(-1, 1) if array.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] in (1, None) else array


def read_golden(where: str, folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the golden inputs and their expected outputs.

    Raises:
        ModelError: they can't be read.
    """
    arrays = read_arrays(where, folder / GOLDEN)
    inputs, outputs = (
        {n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)} for p in ("input:", "output:")
    )
    return inputs, outputs


def read_arrays(where: str, path: Path) -> dict[str, Array]:
    """Read the arrays of an `.npz` file, text as objects; a pickle in it is refused.

    Raises:
        ModelError: they can't be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as exc:
        msg = f"{where}: {path.name} can't be read ({exc}); restore it"
        raise ModelError(msg) from exc
    return {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in arrays.items()}


def difference(expected: Array | None, found: Array, tolerance: float) -> str | None:
    """Say how an output differs from what was expected; None when it does not.

    >>> difference(np.array([1.0, 2.0]), np.array([1.0, 2.5]), 1e-5)
    '1 of 2 values differ, first at [1]: wanted 2.0, got 2.5'
    """
    if expected is None or expected.shape != found.shape:
        return f"wanted shape {None if expected is None else expected.shape}, got {found.shape}"
    if found.dtype.kind in "fiu" and expected.dtype.kind in "fiu":
        wrong = ~np.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        wrong = found.astype(str) != expected.astype(str)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{wrong.sum()} of {wrong.size} values differ, first at {list(at)}: wanted {expected[at]}, got {found[at]}"
