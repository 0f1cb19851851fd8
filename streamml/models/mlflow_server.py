"""The part of MLflow's REST API that a mirror of its model registry needs; no package of MLflow's."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from streamml.errors import ConnectorError, ModelError, PlanError, StreamMLError

__all__ = ["MlflowServer", "MlflowVersion", "NotThere", "RegisteredModel", "Run"]

T = TypeVar("T")
_SCHEMES = {"mlflow": "http", "mlflow+http": "http", "mlflow+https": "https", "http": "http", "https": "https"}
_API = "/api/2.0/mlflow"
_PAGE = 200


class NotThere(ModelError):
    """Raised when MLflow says that it has no such model, version, run or file."""


class _Tag(msgspec.Struct):
    key: str
    value: str = ""


class _Alias(msgspec.Struct):
    alias: str
    version: int


class RegisteredModel(msgspec.Struct):
    """A model in MLflow's registry, with its aliases.

    Attributes:
        name: its name.
        aliases: its aliases.
        tags: its tags.
    """

    name: str
    aliases: list[_Alias] = []
    tags: list[_Tag] = []


class MlflowVersion(msgspec.Struct):
    """A version of a model in MLflow's registry.

    Attributes:
        name: name of the model.
        version: its number.
        creation_timestamp: when it was registered, in milliseconds.
        current_stage: its stage, `None` (the text) without one.
        source: where its files are, for MLflow.
        run_id: the run that logged it, empty when it is not known.
        user_id: who registered it, empty when the server does not say.
        status: `READY`, or why not.
        description: what was written about it.
        tags: its tags.
    """

    name: str
    version: int
    creation_timestamp: int = 0
    current_stage: str = "None"
    source: str = ""
    run_id: str = ""
    user_id: str = ""
    status: str = "READY"
    description: str = ""
    tags: list[_Tag] = []


class _RunInfo(msgspec.Struct):
    run_id: str
    run_name: str = ""
    user_id: str = ""


class _Metric(msgspec.Struct):
    key: str
    value: Any = None


class _RunData(msgspec.Struct):
    metrics: list[_Metric] = []
    params: list[_Tag] = []
    tags: list[_Tag] = []


class Run(msgspec.Struct):
    """The run that logged a version.

    Attributes:
        info: its id, name and user.
        data: its metrics, parameters and tags.
    """

    info: _RunInfo
    data: _RunData = msgspec.field(default_factory=_RunData)


class _Page(msgspec.Struct):
    registered_models: list[RegisteredModel] = []
    model_versions: list[MlflowVersion] = []
    next_page_token: str = ""


class _OneModel(msgspec.Struct):
    registered_model: RegisteredModel


class _OneRun(msgspec.Struct):
    run: Run


class _Refusal(msgspec.Struct):
    error_code: str = ""
    message: str = ""


class MlflowServer:
    """An MLflow tracking server, asked by its REST API.

    Args:
        url: `mlflow://host:port`, or `mlflow+https://host/path` for TLS; `http://` and `https://` do as well.
        timeout: seconds that a request may take before the server counts as gone.
        environ: where `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` or `MLFLOW_TRACKING_TOKEN` are looked up.

    Raises:
        PlanError: it is no such address.

    >>> MlflowServer("mlflow://127.0.0.1:5000/").where
    'mlflow://127.0.0.1:5000'
    """

    def __init__(self, url: str, *, timeout: float = 30.0, environ: Mapping[str, str] = os.environ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            msg = f"MLflow: wanted an address such as mlflow://host:5000 or mlflow+https://host, got {url!r}"
            raise PlanError(msg)
        host = parts.netloc.rpartition("@")[2]
        self.where = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        """The address without user and password, for messages."""
        self._base = f"{_SCHEMES[parts.scheme]}://{host}{parts.path.rstrip('/')}"
        self._timeout = timeout
        self._headers: dict[str, str] = {}
        user = parts.username or environ.get("MLFLOW_TRACKING_USERNAME")
        if user:
            password = parts.password or environ.get("MLFLOW_TRACKING_PASSWORD", "")
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        elif token := environ.get("MLFLOW_TRACKING_TOKEN"):
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"MlflowServer({self.where!r})"

    def models(self) -> list[RegisteredModel]:
        """Return all registered models."""
        return [model for page in self._pages("/registered-models/search", {}) for model in page.registered_models]

    def model(self, name: str) -> RegisteredModel:
        """Return one registered model.

        Raises:
            NotThere: there is none of this name.
        """
        return self._get(f"{_API}/registered-models/get", {"name": name}, _OneModel).registered_model

    def versions(self, name: str) -> list[MlflowVersion]:
        """Return the versions of a model, rising."""
        mark = '"' if "'" in name else "'"
        pages = self._pages("/model-versions/search", {"filter": f"name={mark}{name}{mark}"})
        return sorted((version for page in pages for version in page.model_versions), key=lambda v: v.version)

    def run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            NotThere: there is none of this id, or it was deleted for good.
        """
        return self._get(f"{_API}/runs/get", {"run_id": run_id}, _OneRun).run

    def download(self, version: MlflowVersion, path: str, target: Path) -> Path:
        """Write a file of a version to a path, and return that.

        Raises:
            NotThere: the version has no such file.
            ConnectorError: the server is gone, or the file came cut short.
        """
        asked = {"name": version.name, "version": version.version, "path": path}
        with self._open("/model-versions/get-artifact", asked) as answer, target.open("wb") as file:
            try:
                shutil.copyfileobj(answer, file, 1 << 20)
            except (TimeoutError, http.client.HTTPException, ConnectionError) as exc:
                raise self._gone(exc) from exc
            wanted, got = answer.headers.get("Content-Length"), file.tell()
        if wanted is not None and int(wanted) != got:
            msg = f"MLflow {self.where}: {path} came cut short ({got} of {wanted} bytes); sync again"
            raise ConnectorError(msg)
        return target

    def _pages(self, path: str, asked: Mapping[str, Any]) -> Iterator[_Page]:
        token = ""
        while True:
            more = {"page_token": token} if token else {}
            page = self._get(_API + path, {"max_results": _PAGE, **asked, **more}, _Page)
            yield page
            token = page.next_page_token
            if not token:
                return

    def _get(self, path: str, asked: Mapping[str, Any], kind: type[T]) -> T:
        with self._open(path, asked) as answer:
            try:
                body = answer.read()
            except (TimeoutError, http.client.HTTPException, ConnectionError) as exc:
                raise self._gone(exc) from exc
        try:
            return msgspec.json.decode(body, type=kind, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            msg = f"MLflow {self.where}: {path} answers otherwise than MLflow does ({exc}); is it an MLflow server?"
            raise ConnectorError(msg) from exc

    def _open(self, path: str, asked: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(f"{self._base}{path}?{urlencode(asked)}", headers=self._headers)
        try:
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as exc:
            with exc:
                raise self._refused(path, exc.code, exc.read()) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise self._gone(exc) from exc

    def _refused(self, path: str, status: int, body: bytes) -> StreamMLError:
        try:
            said = msgspec.json.decode(body, type=_Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy's page, or a server that is none of MLflow's
            said = _Refusal("no answer of MLflow's:", " ".join(body.decode(errors="replace").split())[:120])
        if status == 404 and said.error_code == "RESOURCE_DOES_NOT_EXIST":
            return NotThere(f"MLflow {self.where}: {said.message}")
        msg = f"MLflow {self.where}: {path} answers {status} ({said.error_code} {said.message})"
        if status in (401, 403):
            msg += "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        elif status == 404:
            msg += "; is it an MLflow server, and is the path before /api right?"
        return ConnectorError(msg)

    def _gone(self, exc: Exception) -> ConnectorError:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        msg = f"MLflow {self.where}: can't be reached ({reason or type(exc).__name__}); is the server up?"
        return ConnectorError(msg)
