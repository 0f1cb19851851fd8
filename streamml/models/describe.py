"""Model descriptions: `.json` files that say which runtime serves, and with what.

A model that is no single file (an ensemble, a cascade, code, an endpoint) or whose file does not say its inputs is
described by one. Files are named as they lie beside the description, without a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import ModelError
from streamml.models.signature import TensorSpec

__all__ = [
    "CascadeOf",
    "Description",
    "EnsembleOf",
    "PipelineOf",
    "PythonCode",
    "RemoteEndpoint",
    "TorchClass",
    "TorchFile",
    "members",
    "read_description",
    "write_description",
]


class _Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="runtime"):
    """What all descriptions may say: the inputs and outputs, where the model itself can't."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class PythonCode(_Described, frozen=True, tag="python"):
    """A function on named arrays, or a class that is built once and then called.

    Attributes:
        function: `module:name`.
        arguments: keyword arguments with which a class is built.
    """

    function: str
    arguments: dict[str, Any] = {}


class TorchFile(_Described, frozen=True, tag="torchscript"):
    """A TorchScript file, which does not say the types and shapes of its inputs.

    Attributes:
        file: the file.
    """

    file: str


class TorchClass(_Described, frozen=True, tag="torch-module"):
    """A PyTorch module of the user's own, with its weights.

    Attributes:
        module: `module:Class`.
        arguments: keyword arguments with which it is built.
        state: file of its state dict, loaded with `weights_only=True`.
    """

    module: str
    state: str
    arguments: dict[str, Any] = {}


class RemoteEndpoint(_Described, frozen=True, tag="remote"):
    """A model behind the KServe v2 (Triton) inference protocol.

    Attributes:
        url: `http://host:port`, `https://...`, `grpc://host:port` or `grpcs://...`.
        model: its name there.
        version: its version there, empty for the one that the server chooses.
        binary: send tensors by the binary extension of HTTP, where the server has it.
        timeout: seconds for one call with all its retries.
        retries: how often a call is tried again.
        token_env: environment variable that holds the bearer token, empty for none.
        ca: file of the certificates to trust, empty for those of the system.
    """

    url: str
    model: str
    version: str = ""
    binary: bool = True
    timeout: float = 5.0
    retries: int = 3
    token_env: str = ""
    ca: str = ""


class EnsembleOf(_Described, frozen=True, tag="ensemble"):
    """Models that score together.

    Attributes:
        members: their files.
        how: `mean` (weighted, if there are weights) or `vote`.
        weights: one for each member; empty for equal ones.
    """

    members: tuple[str, ...]
    how: str = "mean"
    weights: tuple[float, ...] = ()


class CascadeOf(_Described, frozen=True, tag="cascade"):
    """A cheap model, and a large one for the rows of which the cheap one is not sure.

    Attributes:
        first: file of the cheap model.
        second: file of the large one.
        output: output that tells how sure the first one is.
        low: from this score on the second one is asked,
        high: up to this one.
    """

    first: str
    second: str
    output: str
    low: float
    high: float


class PipelineOf(_Described, frozen=True, tag="pipeline"):
    """A model with functions before and after it.

    Attributes:
        model: file of the model.
        before: `module:function` from the inputs to those of the model, empty for none.
        after: `module:function` from the outputs of the model to the outputs, empty for none.
    """

    model: str
    before: str = ""
    after: str = ""


Description = PythonCode | TorchFile | TorchClass | RemoteEndpoint | EnsembleOf | CascadeOf | PipelineOf


def members(described: Description) -> tuple[str, ...]:
    """Return the files that a description names.

    >>> members(EnsembleOf(members=("a.onnx", "b.onnx")))
    ('a.onnx', 'b.onnx')
    """
    match described:
        case EnsembleOf(members=files):
            return files
        case CascadeOf(first=first, second=second):
            return (first, second)
        case PipelineOf(model=file) | TorchFile(file=file) | TorchClass(state=file):
            return (file,)
        case RemoteEndpoint(ca=ca) if ca:
            return (ca,)
        case _:
            return ()


def read_description(path: Path) -> Description:
    """Read a description.

    Raises:
        ModelError: there is none, or it is not one.
    """
    try:
        described: Description = msgspec.json.decode(path.read_bytes(), type=Description)
    except OSError as exc:
        msg = f"model {path}: the description can't be read ({exc.strerror}); restore it"
        raise ModelError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"model {path}: it is no description of a model ({exc}); see streamml.models.describe for the fields"
        raise ModelError(msg) from exc
    return described


def write_description(path: str | Path, described: Description) -> Path:
    """Write a description and return its path."""
    path = Path(path)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")
    return path
