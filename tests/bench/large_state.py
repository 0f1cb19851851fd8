"""State that is larger than memory: a real stage over many keys, then random updates, then a restart.

`python tests/bench/large_state.py load KEYS FOLDER` loads so many keys and updates a tenth of them, `restart KEYS
FOLDER` starts again from the last checkpoint. Each prints what it measured as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamml as sml
from streamml.connectors.memory import NullSink
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe, Features, Session, count, maximum, mean, since_last, total, tumbling
from streamml.ports import Chunk
from streamml.state.rocks import RocksOptions

CACHE_MB = 256
ROCKS = RocksOptions()
STRIDE = 7_368_787  # a prime: keys come in an order that is not that of the store
MIX, MASK = 0x9E3779B97F4A7C15, 2**64 - 1  # makes ids that look random, and compress as such
START = 1_700_000_000_000
CHANGES = (0, 1_000, 10_000, 100_000)
"""Changed keys of the checkpoints whose cost is compared."""


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    ts: int


def pipeline() -> sml.Pipeline:
    fields = {"n": count(), "sum": total("amount"), "mean": mean("amount"), "max": maximum("amount")}
    return (
        sml.Pipeline("large", schema=Payment)
        .key_by("card_id")
        .then(Dedupe(ttl="7d"))
        .then(Features(window=tumbling("7d"), fields=fields))
        .then(Session(gap="1d", fields={"n_session": count(), "idle_ms": since_last()}))
    )


def memory(what: str = "VmRSS") -> float:
    """MiB that this process has, or (`VmHWM`) has had at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


class Cards:
    """Makes payments, and has a checkpoint taken between phases."""

    replayable = True
    engine: LocalEngine

    def __init__(self, keys: int, phases: list[tuple[str, int, bool]]) -> None:
        self._keys = keys
        self._phases = phases  # name, events, whether the keys are random
        self._random = random.Random(1)
        self._at = self._number = 0
        self.measured: list[dict[str, Any]] = []
        self.opened_at = 0.0

    def open(self, positions: Mapping[str, Any] | None) -> None:
        self._number = positions["cards"]["record"] if positions else 0

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        if self._at == 0:
            self.opened_at = self.opened_at or time.perf_counter()
            self._cpu, self._started = time.process_time(), time.perf_counter()
        name, events, is_random = self._phases[0]
        first, rows = self._number, min(limit, events - self._at)
        if rows:
            keys: Sequence[int] = range(first, first + rows)
            if is_random:
                keys = [self._random.randrange(self._keys) for _ in keys]
            else:
                keys = [key * STRIDE % self._keys for key in keys]
            payloads = [
                b'{"tx_id":"%016x","card_id":"%016x","amount":%d.25,"ts":%d}'
                % ((first + i) * MIX & MASK, key * MIX & MASK, key * MIX % 9_973, START + (first + i) // 10)
                for i, key in enumerate(keys)
            ]
            self._at += rows
            self._number += rows
            return Chunk(payloads, [("cards", rows)], range(first, first + rows))
        us = (time.process_time() - self._cpu) / max(events, 1) * 1e6
        seconds, started = time.perf_counter() - self._started, time.perf_counter()
        self.engine.checkpoint()
        took = time.perf_counter() - started
        self.measured.append(
            {"phase": name, "events": events, "us_per_event": round(us, 2), "seconds": round(seconds, 1),
             "checkpoint_seconds": round(took, 3), "rss_mb": round(memory()), "peak_mb": round(memory("VmHWM"))}
        )  # fmt: skip
        print(json.dumps(self.measured[-1]), file=sys.stderr, flush=True)
        self._at = 0
        self._phases.pop(0)
        return None

    def positions(self) -> dict[str, Any]:
        return {"cards": {"record": self._number}}

    def partitions(self) -> Sequence[str]:
        return ["cards"] if self._phases else []

    @property
    def finished(self) -> bool:
        return not self._phases

    def progress(self) -> float | None:
        return None

    def lag(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def run(keys: int, folder: Path, phases: list[tuple[str, int, bool]]) -> Cards:
    cards = Cards(keys, phases)
    options = LocalOptions(state_dir=folder, checkpoint_interval="1h", cache_mb=CACHE_MB, rocks=ROCKS, batch_size=1024)
    engine = LocalEngine(pipeline(), {"large": cards}, NullSink(), options=options)
    cards.engine = engine
    started = time.perf_counter()
    engine.run()
    cards.opened_at -= started
    return cards


def load(keys: int, folder: Path) -> dict[str, Any]:
    base = memory()
    step = min(500_000, keys)
    phases = [(f"load {i}", min(step, keys - i), False) for i in range(0, keys, step)]
    phases += [(f"settle {i}", 0, True) for i in range(2)]  # what compaction has left to do
    phases += [(f"changed {changed}", changed, True) for changed in CHANGES if changed <= keys // 5]
    part = keys // 10 // 4
    phases += [(f"update {i}", part, True) for i in range(4)]
    cards = run(keys, folder, phases)
    size = sum(path.stat().st_size for path in max(folder.glob("checkpoints/chk-*")).rglob("*") if path.is_file())
    peak = round(memory("VmHWM"))
    return {"base_mb": round(base), "peak_mb": peak, "state_mb": round(size / 2**20), "phases": cards.measured}


def restart(keys: int, folder: Path) -> dict[str, Any]:
    cards = run(keys, folder, [("after restart", 10_000, True)])
    return {"restore_seconds": round(cards.opened_at, 2), "peak_mb": round(memory("VmHWM")), "phases": cards.measured}


if __name__ == "__main__":
    what, keys, folder = sys.argv[1], int(sys.argv[2].replace("_", "")), Path(sys.argv[3])
    print(json.dumps({"load": load, "restart": restart}[what](keys, folder)))
