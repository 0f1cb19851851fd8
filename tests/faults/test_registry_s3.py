"""A registry in an object store: moto's S3 server on loopback, in an environment of its own, with killed writers."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from streamml.models import Bundle  # noqa: E402

pytestmark = [pytest.mark.nightly, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(600)]

CHILD = Path(__file__).with_name("registry_child.py")
SERVER = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
# One request at a time: moto looks whether an object is there and then writes it, which S3 does in one step.
app = DomainDispatcherApplication(create_backend_app)
make_server("127.0.0.1", int(sys.argv[1]), app, threaded=False).serve_forever()
"""


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of an environment with s3fs and moto, which sees this environment's packages as well."""
    root = Path(__file__).parents[2] / ".cache/s3/venv"
    python = root / "bin/python"
    done = root / "installed"
    if not done.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        for command in (
            [uv, "venv", "-q", "--clear", "--python", sys.executable, str(root)],
            [uv, "pip", "install", "-q", "--python", str(python), "s3fs", "moto[server,s3]"],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"S3: can't install s3fs and moto: {made.stderr.strip()[-300:]}")
        packages = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        ours = sysconfig.get_path("purelib")
        (Path(packages) / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        done.touch()
    return python


@pytest.fixture
def place(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty registry; children find the server by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen([str(python), "-c", SERVER, str(port)], stdout=log, stderr=log)
    try:
        for name, value in {
            "FSSPEC_S3_ENDPOINT_URL": address, "FSSPEC_S3_KEY": "k", "FSSPEC_S3_SECRET": "s",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "STREAMML_CACHE": str(tmp_path / "cache"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        until = time.monotonic() + 60
        while time.monotonic() < until and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        make = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
        made = subprocess.run([str(python), "-c", make], capture_output=True, text=True, check=False, timeout=60)
        assert made.returncode == 0, made.stderr + (tmp_path / "server.log").read_text()
        yield "s3://bucket/models"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "m",
        *[[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1])] for name in ("x", "y")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    golden = {"x": np.ones((3, 1), np.float32)}
    return Bundle.write(tmp_path / "b", tmp_path / "m.onnx", name="m", version=1, features=["i"], golden=golden)


@pytest.fixture
def start(python: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def call(*args: object) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([str(python), str(CHILD), *map(str, args)], text=True, env=os.environ, **pipes)
        started.append(process)
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline()
        assert line == "ready\n", process.communicate()[1]
        process.stdin.write("go\n")
        process.stdin.flush()
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def check(python: Path, place: str) -> Callable[[], dict[str, Any]]:
    """Prove that the registry is whole, and return what is in it."""

    def call() -> dict[str, Any]:
        command = [str(python), str(CHILD), "check", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def numbers(process: subprocess.Popen[str]) -> list[int]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [int(n) for n in out.split()]


def test_two_writers_at_once_lose_and_double_nothing(
    place: str, bundle: Bundle, start: Callable[..., subprocess.Popen[str]], check: Callable[[], dict[str, Any]]
) -> None:
    adds = [start("add", place, bundle.path, 4) for _ in range(2)]
    versions = [n for add in adds for n in numbers(add)]
    appends = {who: start("append", place, who, 25) for who in ("a", "b")}
    got = {who: numbers(process) for who, process in appends.items()}
    found = check()
    assert sorted(versions) == found["versions"] == list(range(1, 9))
    assert sorted(got["a"] + got["b"]) == [number for number, _, _ in found["records"]] == list(range(1, 51))
    for who in ("a", "b"):
        assert [why for _, by, why in found["records"] if by == who] == [str(n) for n in range(25)]


def test_killed_writers_leave_nothing_half(
    place: str, bundle: Bundle, start: Callable[..., subprocess.Popen[str]], check: Callable[[], dict[str, Any]]
) -> None:
    numbers(start("add", place, bundle.path, 1))
    chance = random.Random(7)
    for _ in range(3):
        writers = [start("add", place, bundle.path, 10**6), start("append", place, "k", 10**6)]
        time.sleep(chance.uniform(0, 0.5))
        for writer in writers:
            writer.kill()
        said = [[int(n) for n in writer.communicate()[0].split("\n")[:-1]] for writer in writers]
        found = check()
        assert set(said[0]) <= set(found["versions"])
        assert set(said[1]) <= {number for number, _, _ in found["records"]}
    last = numbers(start("add", place, bundle.path, 1))
    assert last[0] > found["versions"][-1]
    assert numbers(start("append", place, "z", 1)) == [len(check()["records"])]
