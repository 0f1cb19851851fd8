"""Workload W, file to file, on the embedded engine against the floor: one hand-written loop of the same logic."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from streamml.generate import workload

HERE = Path(__file__).parent
EVENTS = int(os.environ.get("STREAMML_BENCH_EVENTS", "500000"))
PAIRS = 3

pytestmark = pytest.mark.bench


def run(which: str, source: Path, model: Path, folder: Path) -> dict[str, float]:
    folder.mkdir()
    command = [sys.executable, str(HERE / "workload_w.py"), which, str(source), str(model), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def scores(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_w_costs_little_more_than_a_loop_without_an_engine(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    source = tmp_path / "w.jsonl"
    with source.open("wb") as file:
        file.writelines(line + b"\n" for line in workload(EVENTS))
    pairs = []
    for number in range(PAIRS):
        floor = run("floor", source, model, tmp_path / f"floor{number}")
        engine = run("engine", source, model, tmp_path / f"engine{number}")
        pairs.append((engine["us"], floor["us"]))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"\nW, {EVENTS:,} events, file to file, checkpoints every 5 s on RocksDB, exactly once:")
    for engine_us, floor_us in pairs:
        print(
            f"  engine {engine_us:5.2f} us of CPU per event, floor {floor_us:5.2f}, ratio {engine_us / floor_us:4.2f}"
        )
    print(f"  median ratio {ratio:4.2f}")
    # The same records in the same order: only the floor's own batches of 256 could differ in the last bit of a score.
    assert scores(tmp_path / "floor0/floor.jsonl") == [
        {**row, "id": str(row["id"]).removesuffix("/mlp:0")} for row in scores(tmp_path / "engine0/out.jsonl")
    ]
    assert ratio < 4
