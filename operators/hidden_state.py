"""The hidden state of a sequence model for one key: its tensors, how they start, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamml.errors import ModelError, PlanError
from streamml.times import MIN_TIME

if TYPE_CHECKING:
    from streamml.models.signature import Array, TensorSpec

__all__ = ["Hidden", "StateTensor", "from_wire", "to_wire"]


class Hidden:
    """What a model remembers of one key.

    Attributes:
        time: newest event time that it has seen.
        version: name and version of the model.
        tensors: its state tensors, in the order in which the operator names them.
    """

    __slots__ = ("tensors", "time", "version")

    def __init__(self, time: int = MIN_TIME, version: str = "", tensors: Sequence[Array] = ()) -> None:
        self.time = time
        self.version = version
        self.tensors = tensors


def to_wire(hidden: Hidden) -> list[Any]:
    r"""Return it as plain data: time, version, and for each tensor its type, its shape and its bytes.

    >>> import numpy as np
    >>> to_wire(Hidden(5, "gru:1", [np.array([[0.5]], np.float32)]))
    [5, 'gru:1', [['float32', [1, 1], b'\x00\x00\x00?']]]
    """
    tensors = [[t.dtype.name, list(t.shape), t.astype(t.dtype.newbyteorder("<")).tobytes()] for t in hidden.tensors]
    return [hidden.time, hidden.version, tensors]


def from_wire(wire: list[Any]) -> Hidden:
    r"""Return it from plain data.

    >>> from_wire([5, "gru:1", [["float32", [1, 1], b"\x00\x00\x00?"]]]).tensors[0].tolist()
    [[0.5]]
    """
    import numpy as np

    time, version, tensors = wire
    read = [
        np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
        for dtype, shape, data in tensors
    ]
    return Hidden(time, version, read)


class StateTensor:
    """One state tensor of a model.

    Args:
        where: the operator, for messages.
        spec: the model's input that takes it.
        output: the model's output that gives the next one.
        initial: what it starts with: a number for all, or an array for one key; None for zeros.
    """

    def __init__(self, where: str, spec: TensorSpec, output: TensorSpec, initial: Any) -> None:
        import numpy as np

        self.name, self.output = spec.name, output.name
        free = [axis for axis, size in enumerate(spec.shape) if size is None]
        start = np.asarray(0 if initial is None else initial, dtype=spec.dtype)
        if start.ndim == 0 and spec.shape:
            if len(free) > 1:
                msg = (
                    f"{where}: the model leaves several sizes of state {spec} open; give its first value for one key: "
                    f"initial={{{spec.name!r}: np.zeros((1, ...), np.{spec.dtype})}}"
                )
                raise PlanError(msg)
            start = np.full([1 if size is None else size for size in spec.shape], start, spec.dtype)
        if not spec.fits(start):
            msg = f"{where}: wanted an initial value that fits state {spec}, got shape {list(start.shape)}"
            raise PlanError(msg)
        if output.dtype != spec.dtype or len(output.shape) != len(spec.shape):
            msg = f"{where}: output {output} can't be the next state {spec}; name the output that is"
            raise PlanError(msg)
        self.start: Array = start
        self.axis = next((axis for axis in free if start.shape[axis] == 1), None)
        """The dimension of the batch, None where the model has none."""

    def join(self, tensors: Sequence[Array]) -> Array:
        """Return the tensor of several keys."""
        import numpy as np

        return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=self.axis)

    def split(self, where: str, found: Array, rows: int) -> list[Array]:
        """Return the next tensor of each key.

        Raises:
            ModelError: it has another shape, or values that are no finite numbers.
        """
        import numpy as np

        shape = list(self.start.shape)
        if self.axis is not None:
            shape[self.axis] = rows
        if list(found.shape) != shape:
            msg = (
                f"{where}: output {self.output!r}: wanted shape {shape} as state {self.name!r}, got {list(found.shape)}"
            )
            raise ModelError(msg)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            msg = f"{where}: output {self.output!r}: the next state {self.name!r} is not finite"
            raise ModelError(msg)
        if rows == 1 or self.axis is None:
            return [found.copy()]
        return [part.copy() for part in np.split(found, rows, axis=self.axis)]
