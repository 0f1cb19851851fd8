"""W in a Beam pipeline: `KeyedStage` against stateful DoFns and `RunInference` by hand, both on BundleBased.

Without late and out-of-order events, so that both give the same scores. What starts and stops with a pipeline is taken
out: the cost of a small input is subtracted.

    make bench ARGS="-k test_beam"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamml.generate import workload

pytest.importorskip("apache_beam")
pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
EVENTS = int(os.environ.get("STREAMML_BENCH_EVENTS", "40000"))

pytestmark = [pytest.mark.bench, pytest.mark.beam, pytest.mark.timeout(0)]


def run(which: str, source: Path, model: Path) -> dict[str, float]:
    command = [sys.executable, str(HERE / "beam_w.py"), which, str(source), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_stage_costs_at_most_half_of_the_dofns_that_one_would_write(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    sizes = (EVENTS // 10, EVENTS)
    sources = [tmp_path / f"{size}.jsonl" for size in sizes]
    for size, source in zip(sizes, sources, strict=True):
        with source.open("wb") as file:
            file.writelines(line + b"\n" for line in workload(size, late=0.0, out_of_order=0.0))
    found = {which: [run(which, source, model) for source in sources] for which in ("ours", "idiomatic")}
    us = {which: (large["cpu"] - small["cpu"]) / (sizes[1] - sizes[0]) * 1e6 for which, (small, large) in found.items()}
    ratio = us["ours"] / us["idiomatic"]
    print(f"\nW on Beam: {us['ours']:.0f} us of CPU per event, by hand {us['idiomatic']:.0f}, ratio {ratio:.2f}")
    for mine, theirs in zip(found["ours"], found["idiomatic"], strict=True):
        assert mine["out"] == theirs["out"]
        assert mine["total"] == pytest.approx(theirs["total"], rel=1e-4)
    assert ratio < 0.5
