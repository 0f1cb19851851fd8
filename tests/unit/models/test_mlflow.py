"""The mirror of a real MLflow server on loopback, in an environment of its own, with versions that MLflow logs."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from streamml.errors import ConnectorError
from streamml.models import Bundle, Policy, Registry, new_key, rolling
from streamml.models.mlflow_registry import MlflowMirror, Step, watch
from streamml.models.mlflow_server import MlflowServer, NotThere
from streamml.models.registry import now
from streamml.models.serve import serve

pytest.importorskip("yaml")
pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
NEEDS = ("mlflow==3.17.0", "onnx", "onnxruntime")
STREAMML = (sys.executable, "-c", "from streamml.cli.main import main; main()")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
FEATURES = ["a", "b", "c"]
ROWS = np.random.default_rng(1).uniform(-9, 9, (20, 3)).astype(np.float32)

LOGGER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy as np, onnx, pandas as pd
from mlflow import MlflowClient
client = MlflowClient()

def log(name, model, flavor="onnx", example=None, columns=None, metrics=(), params=(), tags=(), **more):
    rows = None
    if example is not None:
        rows = np.asarray(example, np.float32) if isinstance(example, list) else {
            key: np.asarray(value, np.float32) for key, value in example.items()}
        rows = pd.DataFrame(rows, columns=columns) if columns else rows
    with mlflow.start_run() as run:
        mlflow.log_metrics(dict(metrics))
        mlflow.log_params(dict(params))
        mlflow.set_tags(dict(tags))
        fixed = dict(name="model", input_example=rows, pip_requirements=["mlflow"], registered_model_name=name)
        if flavor == "onnx":
            mlflow.onnx.log_model(onnx.load(model), **fixed, **more)
        else:
            from sklearn.linear_model import LogisticRegression
            data = np.random.default_rng(3).normal(size=(200, 3))
            made = LogisticRegression().fit(data, data @ [1, -2, 3] > 0)
            mlflow.sklearn.log_model(made, **fixed, **more)
            np.save(model, made.predict_proba(rows.to_numpy() if columns else rows))
    return run.info.run_id

for line in sys.stdin:
    call, args, options = json.loads(line)
    found = log(*args, **options) if call == "log" else getattr(client, call)(*args, **options)
    print("done " + json.dumps(found, default=str), flush=True)
"""


def environment() -> Path:
    """The folder with the programs of MLflow's own environment, which is made if it is not there."""
    root = ROOT / ".cache/mlflow/venv"
    if not (root / "bin/mlflow").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        for command in (
            [uv, "venv", "-q", "--clear", "--python", sys.executable, str(root)],
            [uv, "pip", "install", "-q", "--python", str(root / "bin/python"), *NEEDS],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"MLflow's environment can't be made: {made.stderr.strip()[-300:]}")
    return root / "bin"


