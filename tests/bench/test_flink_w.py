"""Workload W on Flink, in events per second of one slot, against the PyFlink program that one would write by hand.

Runs alternate, for the machine may be shared; what is compared is the best round of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamml.generate import workload

HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("STREAMML_ROUNDS", "3"))

pytestmark = [pytest.mark.bench, pytest.mark.flink, pytest.mark.timeout(0)]


def rate(which: str, folder: Path, model: Path, small: int, large: int) -> float:
    """Events per second once warm: from the seconds of two jobs of different size."""
    seconds = []
    for events in (small, large):
        source = folder / f"{events}.jsonl"
        with source.open("wb") as file:
            file.writelines(line + b"\n" for line in workload(events))
        command = [sys.executable, str(HERE / "flink_w.py"), which, str(source), str(model)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        seconds.append(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return (large - small) / (seconds[1] - seconds[0])


def test_w_is_many_times_faster_than_the_program_by_hand(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    sizes = {"ours": (50_000, 350_000), "by-hand": (4_000, 24_000)}
    found: dict[str, list[float]] = {which: [] for which in sizes}
    for _ in range(ROUNDS):
        for which, (small, large) in sizes.items():
            found[which].append(rate(which, tmp_path, model, small, large))
    print(f"\nW on Flink, one slot, process mode, events/s in {ROUNDS} rounds:")
    ours = max(found["ours"])
    for which, rates in found.items():
        shown = ", ".join(f"{each:,.0f}" for each in rates)
        ratios = ", ".join(f"{a / b:.1f}" for a, b in zip(found["ours"], rates, strict=True))
        print(f"  {which}: {shown}; ours is {ratios} times as fast")
    assert ours / max(found["by-hand"]) > 10
