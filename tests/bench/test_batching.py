"""Micro-batches that adapt to a latency target against fixed ones, under three kinds of load.

The model is a real one on onnxruntime. Arrivals are on a clock that stands still but for the model: it goes on by the
CPU time that each call took, and to the next arrival when nothing waits. So other load on the machine does not show as
latency, and each choice meets the same arrivals.

    make bench ARGS="-k test_batching"
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.models.batching import BatchSize  # noqa: E402
from streamml.models.onnx_model import OnnxModel  # noqa: E402

pytestmark = pytest.mark.bench

WIDTH, LAYERS = 128, 4
TARGET_MS = 10.0
SECONDS = 1.5
START = 0.2  # seconds that are not counted: until then the controller learns what a batch costs
FIXED = (1, 8, 64)


def write_mlp(path: Path) -> Path:
    """Write dense layers with ReLU: cheap by row in a large batch, dear in a small one."""
    rng = np.random.default_rng(1)
    nodes, kept, last = [], [], "x"
    for layer in range(LAYERS):
        weights = rng.normal(0, 0.1, (WIDTH, WIDTH if layer < LAYERS - 1 else 1)).astype(np.float32)
        kept.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        last = f"r{layer}" if layer < LAYERS - 1 else "y"
        nodes.append(helper.make_node("Relu" if layer < LAYERS - 1 else "Sigmoid", [f"m{layer}"], [last]))
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w])] for n, w in (("x", WIDTH), ("y", 1))]
    graph = helper.make_graph(nodes, "mlp", *infos, kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def play(
    model: OnnxModel, arrivals: np.ndarray, rows: np.ndarray, size: Callable[[], int], done: Callable[..., None]
) -> tuple[float, np.ndarray]:
    """Serve all in order; return events a second until the last is out, and the latency of each after the start."""
    now, at, latency = 0.0, 0, np.empty(len(arrivals))
    while at < len(arrivals):
        now = max(now, arrivals[at])
        there = int(np.searchsorted(arrivals, now, side="right"))
        upto = min(there, at + size())
        started = time.thread_time()
        model.predict({"x": rows[: upto - at]})
        took = time.thread_time() - started
        now += took
        latency[at:upto] = now - arrivals[at:upto]
        done(upto - at, took, there - upto)
        at = upto
    return len(arrivals) / (now - arrivals[0]), latency[arrivals > START]


def loads(capacity: float) -> dict[str, np.ndarray]:
    """Arrival times by kind of load, relative to what batches of 64 can take."""
    rng = np.random.default_rng(2)
    slots = np.arange(0, SECONDS, 0.001)
    rates = {
        "steady": np.full(len(slots), 0.7),
        "bursty": np.where(slots % 0.2 < 0.02, 4.0, 0.2),
        "ramping": np.linspace(0.05, 1.0, len(slots)),
    }
    found = {}
    for name, rate in rates.items():
        counts = rng.poisson(rate * capacity * 0.001)
        found[name] = np.sort(np.repeat(slots, counts) + rng.random(counts.sum()) * 0.001)
    return found


def test_batching_against_fixed_sizes(tmp_path: Path) -> None:
    model = OnnxModel(write_mlp(tmp_path / "mlp.onnx"))
    model.load()
    model.warm_up((1, 8, 64, 512))
    rows = np.random.default_rng(3).normal(0, 1, (8192, WIDTH)).astype(np.float32)
    started = time.thread_time()
    for _ in range(500):
        model.predict({"x": rows[:64]})
    capacity = 64 * 500 / (time.thread_time() - started)
    print(f"\nbatches of 64: {capacity:,.0f} rows a second of CPU; target {TARGET_MS:g} ms")
    for name, arrivals in loads(capacity).items():
        found: dict[str, tuple[float, float]] = {}
        for fixed in FIXED:
            rate, latency = play(model, arrivals, rows, lambda fixed=fixed: fixed, lambda *_: None)
            found[f"fixed {fixed}"] = (rate, float(np.quantile(latency, 0.99)) * 1000)
        batch = BatchSize(TARGET_MS)
        rate, latency = play(model, arrivals, rows, lambda batch=batch: batch.size, batch.done)
        found["adaptive"] = (rate, float(np.quantile(latency, 0.99)) * 1000)
        for choice, (per_second, p99) in found.items():
            print(f"{name:8} {choice:10} {per_second:12,.0f} rows/s   p99 {p99:10.3f} ms")
        fastest = max(found[f"fixed {n}"][0] for n in FIXED)
        quickest = min(found[f"fixed {n}"][1] for n in FIXED)
        throughput, p99 = found["adaptive"]
        print(f"{name:8} throughput {throughput / fastest:.2f} of the best fixed size, p99 {p99 / quickest:.2f}")
        assert throughput > 0.9 * fastest
        assert p99 < max(1.1 * quickest, TARGET_MS)
