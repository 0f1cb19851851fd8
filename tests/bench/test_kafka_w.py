"""Workload W, Kafka to Kafka exactly once, against the Bytewax program of the same logic, at least once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamml.generate import workload

HERE = Path(__file__).parent
EVENTS = int(os.environ.get("STREAMML_BENCH_EVENTS", "200000"))
PAIRS = 3
PROGRAMS = {
    "ours": ("kafka_w.py", "once"),
    "bytewax": ("bytewax_w.py", "once"),
    "bytewax-fused": ("bytewax_w.py", "fused"),
}

pytestmark = [pytest.mark.bench, pytest.mark.kafka, pytest.mark.timeout(0)]


def run(python: Path | str, program: str, how: str, *arguments: object) -> dict[str, Any]:
    command = [str(python), str(HERE / program), how, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_w_from_kafka_to_kafka_costs_less_than_bytewax(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    from kafka_w import bytewax_python, make_topic, produce, running_broker, values
    from mlp import write_mlp

    model = write_mlp(tmp_path / "mlp.onnx")
    lines = list(workload(EVENTS))
    unique = {json.loads(line)["tx_id"] for line in lines}
    python = bytewax_python()
    rounds: list[list[dict[str, Any]]] = []
    with running_broker(tmp_path / "broker") as servers:
        source = make_topic(servers, "w")
        produce(servers, source, lines)
        for number in range(PAIRS):
            results = []
            for name, (program, how) in PROGRAMS.items():
                sink = make_topic(servers, f"{name}{number}")
                which = sys.executable if name == "ours" else python
                results.append(run(which, program, how, servers, source, sink, model, tmp_path / sink))
            rounds.append(results)
        written = values(servers, f"ours{PAIRS - 1}")
    print(
        f"\nW, {EVENTS:,} events, Kafka to Kafka, 4 partitions, checkpoints every 5 s, us of CPU of the job per event:"
    )
    ratios = []
    for name, results in zip(PROGRAMS, zip(*rounds, strict=True), strict=True):
        ratios.append(statistics.median(one[0]["us"] / each["us"] for one, each in zip(rounds, results, strict=True)))
        costs = ", ".join(f"{each['us']:.2f}" for each in results)
        rate = max(each["rate"] for each in results)
        print(f"  {name}: {costs} (at best {rate:,.0f} events/s); ours costs {ratios[-1]:.2f} of it")
    # Every event is once in the output or in one of the side outputs, and readers of committed data see just that.
    for ours, *theirs in rounds:
        assert [each["out"] for each in theirs] == [len(unique)] * len(theirs)
        assert ours["events"] == EVENTS == ours["out"] + sum(ours["sides"].values())
        assert ours["sides"]["duplicates"] == EVENTS - len(unique)
    assert len(written) == len({row["tx_id"] for row in written}) == rounds[-1][0]["out"]
    assert ratios[1] < 0.75