class Mlflow:
    """A server that can be stopped and started again, and MLflow's own client, in a process that takes calls."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.url = folder, port, f"mlflow://127.0.0.1:{port}"
        self.programs = environment()
        self.client: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        command: list[str | Path] = [
            self.programs / "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", self.folder / "artifacts"]
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **QUIET}, start_new_session=True, stdout=log, stderr=log
            )
        while True:
            assert self.server.poll() is None, (self.folder / "log").read_text()
            try:
                MlflowServer(self.url, timeout=10).models()
            except ConnectorError:
                time.sleep(0.2)
            else:
                return

    def stop(self) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def close(self) -> None:
        self.stop()
        if self.client is not None:
            self.client.kill()
            self.client.communicate()

    def do(self, call: str, *args: Any, **options: Any) -> Any:
        if self.client is None:
            environ = {**os.environ, **QUIET, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}"}
            with (self.folder / "client.log").open("ab") as log:
                self.client = subprocess.Popen(
                    [self.programs / "python", "-c", LOGGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    stderr=log, cwd=self.folder, env=environ,
                )  # fmt: skip
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        print(json.dumps([call, args, options]), file=self.client.stdin, flush=True)
        for line in self.client.stdout:  # MLflow prints where its pages are, too
            if line.startswith("done "):
                return json.loads(line.removeprefix("done "))
        raise AssertionError((self.folder / "client.log").read_text())

    def log(self, name: str, weights: list[float], **options: Any) -> str:
        """Log `score = rows @ weights` as the next version, with an example unless told otherwise."""
        path = linear(self.folder / "made.onnx", weights)
        options = {"example": ROWS.tolist(), "columns": FEATURES, **options}
        return str(self.do("log", name, str(path), **options))

    def alias(self, name: str, alias: str, version: int) -> None:
        self.do("set_registered_model_alias", name, alias, str(version))

    def tag(self, name: str, version: int, **tags: Any) -> None:
        for key, value in tags.items():
            self.do("set_model_version_tag", name, str(version), key, str(value))


def linear(path: Path, weights: list[float]) -> Path:
    kept = numpy_helper.from_array(np.array(weights, np.float32).reshape(-1, 1), "w")
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", len(weights)), ("y", 1))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", shapes[:1], shapes[1:], [kept])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as held:
        return int(held.server_port)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    made = Mlflow(tmp_path_factory.mktemp("mlflow"), free_port())
    yield made
    made.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model for each test."""
    return re.sub(r"\W", "-", request.node.name)[-60:]


@pytest.fixture
def mirror(mlflow: Mlflow, name: str, tmp_path: Path) -> MlflowMirror:
    return MlflowMirror(MlflowServer(mlflow.url), Registry(tmp_path / "models"), [name], lead=0)


def streamml(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STREAMML, *args], capture_output=True, text=True, check=False, **options)


def soon(true: Callable[[], bool]) -> None:
    stop = time.monotonic() + 60
    while not true():
        assert time.monotonic() < stop, "did not come about"
        time.sleep(0.01)


def story(registry: Registry, name: str) -> list[tuple[Any, ...]]:
    return [(r.action, r.champion, [(s.version, s.percent) for s in r.splits], list(r.shadows))
            for r in registry.records(name)]  # fmt: skip


def whats(steps: list[Step]) -> list[tuple[str, int | None]]:
    return [(step.what, step.version) for step in steps]


def test_versions_become_bundles_with_the_same_numbers_and_their_lineage(
    mlflow: Mlflow, mirror: MlflowMirror, name: str
) -> None:
    run = mlflow.log(
        name, [1, 10, 100], metrics={"r2": 0.5, "odd": float("nan")}, params={"depth": 3}, tags={"team": "risk"}
    )
    mlflow.log(name, [1, 2, 3], example=None, columns=None)
    mlflow.log(name, [1, 1, 1])
    mlflow.do("delete_model_version", name, "3")
    mlflow.log(name, [2, 2, 2], example={"x": ROWS.tolist()}, columns=None)
    mlflow.tag(name, 4, features="a, b, c")
    steps = mirror.sync()
    assert whats(steps) == [("added", 1), ("added", 4), ("refused", 2)]
    assert "it has no input example" in steps[-1].text
    assert mirror.registry.versions(name) == [1, 4]
    for version, weights in ((1, [1, 10, 100]), (4, [2, 2, 2])):
        bundle = Bundle.load(mirror.registry.path(name, version))
        bundle.verify()
        assert (bundle.manifest.name, bundle.manifest.version) == (name, version)
        assert bundle.manifest.features == ("a", "b", "c")
        inputs, outputs = bundle.golden()
        np.testing.assert_array_equal(inputs["x"], ROWS)
        np.testing.assert_allclose(outputs["y"], ROWS @ np.array(weights, np.float32).reshape(3, 1), rtol=1e-5)
    said = Bundle.load(mirror.registry.path(name, 1)).manifest.metadata
    assert said["metrics"] == {"r2": 0.5}
    assert said["owner"]
    assert (said["mlflow"]["run_id"], said["mlflow"]["params"]) == (run, {"depth": "3"})
    assert said["mlflow"]["run_tags"]["team"] == "risk"
    assert whats(mirror.sync()) == [("refused", 2)]


