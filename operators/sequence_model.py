"""A loaded model with state tensors, as `InferSequence` calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamml.errors import ModelError, PlanError, RecordError
from streamml.operators.hidden_state import StateTensor

if TYPE_CHECKING:
    from streamml.models import LoadedModel
    from streamml.models.signature import Array, TensorSpec
    from streamml.observability import Metrics
    from streamml.operators.infer_sequence import InferSequence

__all__ = ["SequenceModel"]


class SequenceModel:
    """The model, with what the operator says of its inputs and outputs.

    Args:
        loaded: the model.
        op: the operator.
        metrics: the job's metrics.

    Raises:
        PlanError: the operator names an input or output that the model does not have, or leaves one without a value.
    """

    def __init__(self, loaded: LoadedModel, op: InferSequence, metrics: Metrics | None = None) -> None:
        import numpy as np

        self.loaded = loaded
        self.version = version = f"{loaded.name}:{loaded.version}"
        self.latency = metrics and metrics.histogram("streamml_model_latency_seconds", model=version)
        self.scored = metrics and metrics.counter("streamml_model_scored_total", model=version)
        self.errors = metrics and metrics.counter("streamml_model_errors_total", model=version)
        self._where = where = f"InferSequence({op.model!r})"
        inputs = {spec.name: spec for spec in loaded.inputs}
        outputs = {spec.name: spec for spec in loaded.outputs}
        for name in (*op.inputs, *op.state, *op.constants):
            _known(where, "input", name, inputs)
        for name in (*op.state.values(), *op.outputs.values()):
            _known(where, "output", name, outputs)
        if left := sorted(set(inputs) - {*op.inputs, *op.state, *op.constants}):
            msg = f"{where}: input {inputs[left[0]]} of the model gets no value; name it in inputs, state or constants"
            raise PlanError(msg)
        self._inputs = [inputs[name] for name in op.inputs]
        self._constants = {
            name: np.asarray(value, dtype=inputs[name].dtype).reshape([n or 1 for n in inputs[name].shape])
            for name, value in op.constants.items()
        }
        self._outputs = list(op.outputs.values())
        self.state = [
            StateTensor(where, inputs[name], outputs[output], op.initial.get(name)) for name, output in op.state.items()
        ]
        if op.batch and (fixed := [tensor.name for tensor in self.state if tensor.axis is None]):
            msg = f"{where}: batch=True needs a batch dimension in state {fixed[0]!r}; the model has none, leave it out"
            raise PlanError(msg)

    @property
    def start(self) -> list[Array]:
        """The state tensors of a new key."""
        return [tensor.start for tensor in self.state]

    def arrays(self, values: Sequence[Any]) -> list[Array]:
        """Turn the values of the input fields into arrays for a batch of one.

        Raises:
            RecordError: a value does not fit its input.
        """
        return [_array(self.version, spec, value) for spec, value in zip(self._inputs, values, strict=True)]

    def call(self, rows: Sequence[tuple[list[Array], Sequence[Array]]]) -> list[tuple[list[Array], list[Any]]]:
        """Call the model once; for each row's inputs and state tensors, return its next ones and its outputs.

        Raises:
            ModelError: the model fails, or returns what is not asked of it.
        """
        import numpy as np

        count = len(rows)
        given = dict(self._constants)
        for at, spec in enumerate(self._inputs):
            parts = [inputs[at] for inputs, _ in rows]
            given[spec.name] = parts[0] if count == 1 else np.concatenate(parts)
        for at, tensor in enumerate(self.state):
            given[tensor.name] = tensor.join([tensors[at] for _, tensors in rows])
        found = self.loaded.runtime.predict(given)
        state = [tensor.split(self.version, found[tensor.output], count) for tensor in self.state]
        outputs = [self._values(name, found[name], count) for name in self._outputs]
        return [([part[row] for part in state], [part[row] for part in outputs]) for row in range(count)]

    def _values(self, name: str, found: Array, rows: int) -> list[Any]:
        """Return an output row by row as plain values."""
        import numpy as np

        if found.dtype.kind == "f" and not np.isfinite(found).all():
            msg = f"{self.version}: output {name!r} is not finite"
            raise ModelError(msg)
        first = found.ndim > 0 and len(found) == rows
        if rows > 1 and not first:
            msg = (
                f"{self.version}: output {name!r}: wanted {rows} rows, got shape {list(found.shape)}; "
                "leave batch=True out, or export the model with the batch first"
            )
            raise ModelError(msg)
        parts = found if first else [found]
        return [part.item() if part.size == 1 else part.tolist() for part in parts]


def _known(where: str, what: str, name: str, specs: Mapping[str, TensorSpec]) -> None:
    if name not in specs:
        raise PlanError.unknown(where, f"{what} of the model", name, specs)


def _array(where: str, spec: TensorSpec, value: Any) -> Array:
    import numpy as np

    text = spec.dtype == "str"
    try:
        array = np.asarray(value, dtype=object if text else None)
    except ValueError as exc:
        msg = f"{where}: input {spec}: wanted numbers, got lists of different lengths ({exc})"
        raise RecordError(msg) from exc
    kinds = "O" if text else "biuf" if spec.dtype.startswith("float") else "biu"
    if array.dtype.kind not in kinds or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        msg = f"{where}: input {spec}: wanted finite numbers of that type, got {_shown(value)}"
        raise RecordError(msg)
    array = array if text else array.astype(spec.dtype, copy=False)
    array = array.reshape((1,) * (len(spec.shape) - array.ndim) + array.shape)
    if not spec.fits(array):
        msg = f"{where}: wanted {spec}, got {list(array.shape)} for one event; give a value of that shape"
        raise RecordError(msg)
    return array


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
