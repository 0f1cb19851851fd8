"""Looking after jobs on a real cluster: metrics, logs, rescaling, other state backends, a changed pipeline."""

from __future__ import annotations

import os
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flink_topics import committed, send, wait
from typer.testing import CliRunner

from streamml.cli.main import app
from streamml.errors import ConnectorError, PlanError
from streamml.flink.reports import failures, figures

pytestmark = [
    pytest.mark.flink,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

JOB = Path(__file__).parent / "jobs" / "counting.py"
START = 1_700_000_000_000


def streamml(*arguments: object) -> str:
    """Run a command in this process, where the JVM of PyFlink's client runs already; returns its output."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None:
        raise done.exception
    return done.stdout.strip()


def clicks(first: int, last: int) -> list[bytes]:
    rows = ({"n": str(n), "user": f"u{n % 13}", "ts": START + n * 100} for n in range(first, last))
    return [msgspec.json.encode(row) for row in rows]


def packed_python(folder: Path) -> Path:
    """Return an archive as of a packed environment; its `bin/python` says that it is the one that runs."""
    info = zipfile.ZipInfo("bin/python")
    info.external_attr = 0o755 << 16
    path = folder / "python.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, f'#!/bin/sh\nexport STREAMML_ARCHIVE=packed\nexec {sys.executable} "$@"\n')
    return path


def test_a_job_keeps_its_state_through_rescaling_other_backends_and_a_changed_pipeline(
    session_cluster: Any, session_broker: str, flink: None, tmp_path: Path
) -> None:
    rest, broker = session_cluster.rest, session_broker
    at = ("--jobmanager", rest.address)
    topic = f"kafka://{broker}/clicks?create=true&retention=forever"
    sink = f"kafka://{broker}/counted?create=true&retention=forever"
    common = (JOB, *at, "--source", topic, "--sink", sink, "--checkpoint-interval", "500ms", "--detach")

    def rows() -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in committed(broker, "counted")]

    # Metrics, with the local module beside the job.
    first = streamml("submit", *common, "--state-backend", "hashmap")
    bad = [b"{broken", *clicks(0, 3), msgspec.json.encode({"n": "old", "user": "u1", "ts": START - 10_000_000})]
    send(broker, "clicks", clicks(0, 200) + bad)
    wait("output", lambda: len(rows()) >= 200)

    def figure(job: str) -> dict[str, float]:
        return {each.name: each.sum for each in figures(rest, job)}

    wait("metrics", lambda: figure(first).get("streamml_events_total") == 205)
    found = figure(first)
    assert found["streamml_emitted_total"] == 200
    assert found["streamml_duplicates_total"] == 3
    assert found["streamml_late_total"] == 1
    assert found['streamml_rejected_total{error="DecodeError",operator="source_counting_decode"}'] == 1
    assert found["streamml_watermark_seconds"] == pytest.approx((START + 199 * 100 - 1_000) / 1000)
    assert found["streamml_batch_size_events_sum"] == 205
    assert found["streamml_batches_total"] >= 13
    assert found["streamml_batch_pending_events"] == 0
    assert 0 < found["streamml_operator_duration_seconds_p50"] < 10
    assert "counting/stage1__records" in {each.operator for each in figures(rest, first)}
    assert "streamml_events_total" in streamml("flink", "metrics", "counting", *at)

    # Rescaling: refused while it would not run, then done.
    with pytest.raises(PlanError, match="4 slots for the job"):
        streamml("flink", "rescale", "counting", "--parallelism", 5, *at)
    assert rest.state(first) == "RUNNING"
    second = streamml("flink", "rescale", "counting", "--parallelism", 2, *at).splitlines()[-1]
    assert rest.state(first) == "FINISHED"
    assert [vertex["parallelism"] for vertex in rest.job(second)["vertices"]] == [1, 2]
    send(broker, "clicks", clicks(200, 400))
    wait("output after rescaling", lambda: len(rows()) >= 400)

    # A step before the key, a side output, RocksDB, and a Python that was sent along.
    savepoint = streamml("flink", "stop", "counting", *at)
    archive = packed_python(tmp_path)
    changed = ("--param", "wider=1", "--python-archive", archive, "--from-savepoint", savepoint)
    third = streamml("submit", *common, "--state-backend", "rocksdb", *changed)
    send(broker, "clicks", clicks(400, 600))
    wait("output of the changed pipeline", lambda: len(rows()) >= 600)
    assert rest.call(f"/jobs/{third}/checkpoints")["latest"]["restored"]["external_path"] == savepoint

    # Back to the pipeline without the side output, whose sink's state is given up.
    savepoint = streamml("flink", "stop", "counting", *at)
    dropped = ("--set", "execution.state-recovery.ignore-unclaimed-state=true", "--from-savepoint", savepoint)
    streamml("submit", *common, "--state-backend", "rocksdb", *dropped)
    send(broker, "clicks", clicks(600, 800))
    wait("output of the narrower pipeline", lambda: len(rows()) >= 800)
    assert streamml("flink", "cancel", "counting", *at) == "canceled"

    by_user: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows():
        by_user[row["user"]].append(row["nth"])
        n = int(row["n"])
        assert (row["limit"], row["python"]) == (7, "packed" if 400 <= n < 600 else ""), row
        assert ("wide" in row) == (400 <= n < 600), row
    wanted = {f"u{u}": list(range(1, len(range(u, 800, 13)) + 1)) for u in range(13)}
    assert by_user == wanted
    tenth = [msgspec.json.decode(line) for line in committed(broker, "counted.tenth")]
    assert sorted(int(row["event"]["n"]) for row in tenth) == [n for n in range(400, 600) if (n // 13 + 1) % 10 == 0]


@pytest.mark.nightly
def test_a_job_on_forst_takes_savepoints_and_is_rescaled(
    session_cluster: Any, session_broker: str, flink: None
) -> None:
    broker, at = session_broker, ("--jobmanager", session_cluster.rest.address)
    source = f"kafka://{broker}/forst?create=true&retention=forever"
    sink = f"kafka://{broker}/forst-counted?create=true&retention=forever"
    places = ("--source", source, "--sink", sink, "--checkpoint-interval", "500ms", "--detach")
    streamml("submit", JOB, *at, *places, "--state-backend", "forst")
    send(broker, "forst", clicks(0, 100))
    wait("output", lambda: len(committed(broker, "forst-counted")) >= 100)
    streamml("flink", "rescale", "counting", "--parallelism", 2, *at)
    send(broker, "forst", clicks(100, 200))
    wait("output after rescaling", lambda: len(committed(broker, "forst-counted")) >= 200)
    streamml("flink", "cancel", "counting", *at)
    found = sorted((row["user"], row["nth"]) for row in map(msgspec.json.decode, committed(broker, "forst-counted")))
    assert found == sorted((f"u{n % 13}", n // 13 + 1) for n in range(200))


def test_logs_show_each_failure_with_its_place_and_a_dead_job_takes_no_savepoint(
    session_cluster: Any, flink: None, tmp_path: Path
) -> None:
    rest = session_cluster.rest
    at = ("--jobmanager", rest.address)
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(clicks(0, 10)))
    places = ("--source", f"file:{tmp_path / 'in.jsonl'}", "--sink", f"file:{tmp_path / 'out'}", "--detach")
    restarts = {"type": "fixed-delay", "fixed-delay.attempts": "1", "fixed-delay.delay": "100 ms"}
    settings = [part for name, value in restarts.items() for part in ("--set", f"restart-strategy.{name}={value}")]
    job = streamml("submit", JOB, *at, *places, *settings, "--param", "broken=1")
    assert rest.wait(job, patience=120) == "FAILED"
    managers = {each["id"] for each in rest.call("/taskmanagers")["taskmanagers"]}
    *found, last = failures(rest, job)
    assert (last.task, last.task_manager) == ("", "")
    assert "Recovery is suppressed" in last.causes[0]
    assert len(found) == 2
    for failure in found:
        assert failure.task_manager in managers
        assert "RuntimeError: the licence server is closed" in "\n".join(failure.causes)
        assert failure.time.startswith("20")
        assert "broken" in failure.task
    shown = streamml("flink", "logs", "broken", *at, "--lines", 400)
    assert shown.count("RuntimeError: the licence server is closed") >= 2
    assert f"log of task manager {found[-1].task_manager}:" in shown
    with pytest.raises(ConnectorError, match="it is failed"):
        streamml("flink", "savepoint", "broken", *at)
    assert os.environ["PATH"].startswith(str(Path(sys.executable).parent))
