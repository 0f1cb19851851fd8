"""`Infer` against Beam's `RunInference`: the same model and rows, from dicts to scores, CPU per row in one run.

What starts and stops with a pipeline is taken out: the cost of a twentieth of the rows is subtracted.

    make bench ARGS="-k test_runinference"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("apache_beam")

HERE = Path(__file__).parent
ROWS = int(os.environ.get("STREAMML_BENCH_ROWS", "40000"))

pytestmark = pytest.mark.bench


def run(which: str, model: Path) -> dict[str, float]:
    command = [sys.executable, str(HERE / "inference.py"), which, str(ROWS), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_infer_costs_at_most_a_third_of_run_inference(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    ours = run("infer", model)
    print(f"\nCPU per row, {ROWS:,} rows: Infer on the embedded engine {ours['us']:.2f} us")
    for runner in ("bundles", "fnapi"):
        theirs = run(runner, model)
        ratio = ours["us"] / theirs["us"]
        print(f"  RunInference, {runner}: {theirs['us']:.2f} us; ratio {ratio:.3f}")
        assert theirs["total"] == pytest.approx(ours["total"], rel=1e-4)
        assert ratio < 1 / 3
