"""Which runtime serves a model file: by the file's ending, by what the bundle says, or by a description."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamml.errors import ModelError
from streamml.models import describe
from streamml.models.onnx_model import OnnxModel
from streamml.models.policy import Policy
from streamml.models.runtime import ModelRuntime, RuntimeOptions
from streamml.models.signature import TensorSpec

__all__ = ["ENDINGS", "files_of", "make_runtime"]

ENDINGS = {".onnx": "onnx", ".pt": "torchscript", ".pt2": "torch-export", ".json": "description"}
"""Runtime by the ending of a model's file."""
_DEPTH = 5


def make_runtime(
    path: str | Path,
    *,
    runtime: str = "",
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    files: Collection[str] | None = None,
    policy: Policy | None = None,
    options: RuntimeOptions | None = None,
) -> ModelRuntime:
    """Return the runtime for a model file, not yet loaded.

    Args:
        path: the file.
        runtime: one of `ENDINGS`' values; empty: by the file's ending.
        inputs: inputs, for a file that does not say them.
        outputs: outputs, likewise.
        files: names of the files beside it that may be used; None for all.
        policy: which code may run; default: from the environment.
        options: threads, providers, device; default: from the environment.

    Raises:
        ModelError: there is no such runtime, or its code is not allowed.
    """
    maker = _Maker(policy or Policy.from_env(), options or RuntimeOptions.from_env(), files)
    return maker.from_file(Path(path), runtime, inputs, outputs, 0)


def files_of(path: Path) -> list[Path]:
    """Return the files that a description names, and those that theirs name; none for a model that is one file.

    Raises:
        ModelError: a file is named with a path, or is missing.
    """
    if path.suffix != ".json":
        return []
    found: dict[Path, None] = {}
    ahead = [path]
    while ahead:
        at = ahead.pop()
        for name in describe.members(describe.read_description(at)):
            member = _beside(at, name, None)
            if member not in found and member != path:
                found[member] = None
                if member.suffix == ".json":
                    ahead.append(member)
    return list(found)


@dataclass(frozen=True)
class _Maker:
    policy: Policy
    options: RuntimeOptions
    files: Collection[str] | None

    def from_file(
        self, path: Path, runtime: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], depth: int
    ) -> ModelRuntime:
        kind = runtime or ENDINGS.get(path.suffix)
        if kind == "onnx":
            return OnnxModel(path, threads=self.options.threads, providers=self.options.providers)
        if kind == "torchscript":
            from streamml.models.torch_model import TorchScriptModel

            return TorchScriptModel(path, inputs, outputs, policy=self.policy, options=self.options)
        if kind == "torch-export":
            from streamml.models.torch_model import TorchExportModel

            return TorchExportModel(path, policy=self.policy, options=self.options)
        if kind == "description":
            return self.from_description(path, inputs, outputs, depth)
        msg = (
            f"model {path.name}: there is no runtime {runtime!r}; known: {', '.join(ENDINGS.values())}"
            if runtime
            else f"model {path.name}: there is no runtime for such a file; wanted one that ends in "
            f"{', '.join(ENDINGS)} (pickles are never loaded: convert them with streamml.models.to_onnx)"
        )
        raise ModelError(msg)

    def from_description(
        self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], depth: int
    ) -> ModelRuntime:
        if depth == _DEPTH:
            msg = f"model {path}: descriptions that name each other more than {_DEPTH} deep; do they go round?"
            raise ModelError(msg)
        said = describe.read_description(path)
        title, options = f"model {path.name}", self.options
        inputs, outputs = said.inputs or inputs, said.outputs or outputs

        def beside(name: str) -> Path:
            return _beside(path, name, self.files)

        def member(name: str) -> ModelRuntime:
            return self.from_file(beside(name), "", (), (), depth + 1)

        match said:
            case describe.PythonCode():
                from streamml.models.callable_model import CallableModel

                return CallableModel(
                    said.function, inputs, outputs, arguments=said.arguments, policy=self.policy, title=title
                )
            case describe.TorchFile():
                from streamml.models.torch_model import TorchScriptModel

                return TorchScriptModel(beside(said.file), inputs, outputs, policy=self.policy, options=options)
            case describe.TorchClass():
                from streamml.models.torch_model import TorchModuleModel

                return TorchModuleModel(
                    said.module,
                    beside(said.state),
                    inputs,
                    outputs,
                    arguments=said.arguments,
                    policy=self.policy,
                    options=options,
                )
            case describe.RemoteEndpoint():
                from streamml.models.remote import RemoteModel

                return RemoteModel(
                    said.url,
                    said.model,
                    version=said.version,
                    binary=said.binary,
                    timeout=said.timeout,
                    retries=said.retries,
                    token_env=said.token_env,
                    ca=beside(said.ca) if said.ca else None,
                )
            case describe.EnsembleOf():
                from streamml.models.compose import Ensemble

                return Ensemble([member(name) for name in said.members], how=said.how, weights=said.weights)
            case describe.CascadeOf():
                from streamml.models.compose import Cascade

                return Cascade(
                    member(said.first), member(said.second), output=said.output, low=said.low, high=said.high
                )
            case describe.PipelineOf():
                from streamml.models.compose import pipeline_of

                return pipeline_of(member(said.model), said, inputs, outputs, self.policy, title)


def _beside(path: Path, name: str, files: Collection[str] | None) -> Path:
    found = path.parent / name
    if Path(name).name != name or (files is not None and name not in files) or not found.is_file():
        msg = f"model {path.name}: its file {name!r} is missing; wanted it beside the description, without a path"
        raise ModelError(msg)
    return found
