"""The v2 protocol against MLServer, which others have written: JSON over HTTP, and gRPC.

It runs in an environment of its own, made when it is not there, since it wants newer libraries than the engines.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models import RemoteModel
from streamml.models.remote_http import Unavailable

pytest.importorskip("grpc")
pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = [[1.0], [10.0], [100.0]]
RUNTIME = f"""
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse

class Runtime(MLModel):
    async def predict(self, payload):
        given = {{t.name: t for t in payload.inputs}}
        x, k = NumpyCodec.decode_input(given["x"]), NumpyCodec.decode_input(given["k"])
        texts = StringCodec.decode_input(given["t"])
        if (k < 0).any():
            raise ValueError("k is negative")
        outputs = [
            NumpyCodec.encode_output("score", (x @ np.array({WEIGHTS}, np.float32)).astype(np.float32)),
            NumpyCodec.encode_output("minus", -k),
            StringCodec.encode_output("text", [text.upper() for text in texts]),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


def mlserver() -> Path:
    """The folder with the programs of MLServer's own environment, which is made if it is not there."""
    root = ROOT / ".cache/mlserver/venv"
    if not (root / "bin/mlserver").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(root)], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--python", str(root / "bin/python"), "mlserver==1.7.1"], check=True
        )
    return root / "bin"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("mlserver")
    (folder / "m").mkdir()
    (folder / "m" / "runtime.py").write_text(RUNTIME)
    tensors = {
        "inputs": [("x", "FP32", [-1, 3]), ("k", "INT64", [-1]), ("t", "BYTES", [-1])],
        "outputs": [("score", "FP32", [-1, 1]), ("minus", "INT64", [-1]), ("text", "BYTES", [-1])],
    }
    described = {s: [dict(zip(("name", "datatype", "shape"), t, strict=True)) for t in ts] for s, ts in tensors.items()}
    said = {"name": "m", "implementation": "runtime.Runtime", **described}
    (folder / "m" / "model-settings.json").write_text(json.dumps(said))
    http, grpc, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([mlserver() / "mlserver", "start", folder], cwd=folder, stdout=log, stderr=log)
    try:
        found = {"http": f"http://127.0.0.1:{http}", "grpc": f"grpc://127.0.0.1:{grpc}"}
        for url in found.values():
            until_ready(url, process, folder / "log")
        yield found
    finally:
        process.kill()
        process.wait()


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        model = RemoteModel(url, "m", timeout=10)
        try:
            model.load()
        except ModelError as error:
            assert isinstance(error, Unavailable) or "404" in str(error) or "NOT_FOUND" in str(error), error
            time.sleep(0.2)
        else:
            model.close()
            return


@pytest.fixture(params=["http", "grpc"])
def model(urls: dict[str, str], request: pytest.FixtureRequest) -> Iterator[RemoteModel]:
    made = RemoteModel(urls[request.param], "m", timeout=30)
    made.load()
    yield made
    made.close()


def test_it_describes_inputs_and_outputs(model: RemoteModel) -> None:
    assert [str(spec) for spec in model.inputs] == ["x: float32[?, 3]", "k: int64[?]", "t: str[?]"]
    assert [str(spec) for spec in model.outputs] == ["score: float32[?, 1]", "minus: int64[?]", "text: str[?]"]


def test_numbers_and_texts_come_back_as_the_model_made_them(model: RemoteModel) -> None:
    random = np.random.default_rng(1)
    for count in (1, 2, 300):
        x = random.integers(-99, 99, (count, 3)).astype(np.float32)
        k = random.integers(0, 2**50, count)
        texts = np.array([f"grüezi {i}" for i in range(count)], dtype=object)
        found = model.predict({"x": x, "k": k, "t": texts})
        assert found["score"].tolist() == (x @ np.array(WEIGHTS, np.float32)).tolist()
        assert found["minus"].tolist() == (-k).tolist()
        assert found["text"].tolist() == [text.upper() for text in texts]
        assert [found[s.name].dtype.kind for s in model.outputs] == ["f", "i", "O"]


def test_a_model_that_is_not_there_is_named(urls: dict[str, str]) -> None:
    for url, answer in ((urls["http"], "answers 404"), (urls["grpc"], "answers NOT_FOUND")):
        with pytest.raises(ModelError, match=re.escape(answer) + ".*is the model .*there"):
            RemoteModel(url, "none", timeout=30).load()


def test_an_error_of_the_model_is_shown(model: RemoteModel) -> None:
    given = {"x": np.zeros((1, 3), np.float32), "k": np.array([-1]), "t": np.array(["a"], dtype=object)}
    with pytest.raises(ModelError, match=r"k is negative|500|INVALID_ARGUMENT|INTERNAL|UNKNOWN"):
        model.predict(given)
    given["k"] = np.array([1])
    assert model.predict(given)["minus"].tolist() == [-1]


def test_a_port_on_which_nothing_listens_is_given_up() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match=r"answers UNAVAILABLE .*; gave up after 2 attempts"):
        RemoteModel(f"grpc://127.0.0.1:{port}", "m", retries=1, timeout=30).load()
