"""State larger than memory: what it costs in memory, per event, at a checkpoint and at a restart.

A million keys by default; ten million (about ten minutes): `STREAMML_BENCH_KEYS=10000000 make bench ARGS="-k
large_state"`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench

HERE = Path(__file__).parent
KEYS = int(os.environ.get("STREAMML_BENCH_KEYS", "1000000"))
sys.path.insert(0, str(HERE))


def run(what: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "large_state.py"), what, str(KEYS), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_memory_stays_bounded_and_checkpoints_cost_what_changed(tmp_path: Path) -> None:
    from large_state import CACHE_MB, CHANGES, ROCKS

    loaded = run("load", tmp_path / "state")
    restarted = run("restart", tmp_path / "state")
    phases = {phase["phase"]: phase for phase in loaded["phases"]}
    loads = [phase for name, phase in phases.items() if name.startswith("load")]
    updates = [phase for name, phase in phases.items() if name.startswith("update")]
    filters_mb = KEYS * 3 / 2**20  # Bloom filters and indexes
    rocks_mb = ROCKS.write_buffer_mb * ROCKS.write_buffers + ROCKS.block_cache_mb + filters_mb
    bound = loaded["base_mb"] + CACHE_MB + rocks_mb + 100  # what is under way: rows to be written, batches
    print(f"\n{KEYS:,} keys loaded, a tenth of them updated; state on disk {loaded['state_mb']:,} MiB")
    parts = f"cache {CACHE_MB}, RocksDB {rocks_mb:.0f}, base {loaded['base_mb']}"
    print(f"  peak memory {loaded['peak_mb']} MiB, bound {bound:.0f} ({parts})")
    us_load, us_update = mean(loads, "us_per_event"), mean(updates, "us_per_event")
    print(f"  us of CPU per event: load {us_load:.1f}, random updates {us_update:.1f}")
    for changed in CHANGES:
        if (phase := phases.get(f"changed {changed}")) is not None:
            print(f"  checkpoint with {changed:>7,} changed keys: {phase['checkpoint_seconds']:6.3f} s")
    print(f"  restart: first event read after {restarted['restore_seconds']} s, peak memory {restarted['peak_mb']} MiB")
    assert loaded["peak_mb"] < bound
    assert restarted["peak_mb"] < bound
    least = phases["changed 1000"]["checkpoint_seconds"]
    most = phases[f"changed {max(c for c in CHANGES if c <= KEYS // 5)}"]["checkpoint_seconds"]
    assert phases["changed 0"]["checkpoint_seconds"] < most / 2
    assert least < most / 2


def mean(phases: list[dict[str, Any]], what: str) -> float:
    return float(sum(phase[what] * phase["events"] for phase in phases) / sum(phase["events"] for phase in phases))
