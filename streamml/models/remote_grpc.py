"""The KServe v2 inference protocol over gRPC.

The messages are described here, field by field as far as they are used, since the published packages of them want
newer versions of grpcio than the engines allow. They live in a pool of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from streamml.errors import ModelError, ModelMemoryError
from streamml.models.remote_http import Unavailable
from streamml.models.remote_wire import array_of, datatype_of, from_raw, spec_of, to_raw
from streamml.models.signature import Array, TensorSpec

__all__ = ["GrpcTransport"]

_SERVICE = "/inference.GRPCInferenceService/"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Fields by message: name -> (number, type), `*` for repeated ones. Fields that are left out are skipped when read.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "TensorContents": {
        "bool_contents": (1, "*bool"),
        "int_contents": (2, "*int32"),
        "int64_contents": (3, "*int64"),
        "uint_contents": (4, "*uint32"),
        "uint64_contents": (5, "*uint64"),
        "fp32_contents": (6, "*float"),
        "fp64_contents": (7, "*double"),
        "bytes_contents": (8, "*bytes"),
    },
    "Tensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "*int64"),
        "contents": (5, "TensorContents"),
    },
    "RequestedOutput": {"name": (1, "string")},
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelMetadataResponse": {"name": (1, "string"), "inputs": (4, "*Tensor"), "outputs": (5, "*Tensor")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "inputs": (5, "*Tensor"),
        "outputs": (6, "*RequestedOutput"),
        "raw_input_contents": (7, "*bytes"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "outputs": (5, "*Tensor"),
        "raw_output_contents": (6, "*bytes"),
    },
}


class GrpcTransport:
    """One endpoint over gRPC.

    Args:
        title: how messages name the model.
        target: `host:port`.
        model: name of the model.
        version: its version, empty for the server's choice.
        secure: use TLS.
        headers: metadata of each call.
        ca: file of the certificates to trust, None for those of the system.
    """

    def __init__(
        self,
        title: str,
        target: str,
        model: str,
        *,
        version: str = "",
        secure: bool = False,
        headers: Mapping[str, str] | None = None,
        ca: Path | None = None,
    ) -> None:
        try:
            import grpc

            self._messages = _messages()
        except ImportError as exc:
            msg = f"{title}: gRPC needs grpcio and protobuf, which are not installed; run: pip install 'streamml[grpc]'"
            raise ModelError(msg) from exc
        self.title, self.target = title, target
        self._grpc, self._model, self._version, self._secure, self._ca = grpc, model, version, secure, ca
        self._metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        self._channel: Any = None

    def metadata(self, deadline: float) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Ask for the inputs and outputs."""
        request = self._messages["ModelMetadataRequest"](name=self._model, version=self._version)
        said = self._call("ModelMetadata", request, "ModelMetadataResponse", deadline)
        inputs, outputs = (
            tuple(spec_of(self.title, t.name, t.datatype, t.shape) for t in side)
            for side in (said.inputs, said.outputs)
        )
        return inputs, outputs

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float) -> dict[str, Array]:
        """Score one batch."""
        tensor, wanted = self._messages["Tensor"], self._messages["RequestedOutput"]
        request = self._messages["ModelInferRequest"](
            model_name=self._model,
            model_version=self._version,
            inputs=[tensor(name=n, datatype=datatype_of(a), shape=a.shape) for n, a in inputs.items()],
            outputs=[wanted(name=name) for name in outputs],
            raw_input_contents=[to_raw(array) for array in inputs.values()],
        )
        said = self._call("ModelInfer", request, "ModelInferResponse", deadline)
        if said.raw_output_contents and len(said.raw_output_contents) != len(said.outputs):
            msg = f"{self.title}: {self.target} answers {len(said.outputs)} outputs with other raw contents"
            raise ModelError(msg)
        found = {}
        for at, t in enumerate(said.outputs):
            if said.raw_output_contents:
                found[t.name] = from_raw(self.title, t.name, t.datatype, t.shape, said.raw_output_contents[at])
            else:
                values = list(getattr(t.contents, _CONTENTS.get(t.datatype, "fp32_contents")))
                found[t.name] = array_of(self.title, t.name, t.datatype, t.shape, values)
        return found

    def close(self) -> None:
        """Close the channel; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self) -> Any:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if not self._secure:
            return self._grpc.insecure_channel(self.target, options)
        try:
            roots = self._ca.read_bytes() if self._ca else None
        except OSError as exc:
            msg = f"{self.title}: the certificates in {self._ca} can't be read ({exc.strerror}); wanted a PEM file"
            raise ModelError(msg) from exc
        return self._grpc.secure_channel(self.target, self._grpc.ssl_channel_credentials(roots), options)

    def _call(self, method: str, request: Any, answer: str, deadline: float) -> Any:
        if self._channel is None:
            self._channel = self._open()
        call = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._messages[answer].FromString,
        )
        codes = self._grpc.StatusCode
        try:
            return call(request, timeout=max(deadline - time.monotonic(), 0), metadata=self._metadata)
        except self._grpc.RpcError as exc:
            code, details = exc.code(), str(exc.details())
            msg = f"{self.title}: grpc://{self.target} answers {code.name} ({details[:300]})"
            memory = code is codes.RESOURCE_EXHAUSTED and "larger than max" in details
            if memory or "out of memory" in details.lower():
                msg += "; score fewer rows at once"
                raise ModelMemoryError(msg) from exc
            passing = (codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.DEADLINE_EXCEEDED, codes.ABORTED)
            if code in passing and "CERTIFICATE_VERIFY_FAILED" not in details:
                raise Unavailable(msg) from exc
            msg += f"; is the model {self._model!r} there, and does it take these inputs?"
            raise ModelError(msg) from exc


@cache
def _messages() -> dict[str, Any]:
    """Build the classes of the messages."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="streamml/inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            plain = kind.lstrip("*")
            label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if plain in _MESSAGES:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".inference.{plain}"
            else:
                made.type = getattr(kinds, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"inference.{name}") for name in _MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}
