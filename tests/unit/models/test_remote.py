"""Models behind the v2 inference protocol, against the same graph in this process."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError, ModelMemoryError
from streamml.models import OnnxModel, RemoteModel, open_model, package
from streamml.models.remote import full_jitter
from streamml.models.remote_http import Unavailable

pytestmark = pytest.mark.slow  # each test starts a server process
HERE = Path(__file__).parent


class Server:
    """A server process; `set` says what happens to its next requests."""

    def __init__(self, model: Path, folder: Path, *tls: Path) -> None:
        self.model = model
        port = folder / f"port{len(list(folder.glob('port*')))}"
        command = [sys.executable, str(HERE / "v2_server.py"), str(model), str(port), *map(str, tls)]
        self.process = subprocess.Popen(command)
        while not port.exists():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.02)
        self.port = int(port.read_text())
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, **said: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, json.dumps(said), {"Connection": "close"})
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def set(self, **said: Any) -> None:
        self.ask("POST", "/set", **said)

    def seen(self) -> dict[str, int]:
        found: dict[str, int] = self.ask("GET", "/seen")
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def graph(write_onnx: Callable[..., Path]) -> Path:
    """Several inputs and outputs of several types."""
    return write_onnx(
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            ("Sigmoid", ["h"], ["score"], {}),
            ("Neg", ["k"], ["minus"], {}),
            ("Identity", ["t"], ["text"], {}),
        ],
        {"x": ("float32", ["n", 3]), "k": ("int64", ["n"]), "t": ("str", ["n"])},
        {"score": ("float32", ["n", 2]), "minus": ("int64", ["n"]), "text": ("str", ["n"])},
        {"w": np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)},
        "graph",
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def make(model: Path, *tls: Path) -> Server:
        started.append(Server(model, tmp_path, *tls))
        return started[-1]

    yield make
    for server in started:
        server.stop()


@pytest.fixture
def server(graph: Path, start: Callable[..., Server]) -> Server:
    return start(graph)


@pytest.fixture
def model(server: Server) -> Iterator[RemoteModel]:
    made = RemoteModel(server.url, "m", timeout=20)
    made.load()
    yield made
    made.close()


def rows(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(count)
    return {
        "x": random.normal(size=(count, 3)).astype(np.float32),
        "k": random.integers(-(2**60), 2**60, count),
        "t": np.array([f"Zürich {i}" for i in range(count)], dtype=object),
    }


def same(found: dict[str, np.ndarray], graph: Path, given: dict[str, np.ndarray]) -> None:
    local = OnnxModel(graph)
    local.load()
    expected = local.predict(given)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tolist() == array.tolist(), name


@pytest.mark.parametrize("binary", [True, False])
def test_it_answers_bit_for_bit_as_the_graph_in_this_process(server: Server, graph: Path, binary: bool) -> None:
    model = RemoteModel(server.url, "m", binary=binary, timeout=20)
    model.load()
    assert [str(spec) for spec in model.inputs] == ["x: float32[?, 3]", "k: int64[?]", "t: str[?]"]
    for count in (1, 3, 200):
        same(model.predict(rows(count)), graph, rows(count))
    assert server.seen()["binary"] == (3 if binary else 0)
    model.close()


def test_a_server_without_the_binary_extension_gets_json(server: Server, graph: Path) -> None:
    server.set(binary=False)
    model = RemoteModel(server.url, "m", timeout=20)
    model.load()
    same(model.predict(rows(4)), graph, rows(4))
    assert server.seen()["binary"] == 0
    given = {**rows(1), "x": np.array([[np.nan, 1, 2]], np.float32)}
    with pytest.raises(ModelError, match=re.escape("input 'x' has a NaN or infinity, which JSON can't carry")):
        model.predict(given)
    model.close()


def test_binary_tensors_carry_what_json_can_not(model: RemoteModel) -> None:
    given = {**rows(2), "x": np.array([[np.nan, 1, 2], [np.inf, 0, 0]], np.float32)}
    assert np.isnan(model.predict(given)["score"][0]).all()


def test_one_connection_serves_all_calls(server: Server, model: RemoteModel) -> None:
    before = server.seen()["connections"]
    for _ in range(20):
        model.predict(rows(2))
    assert server.seen()["connections"] == before + 1, "only the one that asks for the count is new"


def test_a_kept_connection_that_the_server_has_closed_is_opened_again(server: Server, graph: Path) -> None:
    model = RemoteModel(server.url, "m", retries=0, timeout=20)
    model.load()
    for _ in range(3):
        server.set(failures=["close after"])
        same(model.predict(rows(2)), graph, rows(2))
        same(model.predict(rows(3)), graph, rows(3))
    model.close()


@pytest.mark.parametrize("failures", [["503 busy"], ["429 slow down", "500 oh", "502 no"], ["drop", "drop"], ["cut"]])
def test_failures_that_pass_are_tried_again(
    server: Server, model: RemoteModel, graph: Path, failures: list[str]
) -> None:
    server.set(failures=failures)
    same(model.predict(rows(5)), graph, rows(5))


def test_failures_that_stay_are_given_up_with_what_was_tried(server: Server) -> None:
    model = RemoteModel(server.url, "m", retries=2, timeout=30)
    model.load()
    server.set(failures=["503 busy"] * 3)
    text = f'{server.url} answers 503 ({{"error": "busy"}}); gave up after 3 attempts in '
    with pytest.raises(Unavailable, match=re.escape(text)):
        model.predict(rows(1))
    model.predict(rows(1))
    model.close()


def test_a_server_that_hangs_is_given_up_at_the_deadline(server: Server) -> None:
    model = RemoteModel(server.url, "m", retries=100, timeout=1.0)
    model.load()
    server.set(failures=["hang"] * 10)
    with pytest.raises(Unavailable, match=r"TimeoutError: timed out.*; gave up after 1 attempts in"):
        model.predict(rows(1))
    model.close()


def test_a_server_that_died_is_an_error(server: Server, model: RemoteModel) -> None:
    server.stop()
    model._retries = 1
    with pytest.raises(Unavailable, match=r"can't be reached \(Connection.*gave up after 2 attempts"):
        model.predict(rows(1))


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        ("400 bad shape", ModelError, 'answers 400 ({"error": "bad shape"}); is the model there'),
        ("403 no", ModelError, "set the token that token_env names"),
        ("413 too much", ModelMemoryError, "score fewer rows at once"),
        ("500 CUDA out of memory", ModelMemoryError, "score fewer rows at once"),
        ("text", ModelError, "answers with no JSON (b'hello'...); is it a v2 inference server?"),
    ],
)
def test_failures_that_do_not_pass_are_raised_at_once(
    server: Server, model: RemoteModel, failure: str, kind: type[Exception], text: str
) -> None:
    server.set(failures=[failure])
    with pytest.raises(kind, match=re.escape(text)) as raised:
        model.predict(rows(1))
    assert type(raised.value) is kind
    model.predict(rows(1))


def test_a_model_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(ModelError, match=re.escape("answers 404") + ".*is the model there"):
        RemoteModel(server.url, "other").load()


def test_inputs_are_checked_before_they_are_sent(server: Server, model: RemoteModel) -> None:
    before = server.seen()["requests"]
    with pytest.raises(ModelError, match=re.escape("wanted x: float32[?, 3], got float64[1, 3]")):
        model.predict({**rows(1), "x": np.zeros((1, 3))})
    assert server.seen()["requests"] == before


def test_the_token_is_read_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.set(token="secret")
    with pytest.raises(ModelError, match=re.escape("answers 401")):
        RemoteModel(server.url, "m").load()
    model = RemoteModel(server.url, "m", token_env="TEST_TOKEN", timeout=20)
    monkeypatch.delenv("TEST_TOKEN", raising=False)
    with pytest.raises(ModelError, match="the environment variable TEST_TOKEN is not set"):
        model.load()
    monkeypatch.setenv("TEST_TOKEN", "secret")
    model.load()
    model.predict(rows(1))
    model.close()


def test_an_endpoint_in_a_bundle_is_checked_by_its_golden_rows(
    linear: Path, tmp_path: Path, start: Callable[..., Server]
) -> None:
    server = start(linear)
    url = f"{server.url}/v2/models/m"
    golden = {name: np.arange(4.0) for name in "abc"}
    made = package(url, tmp_path / "b", name="far", version=1, features=["a", "b", "c"], golden=golden)
    with open_model(made.path) as model:
        assert model.score([[1, 4], [2, 5], [3, 6]], 2) == {"score": [321.0, 654.0]}


def test_a_certificate_is_checked(graph: Path, tmp_path: Path, start: Callable[..., Server]) -> None:
    pytest.importorskip("cryptography")
    certificate, key = certificate_for_loopback(tmp_path)
    server = start(graph, certificate, key)
    with pytest.raises(ModelError, match=r"its certificate is not trusted .*; give its ca"):
        RemoteModel(server.url, "m").load()
    with pytest.raises(ModelError, match=r"can't be read .*; wanted a PEM file"):
        RemoteModel(server.url, "m", ca=tmp_path / "none.pem").load()
    model = RemoteModel(server.url, "m", ca=certificate, timeout=20)
    model.load()
    same(model.predict(rows(4)), graph, rows(4))
    model.close()


def certificate_for_loopback(folder: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(address, False).add_extension(x509.BasicConstraints(True, None), True)
    certificate = made.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    data = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(data)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("url", ["m", "ftp://host:1", "http://", "grpc:///"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ModelError, match=re.escape("wanted http(s)://host:port or grpc(s)://host:port")):
        RemoteModel(url, "m")


def test_pauses_are_spread_from_nothing_to_a_limit_that_doubles() -> None:
    random = np.random.default_rng(3)
    for attempt in range(12):
        pauses = [full_jitter(attempt, random.random()) for _ in range(4000)]
        limit = min(2.0, 0.05 * 2**attempt)
        assert 0 <= min(pauses) < 0.01 * limit and 0.99 * limit < max(pauses) <= limit
        assert np.mean(pauses) == pytest.approx(limit / 2, rel=0.05)
