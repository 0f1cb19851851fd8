"""ONNX models on onnxruntime, which is imported when the first model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamml.errors import ModelError
from streamml.models.runtime import failure
from streamml.models.signature import Array, TensorSpec, check_inputs, zeros
from streamml.models.threads import Lease, budget

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

    By default it computes on the calling thread: micro-batches are too small to be worth sharing out, and each worker
    has a core of its own.

    Args:
        path: the file.
        threads: threads inside one operation, the calling one included; no more than the process has left of its
            budget, see `streamml.models.threads`.
        providers: execution providers, the preferred one first; one that is not there is an error.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.path = Path(path)
        self._threads = threads
        self._providers = list(providers)
        self._lease: Lease | None = None
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
        there = ort.get_available_providers()
        if missing := [name for name in self._providers if name not in there]:
            msg = (
                f"model {self.path.name}: this onnxruntime has no {missing[0]}; it has {', '.join(there)}; "
                "install the onnxruntime package that has it, or name another provider"
            )
            raise ModelError(msg)
        self.close()
        lease = budget().lease(self._threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = lease.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the core alone
        options.log_severity_level = 4  # errors are raised; what it logs would go past the caller to standard error
        try:
            session = ort.InferenceSession(str(self.path), options, providers=self._providers)
            self._inputs = tuple(_spec(self.path, node) for node in session.get_inputs())
            self._outputs = tuple(_spec(self.path, node) for node in session.get_outputs())
        except ModelError:
            lease.close()
            raise
        except Exception as exc:  # onnxruntime has an exception class of its own for each kind of broken file
            lease.close()
            msg = f"model {self.path}: onnxruntime {ort.__version__} can't load it ({exc}); export or restore it"
            raise ModelError(msg) from exc
        self._lease = lease
        self._names = [spec.name for spec in self._outputs]
        self._session = session

    def warm_up(self, rows: Sequence[int] = (1, 256)) -> None:
        for count in rows:
            self.predict({spec.name: zeros(spec, count) for spec in self._inputs})

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            msg = f"model {self.path.name}: predict was called before load or after close; call load first"
            raise ModelError(msg)
        try:
            found = self._session.run(self._names, dict(inputs))
        except Exception as exc:  # it checks names, types and shapes; the message is made here
            model = f"model {self.path.name}"
            check_inputs(model, self._inputs, inputs)
            raise failure(model, inputs, exc) from exc
        return dict(zip(self._names, found, strict=True))

    def close(self) -> None:
        self._session = None
        if self._lease is not None:
            self._lease.close()
            self._lease = None


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
