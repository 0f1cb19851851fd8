from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models.threads import Budget

onnx = pytest.importorskip("onnx")

# Loads four sessions that want four threads each, uses them in turn, and tells what the operating system saw.
PROGRAM = """
import json, os, sys
import numpy as np
import onnxruntime as ort

def threads():
    return {name: sum(map(int, open(f"/proc/self/task/{name}/stat").read().rsplit(")")[1].split()[11:13]))
            for name in os.listdir("/proc/self/task")}

path, how = sys.argv[1:]
ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": np.ones((1, 512), np.float32)})
before = set(threads())
if how == "plain":
    options = ort.SessionOptions()
    options.intra_op_num_threads = 4
    sessions = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(4)]
    calls = [lambda given, s=s: s.run(None, given) for s in sessions]
else:
    from streamml.models import OnnxModel
    models = [OnnxModel(path, threads=4) for _ in range(4)]
    for model in models:
        model.load()
    calls = [model.predict for model in models]
rows = {"x": np.ones((1024, 512), np.float32)}
for _ in range(200):  # until each thread was seen at work, which takes a while on a busy machine
    for call in calls:
        call(rows)
    after = threads()
    helpers = {name: ticks for name, ticks in after.items() if name not in before}
    if all(helpers.values()) or how == "plain":
        break
main = str(os.getpid())
print(json.dumps({"new": len(helpers), "busy": sum(ticks > 0 for ticks in helpers.values()), "main": after[main]}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product with a large matrix, which onnxruntime splits over all threads that it has."""
    from onnx import TensorProto, helper, numpy_helper

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 512]) for name in ("x", "y")]
    weights = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "wide", sides[:1], sides[1:], [weights])
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def used(path: Path, how: str, budget: str) -> dict[str, int]:

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), how],
        env={**os.environ, "STREAMML_THREADS": budget},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("budget", "helpers"), [("1", 0), ("2", 1), ("3", 2)])
def test_four_sessions_at_once_have_no_more_threads_than_the_budget(wide: Path, budget: str, helpers: int) -> None:
    found = used(wide, "streamml", budget)
    assert found["new"] == helpers, found
    assert found["busy"] == helpers, "the threads that were given are not used"
    assert found["main"] > 0


def test_without_a_budget_four_sessions_have_twelve_threads_more(wide: Path) -> None:
    """The oracle: what the count above would see if the budget did nothing."""
    assert used(wide, "plain", "2")["new"] == 12


def test_leases_never_exceed_the_budget_and_come_back() -> None:
    random = np.random.default_rng(1)
    cores = Budget(5)
    held = []
    for _ in range(2000):
        if held and random.random() < 0.5:
            held.pop(int(random.integers(len(held)))).close()
        else:
            held.append(cores.lease(int(random.integers(1, 7))))
        assert all(lease.threads >= 1 for lease in held)
        assert sum(lease.threads - 1 for lease in held) <= 4
    for lease in held:
        lease.close()
        lease.close()
    assert cores.lease(9).threads == 5


@pytest.mark.parametrize("said", ["x", "-1", "0"])
def test_a_budget_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ModelError, match="wanted"):
        Budget.from_env({"STREAMML_THREADS": said})


def test_the_default_is_the_cores_that_the_process_may_use() -> None:
    assert Budget.from_env({}).total == len(os.sched_getaffinity(0))
