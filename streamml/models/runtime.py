"""What every model runtime offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from streamml.models.signature import Array, TensorSpec

__all__ = ["ModelRuntime"]


class ModelRuntime(Protocol):
    """A model, by arrays. Order of calls: `load` once, `warm_up`, `predict` any number of times, `close`.

    `predict` is called from one thread at a time. Equal rows must give equal bits in a batch of any size, since the
    size of a micro-batch depends on the load.
    """

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Inputs of the model, known after `load`."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Outputs of the model, known after `load`."""
        ...

    def load(self) -> None:
        """Read the model into memory.

        Raises:
            ModelError: the file is not there or is not a model, or the runtime is not installed.
        """
        ...

    def warm_up(self, rows: Sequence[int] = (1, 256)) -> None:
        """Predict zeros in batches of these sizes, so that the first event does not pay for lazy set-up."""
        ...

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name for a batch of rows.

        Raises:
            ModelError: an input is missing, unknown, or of another type or shape; or the model fails.
        """
        ...

    def close(self) -> None:
        """Release the model. May be called twice."""
        ...
