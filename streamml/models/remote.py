"""A model behind the KServe v2 (Triton) inference protocol, for what does not fit into the process."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from streamml.errors import ModelError
from streamml.models.remote_http import HttpTransport, Unavailable
from streamml.models.runtime import BaseRuntime
from streamml.models.signature import Array, TensorSpec

__all__ = ["RemoteModel", "full_jitter"]

_T = TypeVar("_T")


class _Transport(Protocol):
    def metadata(self, deadline: float) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]: ...

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float) -> dict[str, Array]: ...

    def close(self) -> None: ...


def full_jitter(attempt: int, chance: float, *, base: float = 0.05, longest: float = 2.0) -> float:
    """Return the seconds to wait before trying again: evenly spread from 0 to a limit that doubles.

    Args:
        attempt: number of the attempt that failed, from 0.
        chance: a random number from 0 to 1.
        base: limit after the first attempt.
        longest: highest limit.

    >>> [full_jitter(attempt, 1.0) for attempt in (0, 1, 2, 9)]
    [0.05, 0.1, 0.2, 2.0]
    """
    return chance * min(longest, base * 2.0**attempt)


class RemoteModel(BaseRuntime):
    """A model on an inference server. Its inputs and outputs are those that the server says.

    A call that fails for a reason that may pass (no connection, a timeout, 429, 5xx, gRPC's `UNAVAILABLE`) is tried
    again after a random pause, as long as the time of the call lasts.

    Args:
        url: `http://host:port`, `https://...`, `grpc://host:port` or `grpcs://...`.
        model: its name there.
        inputs: its inputs, where the server does not say them.
        outputs: its outputs, likewise.
        version: its version there, empty for the one that the server chooses.
        binary: send tensors by the binary extension of HTTP, where the server has it; gRPC always does.
        timeout: seconds for one call with all its retries.
        retries: how often a call is tried again.
        token_env: environment variable that holds the bearer token, empty for none.
        ca: file of the certificates to trust, None for those of the system.
        chance: source of random numbers from 0 to 1.
    """

    def __init__(
        self,
        url: str,
        model: str,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        *,
        version: str = "",
        binary: bool = True,
        timeout: float = 5.0,
        retries: int = 3,
        token_env: str = "",
        ca: Path | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(f"model {model} at {url}", inputs, outputs)
        scheme, _, target = url.partition("://")
        if scheme not in ("http", "https", "grpc", "grpcs") or not target.strip("/") or timeout <= 0 or retries < 0:
            msg = (
                f"{self.title}: wanted http(s)://host:port or grpc(s)://host:port, a timeout above 0 and retries of "
                f"at least 0, got timeout={timeout}, retries={retries}"
            )
            raise ModelError(msg)
        self._url, self._scheme, self._target = url, scheme, target.rstrip("/")
        self._model, self._version, self._binary, self._ca = model, version, binary, ca
        self._timeout, self._retries, self._token_env, self._chance = timeout, retries, token_env, chance
        self._transport: _Transport | None = None
        self._names: list[str] = []
        self._closed = threading.Event()

    def _load(self) -> None:
        self._closed.clear()
        self._transport = self._open()
        try:
            inputs, outputs = self._call(self._transport.metadata)
        except BaseException:
            self._close()
            raise
        self._inputs, self._outputs = inputs or self._inputs, outputs or self._outputs
        self._names = [spec.name for spec in self._outputs]

    def _open(self) -> _Transport:
        headers = {}
        if self._token_env:
            if not (token := os.environ.get(self._token_env)):
                msg = f"{self.title}: the environment variable {self._token_env} is not set; it holds the token"
                raise ModelError(msg)
            headers["Authorization"] = f"Bearer {token}"
        if self._scheme.startswith("http"):
            return HttpTransport(
                self.title,
                self._url,
                self._model,
                version=self._version,
                binary=self._binary,
                headers=headers,
                ca=self._ca,
            )
        from streamml.models.remote_grpc import GrpcTransport

        secure = self._scheme == "grpcs"
        return GrpcTransport(
            self.title,
            self._target,
            self._model,
            version=self._version,
            secure=secure,
            headers=headers,
            ca=self._ca,
        )

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        transport = self._transport
        assert transport is not None
        found = self._call(lambda deadline: transport.infer(inputs, self._names, deadline))
        for (
            spec
        ) in self._outputs:  # some servers give a column for what they describe as one value a row, or the reverse
            array = found.get(spec.name)
            if array is not None and array.shape[:1] == (array.size,) and array.ndim != len(spec.shape) <= 2:
                found[spec.name] = array.reshape((-1, 1)[: len(spec.shape)])
        return found

    def _call(self, call: Callable[[float], _T]) -> _T:
        started = time.monotonic()
        deadline, attempt = started + self._timeout, 0
        while True:
            try:
                return call(deadline)
            except Unavailable as exc:
                pause, now = full_jitter(attempt, self._chance()), time.monotonic()
                attempt += 1
                if attempt > self._retries or now + pause >= deadline:
                    spent = f"{attempt} attempts in {now - started:.1f} of {self._timeout:g} seconds"
                    msg = f"{exc}; gave up after {spent}; is the server up?"
                    raise Unavailable(msg) from exc
                self._closed.wait(pause)  # a pause that `close` ends

    def _close(self) -> None:
        self._closed.set()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
