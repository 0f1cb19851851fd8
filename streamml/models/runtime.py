"""What every model runtime offers, and what those have in common whose files do not describe themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from streamml.errors import ModelError, ModelMemoryError
from streamml.models.signature import Array, TensorSpec, check_inputs, listed, zeros

__all__ = ["BaseRuntime", "ModelRuntime", "RuntimeOptions", "failure"]


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
            ModelMemoryError: the batch needs more memory than there is.
            ModelError: an input is missing, unknown, or of another type or shape; or the model fails.
        """
        ...

    def close(self) -> None:
        """Release the model. May be called twice."""
        ...


@dataclass(frozen=True)
class RuntimeOptions:
    """How models run on this machine; nothing of it changes what they compute, but for the rounding of a device.

    Args:
        threads: threads that one call may use, its own included; no more than the process has left of its budget,
            see `streamml.models.threads`.
        providers: execution providers of onnxruntime, the preferred one first.
        device: device of PyTorch, such as `cpu` or `cuda:0`.

    >>> RuntimeOptions.from_env({"STREAMML_MODEL_THREADS": "2"}).threads
    2
    """

    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.providers:
            msg = f"runtime options: wanted at least one thread and one provider, got {self}"
            raise ModelError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `STREAMML_MODEL_THREADS`, `STREAMML_ONNX_PROVIDERS` (with commas) and `STREAMML_TORCH_DEVICE`."""
        threads = environ.get("STREAMML_MODEL_THREADS") or "1"
        if not threads.isdecimal():
            msg = f"STREAMML_MODEL_THREADS: wanted a number, got {threads!r}"
            raise ModelError(msg)
        names = environ.get("STREAMML_ONNX_PROVIDERS") or "CPUExecutionProvider"
        providers = tuple(name.strip() for name in names.split(",") if name.strip())
        return cls(int(threads), providers, environ.get("STREAMML_TORCH_DEVICE") or "cpu")


_NO_MEMORY = ("bad allocation", "bad_alloc", "failed to allocate memory", "can't allocate memory", "out of memory")


def failure(model: str, inputs: Mapping[str, Array], exc: Exception) -> ModelError:
    """Return the error to raise for what a runtime raised: one that tells a lack of memory from all others."""
    shapes = ", ".join(f"{name}{list(np.shape(array))}" for name, array in inputs.items())
    said = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    text = said.lower()
    if isinstance(exc, MemoryError) or "outofmemory" in text or any(sign in text for sign in _NO_MEMORY):
        return ModelMemoryError(f"{model}: out of memory on {shapes} ({said}); score fewer rows at once")
    return ModelError(f"{model}: failed on {shapes} ({said}); see whether the rows or the model are at fault")


class BaseRuntime:
    """A runtime that is told its inputs and outputs. A subclass writes `_load`, `_run` and `_close`.

    Args:
        title: how messages name the model.
        inputs: its inputs; empty: they are not checked, which is for making a bundle only.
        outputs: its outputs; as above.
    """

    def __init__(self, title: str, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()) -> None:
        self.title = title
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._loaded = False

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._outputs

    def load(self) -> None:
        self._load()
        self._loaded = True

    def warm_up(self, rows: Sequence[int] = (1, 256)) -> None:
        for count in rows:
            self.predict({spec.name: zeros(spec, count) for spec in self._inputs})

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not self._loaded:
            msg = f"{self.title}: predict was called before load or after close; call load first"
            raise ModelError(msg)
        if self._inputs:
            check_inputs(self.title, self._inputs, inputs)
        try:
            found = self._run(inputs)
        except ModelError:
            raise
        except Exception as exc:
            raise failure(self.title, inputs, exc) from exc
        return self._named(found)

    def close(self) -> None:
        if self._loaded:
            self._loaded = False
            self._close()

    def _load(self) -> None:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        """Return the outputs: by name, or one array, or a sequence of arrays in the order of the outputs."""
        raise NotImplementedError

    def _close(self) -> None:
        """Release what `_load` took."""

    def _named(self, found: Any) -> dict[str, Array]:
        """Return the outputs by name, each of its type and shape."""
        if not isinstance(found, Mapping):
            arrays = list(found) if isinstance(found, list | tuple) else [found]
            names = [spec.name for spec in self._outputs]
            names = names or (["output"] if len(arrays) == 1 else [f"output_{i}" for i in range(len(arrays))])
            if len(names) != len(arrays):
                msg = f"{self.title}: wanted the outputs {listed(self._outputs)}, got {len(arrays)} arrays without name"
                raise ModelError(msg)
            found = dict(zip(names, arrays, strict=True))
        if odd := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
            msg = f"{self.title}: output {odd[0]!r}: wanted a NumPy array, got {type(found[odd[0]]).__name__}"
            raise ModelError(msg)
        for spec in self._outputs:
            if spec.name not in found:
                msg = f"{self.title}: output {spec.name!r} is missing; got {', '.join(found) or 'none'}"
                raise ModelError(msg)
            if not spec.fits(found[spec.name]):
                array = found[spec.name]
                msg = f"{self.title}: wanted output {spec}, got {array.dtype.name}{list(array.shape)}"
                raise ModelError(msg)
        return {spec.name: found[spec.name] for spec in self._outputs} if self._outputs else dict(found)
