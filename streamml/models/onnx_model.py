"""ONNX models on onnxruntime, which is imported when the first model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array, TensorSpec, check_inputs

__all__ = ["OnnxModel"]

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "str",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxModel:
    """A model in an `.onnx` file, with any number of named inputs and outputs.

    It computes on the calling thread: micro-batches are too small to be worth sharing out, and each worker has a
    core of its own.

    Args:
        path: the file.
        intra_threads: threads inside one operation.
        inter_threads: operations at the same time.
    """

    def __init__(self, path: str | Path, *, intra_threads: int = 1, inter_threads: int = 1) -> None:
        self.path = Path(path)
        self._threads = (intra_threads, inter_threads)
        self._session: Any = None
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._names: list[str] = []

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._outputs

    def load(self) -> None:
        try:
            import onnxruntime as ort
        except ImportError as exc:
            msg = (
                f"model {self.path.name}: needs onnxruntime, which is not installed; run: pip install 'streamml[onnx]'"
            )
            raise ModelError(msg) from exc
        if not self.path.is_file():
            msg = f"model {self.path}: there is no such file; name an .onnx file or a bundle folder"
            raise ModelError(msg)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads
        options.log_severity_level = 3  # errors are raised; warnings would go past the caller to standard error
        try:
            session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime has an exception class of its own for each kind of broken file
            msg = f"model {self.path}: onnxruntime {ort.__version__} can't load it ({exc}); export or restore it"
            raise ModelError(msg) from exc
        self._inputs = tuple(_spec(self.path, node) for node in session.get_inputs())
        self._outputs = tuple(_spec(self.path, node) for node in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self._session = session

    def warm_up(self, rows: Sequence[int] = (1, 256)) -> None:
        for count in rows:
            self.predict({spec.name: _zeros(spec, count) for spec in self._inputs})

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            msg = f"model {self.path.name}: predict was called before load or after close; call load first"
            raise ModelError(msg)
        try:
            found = self._session.run(self._names, dict(inputs))
        except Exception as exc:  # it checks names, types and shapes; the message is made here
            check_inputs(f"model {self.path.name}", self._inputs, inputs)
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in inputs.items())
            msg = f"model {self.path.name}: failed on {shapes} ({exc}); see whether the rows or the graph are at fault"
            raise ModelError(msg) from exc
        return dict(zip(self._names, found, strict=True))

    def close(self) -> None:
        self._session = None


def _spec(path: Path, node: Any) -> TensorSpec:
    kind = str(node.type)
    dtype = _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")")) if kind.startswith("tensor(") else None
    if dtype is None:
        msg = (
            f"model {path}: {node.name!r} is a {kind}, wanted a tensor of numbers, truth values or text; "
            "export the classifier without ZipMap (skl2onnx: options={'zipmap': False})"
        )
        raise ModelError(msg)
    return TensorSpec(node.name, dtype, tuple(n if isinstance(n, int) else None for n in node.shape))


def _zeros(spec: TensorSpec, rows: int) -> Array:
    shape = [rows if n is None and axis == 0 else n or 1 for axis, n in enumerate(spec.shape)]
    return np.full(shape, "", dtype=object) if spec.dtype == "str" else np.zeros(shape, dtype=spec.dtype)