def test_weights_that_a_graph_keeps_outside_come_along(mlflow: Mlflow, mirror: MlflowMirror, name: str) -> None:
    weights = np.random.default_rng(2).normal(size=600)
    rows = np.random.default_rng(3).normal(size=(5, 600)).astype(np.float32)
    mlflow.log(name, weights.tolist(), example=rows.tolist(), columns=[f"f{i}" for i in range(600)])
    assert whats(mirror.sync()) == [("added", 1)]
    bundle = Bundle.load(mirror.registry.path(name, 1))
    assert sorted(Path(file).suffix for file in bundle.manifest.files) == [".data", ".npz", ".onnx"]
    bundle.verify()
    np.testing.assert_allclose(bundle.golden()[1]["y"][:, 0], rows.astype(np.float64) @ weights, rtol=1e-3, atol=1e-3)


def test_an_alias_that_is_moved_in_mlflow_is_a_promotion_that_a_running_job_follows(
    mlflow: Mlflow, name: str, tmp_path: Path
) -> None:
    for factor in (1.0, 2.0):
        mlflow.log(name, [factor] * 3)
    mlflow.alias(name, "champion", 1)
    place = str(tmp_path / "models")
    command = ["models", "sync", mlflow.url + "/", name, "--models", place, "--lead", "0s"]
    done = streamml(*command)
    assert done.returncode == 0, done.stderr
    assert f"{name}@prod: promote: version 1 from always (record 1): in MLflow, champion is" in done.stdout
    serving = serve(f"{name}@prod", [place], poll=0.02)
    try:
        assert serving.rollout(serving.history, now()).champion == 1
        mlflow.alias(name, "champion", 2)
        before = now()
        assert streamml(*command).returncode == 0
        soon(lambda: serving.rollout(serving.history, now()).champion == 2)
        assert serving.rollout(serving.history, before).champion == 1
        columns = [[float(value)] for value in ROWS[0]]
        for at, factor in ((before, 1), (now(), 2)):
            model = serving.model(serving.rollout(serving.history, at).champion)
            (score,) = model.score(columns, 1)["y"]
            assert score == pytest.approx(float(ROWS[0].sum()) * factor, rel=1e-5)
    finally:
        serving.close()
    history = json.loads(streamml("models", "history", name, "--models", place, "--json").stdout)
    assert [(r["action"], r["champion"]) for r in history] == [("promote", 1), ("promote", 2)]
    runs = [each.run_id for each in MlflowServer(mlflow.url).versions(name)]
    for record, version, run in zip(history, (1, 2), runs, strict=True):
        assert record["who"].startswith("mlflow:")
        assert record["why"].startswith(f"in MLflow, champion is version {version} of run ")
        assert f"({run})" in record["why"]
    assert streamml(*command).stdout == "nothing new\n"


def test_canary_shadow_and_stage_become_rollouts_and_a_guards_rollback_stays(
    mlflow: Mlflow, mirror: MlflowMirror, name: str
) -> None:
    for factor in (1, 2, 3, 4):
        mlflow.log(name, [factor] * 3)
    mlflow.do("transition_model_version_stage", name, "1", "Production")
    mlflow.alias(name, "canary", 2)
    mlflow.alias(name, "shadow_a", 3)
    blocked = mirror.sync()
    assert blocked[-1].what == "blocked"
    assert f"{name}:2: as a canary it needs the tag canary_percent" in blocked[-1].text
    assert story(mirror.registry, name) == [("promote", 1, [], [])]
    mlflow.tag(name, 2, canary_percent=5)
    mirror.sync()
    rolling.rollback(mirror.registry, name, who="job", why="guard: errors", lead=1)
    assert mirror.sync() == []
    mlflow.tag(name, 2, canary_percent=20)
    mirror.sync()
    mlflow.do("delete_registered_model_alias", name, "shadow_a")
    mirror.sync()
    mlflow.do("delete_registered_model_alias", name, "canary")
    mlflow.alias(name, "prod", 4)
    mirror.sync()
    assert mirror.sync() == []
    assert story(mirror.registry, name) == [
        ("promote", 1, [], []),
        ("canary", 1, [(2, 5.0)], [3]),
        ("rollback", 1, [], [3]),
        ("canary", 1, [(2, 20.0)], [3]),
        ("shadow", 1, [(2, 20.0)], []),
        ("promote", 4, [], []),
    ]


