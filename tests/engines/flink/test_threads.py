"""torch and onnxruntime in a keyed stage with two slots in each TaskManager: one computing thread for each subtask."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flink_topics import committed, send, wait

from streamml.cli.loading import load_job
from streamml.flink.submit import SubmitOptions, submit
from streamml.models import Bundle
from streamml.models.policy import Policy

pytestmark = [
    pytest.mark.flink,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

JOB = Path(__file__).parent / "jobs" / "heavy.py"
EVENTS = 16_000
WIDTH = 1024
PARALLELISM = 4  # of two TaskManagers with two slots each
TICKS = os.sysconf("SC_CLK_TCK")


def write_models(folder: Path) -> None:
    """Write the same network for both runtimes; a row costs some three million multiplications."""
    torch, onnx = pytest.importorskip("torch"), pytest.importorskip("onnx")
    torch.manual_seed(1)
    sizes = (1, WIDTH, WIDTH, WIDTH, WIDTH, 1)
    layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    steps = [step for layer in layers for step in (layer, torch.nn.ReLU())][:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so
        torch.jit.trace(torch.nn.Sequential(*steps).eval(), torch.zeros(2, 1)).save(str(folder / "net.pt"))
    helper, kind, nodes, weights = onnx.helper, onnx.TensorProto.FLOAT, [], []
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        for name, value in (("w", layer.weight), ("b", layer.bias)):
            weights.append(onnx.numpy_helper.from_array(value.detach().numpy(), f"{name}{number}"))
        names = [f"a{number}" if number else "x", f"w{number}", f"b{number}"]
        nodes.append(helper.make_node("Gemm", names, ["y" if last else f"g{number}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{number}"], [f"a{number + 1}"]))
    shapes = [[helper.make_tensor_value_info(name, kind, ["n", 1])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", *shapes, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    golden = {"x": np.arange(5, dtype=np.float32).reshape(-1, 1)}
    allowed = {"features": ["x"], "golden": golden, "policy": Policy(allow=("torch.jit",))}
    for name, file, runtime in (("torchnet", "net.pt", "torchscript"), ("onnxnet", "net.onnx", "onnx")):
        path = folder / "models" / name / "1"
        Bundle.write(path, folder / file, name=name, version=1, runtime=runtime, **allowed)


def children(pid: int) -> list[int]:
    """Return the processes below a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def is_python(pid: int) -> bool:
    """Return whether a process is a Python worker."""
    return b"pyflink" in Path(f"/proc/{pid}/cmdline").read_bytes()


def threads(pid: int) -> dict[int, float]:
    """Return the seconds of processor time of each thread of a process."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        found[int(path.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def busy(before: dict[int, float], after: dict[int, float]) -> int:
    """Return how many threads did more than a fifth of what the busiest did."""
    spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
    most = max(spent.values(), default=0.0)
    return sum(seconds > most / 5 for seconds in spent.values())


def computes(before: dict[int, float], after: dict[int, float]) -> bool:
    """Return whether a process did more than a little meanwhile."""
    return sum(after.values()) - sum(before.values()) > 0.5


GREEDY = """
import torch
x = torch.zeros(2048, 2048)
print("go", flush=True)
while True:
    x = x @ x
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_what_counts_threads_sees_those_of_torch_that_is_not_held_back() -> None:
    pytest.importorskip("torch")
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    process = subprocess.Popen([sys.executable, "-c", GREEDY], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        before = threads(process.pid)
        wait("work", lambda: sum(threads(process.pid).values()) > sum(before.values()) + 3)
        assert busy(before, threads(process.pid)) > 1
    finally:
        process.kill()
        process.communicate()


def test_each_subtask_computes_on_one_thread(
    session_cluster: Any, session_broker: str, flink: None, tmp_path: Path
) -> None:
    write_models(tmp_path)
    python = tmp_path / "python"  # workers that torch would start three threads in
    python.write_text(f"""#!/bin/sh
export OMP_NUM_THREADS=3 MKL_NUM_THREADS=3 OPENBLAS_NUM_THREADS=3 STREAMML_ALLOW_CODE=torch.jit
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    job = load_job(str(JOB))
    models = (str(tmp_path / "models"),)
    pipeline = job.pipeline({}, models)
    rest = session_cluster.rest
    options = SubmitOptions(
        jobmanager=rest.address,
        parallelism=PARALLELISM,
        checkpoint_interval=500,
        settings={"python.executable": str(python)},
    )
    where = f"kafka://{session_broker}"
    sides = dict.fromkeys(pipeline.sides, "null:")
    source = {"heavy": f"{where}/heavy?create=true&retention=forever"}
    sink = f"{where}/heavy-scores?create=true&retention=forever"
    id = submit(pipeline, source, sink, sides, options, module=job.module, models=models)
    lines = [
        msgspec.json.encode({"n": str(n), "user": f"u{n % 500}", "ts": 1_700_000_000_000 + n, "x": n / 1000})
        for n in range(EVENTS + 500)
    ]
    send(session_broker, "heavy", lines[:500])
    wait("first scores", lambda: len(committed(session_broker, "heavy-scores")) >= 500)
    managers = session_cluster.task_managers()
    workers = [pid for manager in managers for pid in children(manager) if is_python(pid)]
    before = {pid: threads(pid) for pid in workers}
    send(session_broker, "heavy", lines[500:])
    wait("all scores", lambda: len(committed(session_broker, "heavy-scores")) >= EVENTS + 500)
    after = {pid: threads(pid) for pid in workers}
    rest.cancel(id)
    computing = {pid: busy(before[pid], after[pid]) for pid in workers if computes(before[pid], after[pid])}
    assert len(computing) > 1, "the subtasks are in one process: count them there"
    assert sum(computing.values()) <= PARALLELISM, computing
    rows = [msgspec.json.decode(line) for line in committed(session_broker, "heavy-scores")]
    assert all(row["torch"] == pytest.approx(row["onnx"], rel=1e-3, abs=1e-4) for row in rows)
