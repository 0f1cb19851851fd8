"""PyTorch models: TorchScript files, `torch.export` archives, and modules of the user's own with their weights.

torch is imported when the first of them is loaded. TorchScript and `.pt2` files are programs, and reading a `.pt2`
archive can run Python code, so both are refused until the policy allows `torch.jit` or `torch.export`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.code import import_named
from streamml.models.policy import Policy
from streamml.models.runtime import BaseRuntime, RuntimeOptions
from streamml.models.signature import Array, TensorSpec, specs_of, zeros
from streamml.models.threads import Lease, budget

__all__ = ["TorchExportModel", "TorchModuleModel", "TorchScriptModel", "export"]


class _TorchModel(BaseRuntime):
    """What the three share: how arrays become tensors and back, on which device and on how many threads.

    Inputs go by name where all of them are arguments of the module's `forward`, else in their order.
    """

    def __init__(
        self,
        title: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        policy: Policy | None,
        options: RuntimeOptions | None,
    ) -> None:
        super().__init__(title, inputs, outputs)
        self._policy = policy or Policy.from_env()
        self._options = options or RuntimeOptions.from_env()
        self._torch: Any = None
        self._module: Any = None
        self._by_name: Sequence[str] = ()
        self._lease: Lease | None = None

    def _read(self) -> tuple[Any, Sequence[str]]:
        """Return the module, and the names of the inputs that go by name."""
        raise NotImplementedError

    def _load(self) -> None:
        self._torch = _torch(self.title)
        self._module, self._by_name = self._read()
        self._lease = budget().lease(self._options.threads)

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        torch, threads = self._torch, self._lease.threads if self._lease else 1
        if torch.get_num_threads() != threads:  # it holds for the calling thread
            torch.set_num_threads(threads)
        with torch.inference_mode():
            names = [spec.name for spec in self._inputs] or list(inputs)
            tensors = {name: self._tensor(inputs[name]) for name in names}
            named = [name for name in names if name in self._by_name]
            found = self._module(
                *(tensor for name, tensor in tensors.items() if name not in named),
                **{name: tensors[name] for name in named},
            )
        if isinstance(found, Mapping):
            return {name: self._array(tensor) for name, tensor in found.items()}
        return [self._array(tensor) for tensor in (found if isinstance(found, list | tuple) else [found])]

    def _named_by(self, arguments: Sequence[str]) -> Sequence[str]:
        return arguments if all(spec.name in arguments for spec in self._inputs) else ()

    def _tensor(self, array: Array) -> Any:
        array = np.ascontiguousarray(array)
        return self._torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._options.device)

    def _array(self, tensor: Any) -> Any:
        if not isinstance(tensor, self._torch.Tensor):
            msg = f"{self.title}: wanted tensors as outputs, got {type(tensor).__name__}; return tensors or a dict"
            raise ModelError(msg)
        try:
            return tensor.detach().cpu().numpy()
        except TypeError as exc:
            msg = f"{self.title}: an output is of {tensor.dtype}, which NumPy has not; convert it in the model ({exc})"
            raise ModelError(msg) from exc

    def _close(self) -> None:
        self._module = None
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def _opened(self, path: Path, read: Callable[[], Any]) -> Any:
        """Read a file, with the errors that say what to do."""
        if not path.is_file():
            msg = f"{self.title}: there is no file {path}; restore it"
            raise ModelError(msg)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript's reader says at each call that it is deprecated
                return read()
        except Exception as exc:  # each reader has exceptions of its own, down to RuntimeError and KeyError
            text = str(exc).strip().partition("\n")[0]
            msg = (
                f"{self.title}: torch {self._torch.__version__} can't read {path.name} ({type(exc).__name__}: {text}); "
                "restore it, or save it anew"
            )
            raise ModelError(msg) from exc


class TorchScriptModel(_TorchModel):
    """A TorchScript file. It must be allowed as `torch.jit`.

    Args:
        path: the file.
        inputs: its inputs, which the file does not say.
        outputs: its outputs, likewise.
        policy: which code may run; default: from the environment.
        options: threads and device; default: from the environment.
    """

    def __init__(
        self,
        path: str | Path,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        *,
        policy: Policy | None = None,
        options: RuntimeOptions | None = None,
    ) -> None:
        self.path = Path(path)
        super().__init__(f"model {self.path.name}", inputs, outputs, policy, options)
        self._policy.check_code(self.title, "torch.jit")

    def _read(self) -> tuple[Any, Sequence[str]]:
        device = self._options.device
        module = self._opened(self.path, lambda: self._torch.jit.load(str(self.path), map_location=device))
        return module.eval(), self._named_by([argument.name for argument in module.forward.schema.arguments])


class TorchExportModel(_TorchModel):
    """An archive of `torch.export` (`.pt2`), which says its inputs and outputs. It must be allowed as `torch.export`.

    Args:
        path: the file.
        policy: which code may run; default: from the environment.
        options: threads and device; default: from the environment.
    """

    def __init__(
        self, path: str | Path, *, policy: Policy | None = None, options: RuntimeOptions | None = None
    ) -> None:
        self.path = Path(path)
        super().__init__(f"model {self.path.name}", (), (), policy, options)
        self._policy.check_code(self.title, "torch.export")

    def _read(self) -> tuple[Any, Sequence[str]]:
        program = self._opened(self.path, lambda: self._torch.export.load(str(self.path)))
        module = program.module()
        if self._options.device != "cpu":
            module = module.to(self._options.device)
        signature, call = program.graph_signature, program.call_spec
        tensors = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs, outputs = list(signature.user_inputs), list(signature.user_outputs)
        given, named = call.in_spec.children()
        if given.num_leaves != given.num_children or given.num_children + len(named.context) != len(inputs):
            msg = (
                f"{self.title}: wanted tensors as arguments, got lists or dicts of them; wrap the module and export it"
            )
            raise ModelError(msg)
        names = [*inputs[: given.num_children], *map(str, named.context)]
        self._inputs = tuple(self._spec(name, tensors[key]) for name, key in zip(names, inputs, strict=True))
        results = _output_names(call.out_spec, len(outputs))
        self._outputs = tuple(self._spec(name, tensors[key]) for name, key in zip(results, outputs, strict=True))
        return module, names[given.num_children :]

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        if not isinstance(tensor, self._torch.Tensor):
            msg = f"{self.title}: wanted tensors as inputs and outputs, got a {type(tensor).__name__} as {name!r}"
            raise ModelError(msg)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorSpec(name, dtype, tuple(size if isinstance(size, int) else None for size in tensor.shape))


class TorchModuleModel(_TorchModel):
    """A module class of the user's own, which the policy must allow, with a state dict read with `weights_only=True`.

    Args:
        module: `module:Class`.
        state: file of its state dict, as `torch.save(model.state_dict(), file)` writes it.
        inputs: its inputs.
        outputs: its outputs.
        arguments: keyword arguments with which it is built.
        policy: which code may run; default: from the environment.
        options: threads and device; default: from the environment.
    """

    def __init__(
        self,
        module: str,
        state: str | Path,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        *,
        arguments: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        options: RuntimeOptions | None = None,
    ) -> None:
        super().__init__(f"model {module}", inputs, outputs, policy, options)
        self.state = Path(state)
        self._name, self._arguments = module, dict(arguments or {})
        self._policy.check_code(self.title, module)

    def _read(self) -> tuple[Any, Sequence[str]]:
        torch, device = self._torch, self._options.device
        built = import_named(self.title, self._name, self._policy)
        weights = self._opened(self.state, lambda: torch.load(self.state, map_location=device, weights_only=True))
        try:
            module = built(**self._arguments)
            module.load_state_dict(weights)
        except Exception as exc:
            msg = f"{self.title}: the weights of {self.state.name} do not fit it, built with {self._arguments} ({exc})"
            raise ModelError(msg) from exc
        return module.to(device).eval(), self._named_by(list(inspect.signature(module.forward).parameters))


def _output_names(tree: Any, count: int) -> list[str]:
    if tree is not None and tree.type is dict and len(tree.context) == count:
        return [str(name) for name in tree.context]
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def export(module: Any, rows: Mapping[str, Array], path: Path) -> Path:
    """Write a module as a `torch.export` archive whose batch may be of any size.

    Args:
        module: the `torch.nn.Module`; it is exported in evaluation mode, and left as it is.
        rows: at least two rows of its inputs, by the names of `forward`'s arguments.
        path: where to write.

    Raises:
        ModelError: it can't be exported so.
    """
    title = f"exporting {type(module).__name__}"
    torch = _torch(title)
    specs = specs_of(rows)
    arguments = list(inspect.signature(module.forward).parameters)
    if unknown := [spec.name for spec in specs if spec.name not in arguments]:
        msg = f"{title}: forward has no argument {unknown[0]!r}; it has {', '.join(arguments)}"
        raise ModelError(msg)
    given = {spec.name: torch.from_numpy(zeros(spec, 2)) for spec in specs}
    batch = {spec.name: {0: torch.export.Dim("batch")} if spec.shape else None for spec in specs}
    training = module.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), (), given, dynamic_shapes=batch)
            torch.export.save(program, str(path))
    except Exception as exc:  # whatever the module's code raises when it is traced
        text = str(exc).strip().partition("\n")[0]
        msg = f"{title}: it can't be exported with a batch of any size ({type(exc).__name__}: {text})"
        raise ModelError(msg) from exc
    finally:
        module.train(training)
    return path


def _torch(title: str) -> Any:
    try:
        import torch
    except ImportError as exc:
        msg = f"{title}: needs torch, which is not installed; run: pip install 'streamml[torch]'"
        raise ModelError(msg) from exc
    return torch