def test_an_alias_on_a_version_that_cannot_be_here_blocks_the_whole_model_and_ends_with_code_5(
    mlflow: Mlflow, name: str, tmp_path: Path
) -> None:
    mlflow.log(name, [1, 1, 1])
    mlflow.log(name, [2, 2, 2], example=None, columns=None)
    mlflow.alias(name, "champion", 2)
    command = ["models", "sync", mlflow.url, name, "--models", str(tmp_path / "models"), "--json"]
    done = streamml(*command)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 5
    assert [(s["what"], s["version"]) for s in steps] == [("refused", 2), ("refused", 1), ("blocked", 2)]
    assert "has to wait until it is known which version is to serve: MLflow" in steps[1]["text"]
    assert Registry(tmp_path / "models").versions(name) == []
    mlflow.alias(name, "champion", 1)
    assert streamml(*command).returncode == 0
    mlflow.alias(name, "champion", 2)
    assert streamml(*command).returncode == 5
    assert story(Registry(tmp_path / "models"), name) == [("promote", 1, [], [])]


def test_with_two_champions_nothing_of_a_new_model_is_brought_over(
    mlflow: Mlflow, mirror: MlflowMirror, name: str
) -> None:
    for version in (1, 2):
        mlflow.log(name, [1, 1, 1])
        mlflow.do("transition_model_version_stage", name, str(version), "Production")
    assert [step.what for step in mirror.sync()] == ["refused", "refused", "blocked"]
    assert mirror.registry.versions(name) == []
    mlflow.do("transition_model_version_stage", name, "1", "Archived")
    assert [step.what for step in mirror.sync()] == ["added", "rollout", "added"]
    assert story(mirror.registry, name) == [("promote", 2, [], [])]


def test_a_new_version_without_an_alias_changes_nothing_that_serves(
    mlflow: Mlflow, mirror: MlflowMirror, name: str
) -> None:
    mlflow.log(name, [1, 1, 1])
    mirror.sync()
    assert mirror.registry.champion(name) == 1
    mlflow.log(name, [2, 2, 2])
    mirror.sync()
    assert mirror.registry.versions(name) == [1, 2]
    assert mirror.registry.champion(name) == 1


