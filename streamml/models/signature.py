"""How the inputs and outputs of a model are described, and how features are given to inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamml.errors import ModelError, suggest

__all__ = ["Array", "TensorSpec", "check_inputs", "listed", "specs_of", "with_features", "zeros"]

Array = npt.NDArray[Any]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named input or output of a model.

    Attributes:
        name: its name in the graph.
        dtype: NumPy name of its type (`float32`, `int64`, ...), or `str`.
        shape: sizes by dimension; None is any size, and is the batch in the first place.
        features: for a matrix input the feature of each column in order; for an input that is one column, its
            feature; empty for outputs and for inputs that are not made of columns.

    >>> str(TensorSpec("x", "float32", (None, 2)))
    'x: float32[?, 2]'
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if n is None else str(n) for n in self.shape)}]"

    def fits(self, array: Array) -> bool:
        """Return whether an array has this type and shape.

        >>> import numpy as np
        >>> spec = TensorSpec("x", "float32", (None, 2))
        >>> spec.fits(np.zeros((5, 2), np.float32)), spec.fits(np.zeros((5, 3), np.float32))
        (True, False)
        """
        kind = "str" if array.dtype.kind in "UO" else array.dtype.name
        return (
            kind == self.dtype
            and array.ndim == len(self.shape)
            and all(want is None or want == got for want, got in zip(self.shape, array.shape, strict=True))
        )


def listed(specs: Iterable[TensorSpec]) -> str:
    """Write inputs or outputs for a message."""
    return ", ".join(map(str, specs))


def specs_of(arrays: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """Describe arrays whose first dimension is the batch.

    >>> import numpy as np
    >>> str(specs_of({"x": np.zeros((5, 2), np.float32)})[0])
    'x: float32[?, 2]'
    """
    return tuple(
        TensorSpec(name, "str" if a.dtype.kind in "UO" else a.dtype.name, (None, *a.shape[1:])[: a.ndim])
        for name, a in arrays.items()
    )


def zeros(spec: TensorSpec, rows: int) -> Array:
    """Return zeros (or empty texts) for an input: `rows` of them, and one in each other dimension of any size."""
    shape = [rows if n is None and axis == 0 else n or 1 for axis, n in enumerate(spec.shape)]
    return np.full(shape, "", dtype=object) if spec.dtype == "str" else np.zeros(shape, dtype=spec.dtype)


def check_inputs(where: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raise the error that names what does not fit; return nothing when all inputs fit.

    Raises:
        ModelError: an input is missing, unknown, or of another type or shape.
    """
    known = [spec.name for spec in specs]
    if missing := [name for name in known if name not in inputs]:
        msg = f"{where}: input {missing[0]!r} is missing; wanted {listed(specs)}; got {sorted(inputs)}"
        raise ModelError(msg)
    if unknown := [name for name in inputs if name not in known]:
        msg = f"{where}: there is no input {unknown[0]!r}. {suggest(unknown[0], known)}"
        raise ModelError(msg)
    for spec in specs:
        array = inputs[spec.name]
        if not spec.fits(array):
            got = f"{array.dtype.name}{list(array.shape)}"
            msg = f"{where}: wanted {spec}, got {got}; convert the input, or export the model anew"
            raise ModelError(msg)


def with_features(where: str, inputs: Sequence[TensorSpec], features: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Give features in order to the inputs: to the columns of a matrix, or to inputs of one column each.

    No features at all mean a model whose inputs are not made of columns.

    Raises:
        ModelError: there are more or fewer features than the inputs take, or one twice.

    >>> with_features("model m", [TensorSpec("x", "float32", (None, 2))], ["a", "b"])[0].features
    ('a', 'b')
    """
    if not features:
        return tuple(inputs)
    widths = [spec.shape[1] if len(spec.shape) > 1 else 1 for spec in inputs]
    if widths == [None]:
        widths = [len(features)]
    if None in widths or any(len(spec.shape) not in (1, 2) for spec in inputs):
        msg = (
            f"{where}: wanted one matrix input or inputs of one column each, got {listed(inputs)}; "
            "export the model so, or name no features and call its runtime with arrays"
        )
        raise ModelError(msg)
    sizes = [int(width or 0) for width in widths]
    if sum(sizes) != len(features) or len(set(features)) != len(features):
        msg = (
            f"{where}: wanted {sum(sizes)} different features for {listed(inputs)}, "
            f"got {len(features)}: {', '.join(features)}; name them in the order in which the model was trained"
        )
        raise ModelError(msg)
    spans = pairwise(accumulate(sizes, initial=0))
    return tuple(
        msgspec.structs.replace(spec, features=tuple(features[start:stop]))
        for spec, (start, stop) in zip(inputs, spans, strict=True)
    )
