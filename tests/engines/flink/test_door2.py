"""Our operators in a PyFlink program: the example, and what `keyed_stage` refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamml as sml
from streamml.errors import PlanError
from streamml.flink.jars import jar, sources_hash
from streamml.operators import Dedupe

ROOT = Path(__file__).parents[3]


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    ts: int


def test_the_jar_is_that_of_the_sources() -> None:
    assert jar().with_suffix(".sha256").read_text().strip() == sources_hash()


def run_example(lines: list[bytes], folder: Path) -> Counter[str]:
    path = folder / "payments.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "pyflink_custom_pipeline.py"), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "_python_worker_execution_mode": "process"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Counter(line for line in done.stdout.splitlines() if line.startswith(("burst>", "duplicate>", "rejected>")))


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_example_flags_what_a_count_by_hand_flags(tmp_path: Path, flink: None) -> None:
    rows = [
        {"tx_id": f"t{n}", "card_id": f"c{n % 5}", "amount": 1.5, "ts": 1_000 * (n + 30 * (n // 25))}
        for n in range(100)
    ]
    lines = [msgspec.json.encode(row) for row in rows]
    lines.insert(50, lines[49])
    lines.append(b"{broken")
    found = run_example(lines, tmp_path)

    times: dict[Any, list[int]] = {}
    bursts = []
    for row in rows:
        mine = times.setdefault(row["card_id"], [])
        mine.append(row["ts"])  # type: ignore[arg-type]
        if sum(row["ts"] - 60_000 < t <= row["ts"] for t in mine) > 3:  # type: ignore[operator]
            bursts.append(row["tx_id"])
    shown = [msgspec.json.decode(line.partition("> ")[2]) for line in found.elements() if line.startswith("burst>")]
    assert sorted(record["tx_id"] for record in shown) == sorted(bursts)
    assert 10 < len(bursts) < 90
    assert sum(line.startswith("duplicate>") for line in found.elements()) == 1
    assert sum(line.startswith("rejected>") for line in found.elements()) == 1


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_makes_no_sense_is_refused_when_the_job_is_built(flink: None) -> None:
    from pyflink.common import Configuration, Types
    from pyflink.datastream import StreamExecutionEnvironment

    from streamml.flink import keyed_stage

    def stream(**settings: str) -> Any:
        configuration = Configuration()
        for name, value in settings.items():
            configuration.set_string(name.replace("__", ".").replace("_", "-"), value)
        env = StreamExecutionEnvironment.get_execution_environment(configuration)
        env.set_parallelism(1)
        return env.from_collection(["{}"], Types.STRING())

    with pytest.raises(PlanError, match="thread mode"):
        keyed_stage(stream(python__execution_mode="thread"), [Dedupe()], schema=Payment)
    with pytest.raises(PlanError, match="no_such"):
        keyed_stage(stream(), [Dedupe()], schema=Payment, key="no_such")
    with pytest.raises(PlanError, match="form"):
        keyed_stage(stream(), [Dedupe()], schema=Payment, form="xml")
    with pytest.raises(PlanError, match="key groups"):
        keyed_stage(stream(), [Dedupe()], schema=Payment, parallelism=8, key_groups=4)
    with pytest.raises(PlanError, match="late"):
        keyed_stage(stream(), [Dedupe()], schema=Payment).side("lat")
