"""The KServe v2 inference protocol over HTTP, on one connection that is kept open."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from streamml.errors import ModelError, ModelMemoryError
from streamml.models.remote_wire import array_of, data_of, datatype_of, from_raw, spec_of, to_raw
from streamml.models.signature import Array, TensorSpec

__all__ = ["HttpTransport", "Unavailable"]

_LENGTH = "Inference-Header-Content-Length"
_RETRIED = (408, 429, 500, 502, 503, 504)


class Unavailable(ModelError):
    """Raised when a call failed for a reason that may pass: it may be tried again."""


class HttpTransport:
    """One endpoint over HTTP or HTTPS.

    Args:
        title: how messages name the model.
        url: `http://host:port` or `https://host:port`, with a path before `/v2` if there is one.
        model: name of the model.
        version: its version, empty for the server's choice.
        binary: send tensors by the binary extension, if the server says that it has it.
        headers: headers of each request.
        ca: file of the certificates to trust, None for those of the system.
    """

    def __init__(
        self,
        title: str,
        url: str,
        model: str,
        *,
        version: str = "",
        binary: bool = True,
        headers: Mapping[str, str] | None = None,
        ca: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.title, self.url = title, url
        self._headers = dict(headers or {})
        self._base = parts.path.rstrip("/")
        self._path = f"{self._base}/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version else "")
        host, port = parts.hostname or "", parts.port
        self._connect: Callable[[], http.client.HTTPConnection]
        if parts.scheme == "https":
            context = _context(title, ca)
            self._connect = lambda: http.client.HTTPSConnection(host, port, context=context)
        else:
            self._connect = lambda: http.client.HTTPConnection(host, port)
        self._wants_binary = binary
        self._binary = False
        self._connection: http.client.HTTPConnection | None = None

    def metadata(self, deadline: float) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Ask for the inputs and outputs, and whether the server takes binary tensors."""
        server = self._json("GET", f"{self._base}/v2", deadline)
        self._binary = self._wants_binary and "binary_tensor_data" in server.get("extensions", [])
        said = self._json("GET", self._path, deadline)
        try:
            inputs, outputs = (
                tuple(spec_of(self.title, t["name"], t["datatype"], t["shape"]) for t in said.get(side) or ())
                for side in ("inputs", "outputs")
            )
        except (KeyError, TypeError, ValueError) as exc:
            msg = f"{self.title}: {self.url} does not describe the model as the v2 protocol wants ({exc!r})"
            raise ModelError(msg) from exc
        return inputs, outputs

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float) -> dict[str, Array]:
        """Score one batch."""
        tensors, raw = [], []
        for name, array in inputs.items():
            tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
            if self._binary:
                raw.append(to_raw(array))
                tensor["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                tensor["data"] = data_of(self.title, name, array)
            tensors.append(tensor)
        request: dict[str, Any] = {"inputs": tensors}
        if outputs:
            extra = {"parameters": {"binary_data": True}} if self._binary else {}
            request["outputs"] = [{"name": name, **extra} for name in outputs]
        head = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        if self._binary:
            headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
        status, said, body = self._call("POST", f"{self._path}/infer", deadline, b"".join([head, *raw]), headers)
        self._raise_for(status, body)
        length = int(said.get(_LENGTH) or len(body))
        return self._outputs(self._decoded(body[:length]), memoryview(body)[length:])

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _outputs(self, said: dict[str, Any], raw: memoryview) -> dict[str, Array]:
        found: dict[str, Array] = {}
        try:
            for tensor in said["outputs"]:
                name, datatype, shape = tensor["name"], tensor["datatype"], tensor["shape"]
                size = (tensor.get("parameters") or {}).get("binary_data_size")
                if size is None:
                    found[name] = array_of(self.title, name, datatype, shape, tensor["data"])
                else:
                    found[name] = from_raw(self.title, name, datatype, shape, raw[:size])
                    raw = raw[size:]
        except (KeyError, TypeError) as exc:
            msg = f"{self.title}: {self.url} does not answer as the v2 protocol wants ({exc!r})"
            raise ModelError(msg) from exc
        return found

    def _json(self, method: str, path: str, deadline: float) -> dict[str, Any]:
        status, _, body = self._call(method, path, deadline)
        self._raise_for(status, body)
        return self._decoded(body)

    def _decoded(self, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except ValueError as exc:
            msg = f"{self.title}: {self.url} answers with no JSON ({body[:60]!r}...); is it a v2 inference server?"
            raise ModelError(msg) from exc
        if not isinstance(found, dict):
            msg = f"{self.title}: {self.url} answers with a {type(found).__name__}; is it a v2 inference server?"
            raise ModelError(msg)
        return found

    def _raise_for(self, status: int, body: bytes) -> None:
        if status < 400:
            return
        text = body.decode(errors="replace")[:300]
        msg = f"{self.title}: {self.url} answers {status} ({text or http.client.responses.get(status, '')})"
        if status == 413 or "out of memory" in text.lower():
            msg += "; score fewer rows at once"
            raise ModelMemoryError(msg)
        if status in _RETRIED:
            raise Unavailable(msg)
        hint = {401: "; set the token that token_env names", 403: "; set the token that token_env names"}
        raise ModelError(msg + hint.get(status, f"; is the model there ({self._path}), and does it take these inputs?"))

    def _call(
        self,
        method: str,
        path: str,
        deadline: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Make one request. A kept connection that the server has closed meanwhile is opened again at once."""
        reused = self._connection is not None
        try:
            return self._request(method, path, deadline, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as exc:
            self.close()
            if not reused:
                raise self._unavailable(exc) from exc
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            if isinstance(exc, ssl.SSLCertVerificationError):
                msg = f"{self.title}: {self.url}: its certificate is not trusted ({exc.verify_message}); give its ca"
                raise ModelError(msg) from exc
            raise self._unavailable(exc) from exc
        try:
            return self._request(method, path, deadline, body, headers)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: Exception) -> Unavailable:
        return Unavailable(f"{self.title}: {self.url} can't be reached ({type(exc).__name__}: {exc})")

    def _request(
        self, method: str, path: str, deadline: float, body: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.timeout = _left(deadline)
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        connection.request(method, path, body, {**self._headers, **(headers or {})})
        sock = connection.sock  # the response takes it over if the server will close
        sock.settimeout(_left(deadline))
        response = connection.getresponse()
        parts = []
        while part := response.read1(1 << 20):
            parts.append(part)
            if not response.isclosed() and sock.fileno() >= 0:
                sock.settimeout(_left(deadline))
        if response.length == 0:
            response.read()  # so that it is done with, and the connection free for the next request
        elif response.length:
            raise http.client.IncompleteRead(b"".join(parts), response.length)
        return response.status, response.headers, b"".join(parts)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        msg = "the deadline has passed"
        raise TimeoutError(msg)
    return left


def _context(title: str, ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as exc:
        msg = f"{title}: the certificates in {ca} can't be read ({exc}); wanted a PEM file"
        raise ModelError(msg) from exc