def test_an_estimator_is_unpickled_only_when_that_is_allowed_and_converted(
    mlflow: Mlflow, mirror: MlflowMirror, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skl2onnx")
    expected = []
    for at, written in enumerate(("pickle", "cloudpickle", "skops")):
        path = tmp_path / f"{at}.npy"
        options = {"example": ROWS.tolist(), "columns": FEATURES, "serialization_format": written}
        mlflow.do("log", name, str(path), flavor="sklearn", **options)
        expected.append(np.load(path)[:, 1])
    steps = mirror.sync()
    assert [step.what for step in steps] == ["refused"] * 3
    assert "it runs code, 'mlflow.sklearn', which is not allowed" in steps[0].text
    packages = next((ROOT / ".cache/mlflow/venv/lib").glob("python*/site-packages"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])  # for skops, which only MLflow's environment has
    allowed = MlflowMirror(mirror.server, mirror.registry, [name], policy=Policy(allow=("mlflow.sklearn",)))
    steps = allowed.sync()
    assert [(step.what, step.version) for step in steps] == [("added", 1), ("added", 2), ("added", 3)], steps
    for version, scores in enumerate(expected, 1):
        bundle = Bundle.load(mirror.registry.path(name, version))
        bundle.verify(policy=Policy())
        assert bundle.manifest.features == ("a", "b", "c")
        np.testing.assert_allclose(bundle.golden()[1]["score"][:, 0], scores, atol=1e-5)


def test_a_model_that_was_deleted_and_made_anew_does_not_pass_as_the_old_one(
    mlflow: Mlflow, mirror: MlflowMirror, name: str
) -> None:
    mlflow.log(name, [1, 1, 1])
    mlflow.alias(name, "champion", 1)
    mirror.sync()
    mlflow.do("delete_registered_model", name)
    mlflow.log(name, [9, 9, 9])
    mlflow.alias(name, "champion", 1)
    steps = MlflowMirror(mirror.server, mirror.registry, [name]).sync()
    assert whats(steps) == [("refused", 1), ("blocked", 1)]
    assert "was made from models:/" in steps[0].text
    assert len(mirror.registry.records(name)) == 1


def test_bundles_are_signed_when_a_key_is_given(
    mlflow: Mlflow, mirror: MlflowMirror, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    public = new_key(tmp_path / "key.pem")
    mlflow.log(name, [1, 1, 1])
    mlflow.alias(name, "champion", 1)
    policy = Policy(trusted_keys=(public,), require_signature=True)
    steps = MlflowMirror(mirror.server, mirror.registry, [name], sign=tmp_path / "key.pem", policy=policy).sync()
    assert [step.what for step in steps] == ["added", "rollout"]
    Bundle.load(mirror.registry.path(name, 1)).verify(policy=policy)


def test_an_object_store_is_a_registry_too_and_a_version_that_a_killed_mirror_claimed_is_named(
    mlflow: Mlflow, name: str
) -> None:
    fsspec = pytest.importorskip("fsspec")
    for factor in (1, 2):
        mlflow.log(name, [factor] * 3)
    mlflow.alias(name, "champion", 1)
    place = f"memory://{name}"
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/{name}/{name}/2/.claim", b"somebody")
    mirror = MlflowMirror(MlflowServer(mlflow.url), Registry(place), [name])
    steps = mirror.sync()
    assert whats(steps) == [("added", 1), ("rollout", 1), ("refused", 2)]
    assert f"one was killed: remove {name}/2 in {place}" in steps[-1].text
    store.rm(f"/{name}/{name}/2", recursive=True)
    assert whats(mirror.sync()) == [("added", 2)]
    assert mirror.registry.versions(name) == [1, 2]
    Bundle.load(mirror.registry.path(name, 2)).verify()


def test_all_models_and_versions_are_found_over_several_pages(
    mlflow: Mlflow, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (name + "-a", name + "-b", name + "-c"):
        mlflow.do("create_registered_model", each)
    for _ in range(5):
        mlflow.log(name + "-b", [1, 1, 1])
    server = MlflowServer(mlflow.url)
    whole = server.models()
    monkeypatch.setattr("streamml.models.mlflow_server._PAGE", 2)
    assert server.models() == whole
    assert {name + "-a", name + "-b", name + "-c"} <= {model.name for model in whole}
    assert [each.version for each in server.versions(name + "-b")] == [1, 2, 3, 4, 5]
    with pytest.raises(NotThere, match=r"Registered Model with name=none"):
        MlflowMirror(server, Registry(tmp_path), ["none"]).sync()


CHILD = """
import os, signal, sys
from streamml.models import Registry
from streamml.models.mlflow_registry import MlflowMirror
from streamml.models.mlflow_server import MlflowServer

url, place, name, left = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def kill(event, args):
    global left
    changes = event in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))
    if changes and any(str(arg).startswith(place) for arg in args[:2]):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(kill)
MlflowMirror(MlflowServer(url), Registry(place), [name], lead=0).sync()
"""


def test_a_mirror_killed_before_any_change_on_the_disk_goes_on_and_writes_nothing_twice(
    mlflow: Mlflow, mirror: MlflowMirror, name: str, tmp_path: Path
) -> None:
    for factor in (1, 2, 3):
        mlflow.log(name, [factor] * 3)
    mlflow.alias(name, "champion", 1)
    mlflow.alias(name, "canary", 2)
    mlflow.alias(name, "shadow", 3)
    mlflow.tag(name, 2, canary_percent=5)
    mirror.sync()
    unbroken = story(mirror.registry, name)
    assert unbroken == [("promote", 1, [], []), ("canary", 1, [(2, 5.0)], [3])]
    kills = 0
    for left in range(1000):
        place = tmp_path / f"killed-{left}"
        child = subprocess.run([sys.executable, "-c", CHILD, mlflow.url, str(place), name, str(left)], check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
        registry = Registry(place)
        for version in registry.versions(name):
            Bundle.load(registry.path(name, version)).verify()
        assert story(registry, name) == unbroken[: len(registry.records(name))]
        assert registry.versions(name) == [] or registry.champion(name, at=0) == 1
        again = MlflowMirror(MlflowServer(mlflow.url), registry, [name], lead=0)
        again.sync()
        assert again.sync() == []
        assert registry.versions(name) == [1, 2, 3]
        assert story(registry, name) == unbroken
    assert kills > 15


def test_two_mirrors_at_once_are_as_one(mlflow: Mlflow, name: str, tmp_path: Path) -> None:
    for factor in (1, 2, 3):
        mlflow.log(name, [factor] * 3)
    mlflow.alias(name, "champion", 2)
    mlflow.alias(name, "shadow", 1)
    place = str(tmp_path / "models")
    command = [sys.executable, "-c", CHILD, mlflow.url, place, name, "1000000"]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    registry = Registry(place)
    assert registry.versions(name) == [1, 2, 3]
    assert story(registry, name) == [("promote", 2, [], []), ("shadow", 2, [], [1])]


def test_a_watch_waits_while_mlflow_is_down_and_goes_on_when_it_is_back(
    mlflow: Mlflow, name: str, tmp_path: Path
) -> None:
    mlflow.log(name, [1, 1, 1])
    mlflow.alias(name, "champion", 1)
    registry = Registry(tmp_path / "models")
    command = ["models", "sync", mlflow.url, name, "--models", registry.place]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        watching = subprocess.Popen([*STREAMML, *command, "--watch", "100ms"], stdout=out, stderr=err)
    try:
        soon(lambda: len(registry.records(name)) == 1)
        mlflow.log(name, [2, 2, 2])
        soon(lambda: registry.versions(name) == [1, 2])
        mlflow.stop()
        try:
            soon(lambda: "can't be reached" in (tmp_path / "err").read_text())
            gone = streamml(*command)
            assert gone.returncode == 3
            assert f"MLflow {mlflow.url}: can't be reached" in gone.stderr.replace("\n", " ")
        finally:
            mlflow.start()
        mlflow.alias(name, "champion", 2)
        soon(lambda: len(registry.records(name)) == 2)
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(60) == 0
    finally:
        watching.kill()
        watching.wait()
    assert story(registry, name) == [("promote", 1, [], []), ("promote", 2, [], [])]
    said = (tmp_path / "err").read_text()
    assert said.count("goes on trying") == 1
    assert said.count("back after") == 1
    assert (tmp_path / "out").read_text().count("added") == 2


def test_a_watch_says_what_cannot_be_done_once(mlflow: Mlflow, mirror: MlflowMirror, name: str) -> None:
    mlflow.log(name, [1, 1, 1], example=None, columns=None)
    stop = threading.Event()
    told: list[Step] = []
    passes = 0
    sync = mirror.sync

    def counted() -> list[Step]:
        nonlocal passes
        passes += 1
        if passes == 3:
            stop.set()
        return sync()

    mirror.sync = counted  # type: ignore[method-assign]
    watch(mirror, 0.001, stop, told.append, lambda text: pytest.fail(text))
    assert passes == 3
    assert whats(told) == [("refused", 1)]


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "x"}, "Basic bWU6eA=="),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({}, None),
    ],
)
def test_credentials_come_from_mlflows_own_variables(environ: dict[str, str], wanted: str | None) -> None:
    seen = []

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(401)

        def log_message(self, *args: Any) -> None:
            """Keep the test's output quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Door) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        server = MlflowServer(f"mlflow://127.0.0.1:{door.server_port}", environ=environ)
        with pytest.raises(ConnectorError, match=r"answers 401 .*; set MLFLOW_TRACKING_USERNAME and"):
            server.models()
        door.shutdown()
    assert seen == [wanted]
