"""Workload W as files, and the nursery of processes that are killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.generate.payments import workload

EVENTS = 60_000
EVERY_BATCH = {"checkpoint_interval": "0s", "batch_size": 256, "fsync": False}
"""Options with which a run takes its checkpoints at the same places each time; a killed process needs no fsync."""


@dataclass
class Run:
    """One process from its start to its end."""

    nursery: Nursery
    pid: int
    lines: list[str] = field(default_factory=list)
    code: int | None = None

    def __iter__(self) -> Iterator[str]:
        """What it tells, until it has ended."""
        while self.code is None:
            line = self.nursery.read()
            word, _, rest = line.partition(" ")
            if word == "exit":
                self.code = int(rest)
            else:
                self.lines.append(line)
                yield line

    def kill(self, number: int = signal.SIGKILL) -> Run:
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> Run:
        for _ in self:
            pass
        return self

    @property
    def steps(self) -> list[str]:
        return [line.removeprefix("step ") for line in self.lines if line.startswith("step ")]

    @property
    def end(self) -> dict[str, Any]:
        """What the engine said at its end."""
        assert self.code == 0, (self.code, self.lines[-5:])
        return json.loads(self.lines[-1].removeprefix("end "))

    @property
    def error(self) -> dict[str, str]:
        assert self.code == 5, (self.code, self.lines[-5:])
        return json.loads(self.lines[-1].removeprefix("error "))


class Nursery:
    """Starts a job in a process of its own; see `child.py`."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("child.py")
        self._process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line.endswith("\n"), f"the nursery has died: {line!r}"
        return line[:-1]

    def start(self, **request: Any) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        self._process.stdin.flush()
        word, pid = self.read().split()
        assert word == "pid"
        return Run(self, int(pid))

    def run(self, **request: Any) -> Run:
        return self.start(**request).wait()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLP 16-64-32-1 of workload W."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    random, sizes = np.random.default_rng(7), (16, 64, 32, 1)
    nodes, constants, last = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        for name, shape in ((f"w{layer}", (rows, columns)), (f"b{layer}", (columns,))):
            weights = (random.standard_normal(shape) / np.sqrt(rows)).astype(np.float32)
            constants.append(onnx.numpy_helper.from_array(weights, name))
        nodes.append(onnx.helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        last = f"g{layer}"
        if columns > 1:
            nodes.append(onnx.helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    nodes.append(onnx.helper.make_node("Sigmoid", [last], ["score"]))
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 16), ("score", 1))
    ]
    graph = onnx.helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    path = tmp_path_factory.mktemp("model") / "mlp.onnx"
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def write_events(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write so many records of W into a file."""

    def write(events: int, **options: Any) -> Path:
        path = tmp_path_factory.mktemp("input") / f"{events}.jsonl"
        with path.open("wb") as file:
            file.writelines(line + b"\n" for line in workload(events, **options))
        return path

    return write


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: many short runs, whose time is otherwise that of fsync."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="streamml-faults-", dir=shared) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Job:
    """A job of `child.py` and what it makes when nothing goes wrong."""

    name: str
    input: Path
    model: Path
    events: int
    outputs: dict[str, bytes]
    options: dict[str, Any]
    steps: list[str]
    """Every durable step of that run, in order."""

    def check(self, folder: Path) -> None:
        """The outputs in this folder are those of the undisturbed run, record for record and in order."""
        assert_same(outputs(folder), self.outputs)

    def request(self, folder: Path, **more: Any) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        return {
            "job": self.name,
            "input": self.input,
            "model": self.model,
            "folder": folder,
            "options": self.options,
        } | more


def outputs(folder: Path) -> dict[str, bytes]:
    """Every output by its name; what was left half done is one too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def assert_same(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Compare record for record, in order."""
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        if found[name] != data:
            mine, theirs = found[name].splitlines(), data.splitlines()
            lost, more = set(theirs) - set(mine), set(mine) - set(theirs)
            at = next(
                (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
            )
            pytest.fail(
                f"{name}: wanted {len(theirs)} records, got {len(mine)}; {len(lost)} lost, {len(more)} unknown, "
                f"{len(mine) - len(set(mine))} doubled; the first difference is at record {at}"
            )


def _job(name: str, input: Path, model: Path, nursery: Nursery, folder: Path, **options: Any) -> Job:
    run = nursery.run(**Job(name, input, model, 0, {}, options, []).request(folder))
    assert run.end["finished"] and run.end["restored"] is None
    found = outputs(folder)
    assert all(data.endswith(b"\n") or not data for data in found.values())
    return Job(name, input, model, run.end["events"], found, options, run.steps)


@pytest.fixture(scope="session")
def w(
    nursery: Nursery, model: Path, write_events: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """Workload W, reduced, and with some records that are broken, so that every output has records."""
    return _job("w", write_events(EVENTS, malformed=0.002), model, nursery, tmp_path_factory.mktemp("w"))


@pytest.fixture(scope="session")
def small(
    nursery: Nursery, model: Path, write_events: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """A job with timers and corrections over a few thousand records."""
    input = write_events(1_500, cards=80, late_by="4s", late=0.05)
    return _job("windows", input, model, nursery, tmp_path_factory.mktemp("small"), **EVERY_BATCH)
