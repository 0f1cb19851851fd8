"""Workers of a pipeline that changes its key, killed in every segment and at every step: nothing is lost or doubled."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamml.generate.payments import payments
from streamml.local.job import WorkerJob
from streamml.local.segments import stage_names
from streamml.local.workers import Restarts
from streamml.observability.figures import RunFigures
from streamml.state.workers import WorkerFolders, read_workers

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(600)]

EVENTS = 6_000
HERE = Path(__file__).parent
SLOW = {"options": {"batch_size": 64, "checkpoint_interval": "50ms", "exchange_mb": 1}, "pause": 0.01}


def load_jobs() -> ModuleType:
    """The module by the name that the workers import it by."""
    if "exchange_job" not in sys.modules:
        spec = importlib.util.spec_from_file_location("exchange_job", HERE / "exchange_job.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules["exchange_job"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["exchange_job"]


jobs = load_jobs()
JOBS = ("shops", "countries")


@pytest.fixture(scope="module")
def input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = payments(EVENTS, cards=300, max_disorder="1s", late=0.03, late_by="5s", malformed=0.01)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def alone(input: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes that nothing happens to."""
    found = {}
    for job in JOBS:
        folder = tmp_path_factory.mktemp(job)
        jobs.run_all(job, str(input), folder, WorkerFolders(folder / "state"))
        found[job] = jobs.results(folder)
    return found


class Watched:
    """A job of workers in this process, with something done to it while it runs."""

    def __init__(self, job: str, input: Path, folder: Path, count: int, monkeypatch: Any, **more: Any) -> None:
        monkeypatch.syspath_prepend(str(HERE))  # the workers find `exchange_job` by the same path
        self.said: list[str] = []
        self.disturb: Callable[[RunFigures], None] = lambda figures: None
        arguments = {"job": job, "input": str(input), "folder": str(folder), **more.pop("arguments", {})}
        self.job = WorkerJob(
            jobs.workers_job.PIPELINES[job](), folder / "state", count, "exchange_job:make", arguments,
            say=self.said.append, on_progress=lambda figures: self.disturb(figures), **more,
        )  # fmt: skip

    def kill(self, number: int) -> bool:
        """Kill worker `number`, counted over the segments."""
        running = self.job._running
        pid = None if running is None else running.workers[number].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None


@pytest.mark.parametrize("job", JOBS)
def test_workers_of_every_segment_are_killed_at_random_and_each_goes_on_from_its_checkpoint(
    job: str, input: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    segments = len(stage_names(jobs.workers_job.PIPELINES[job]()))
    limits = Restarts(most=50, first=0.01)
    watched = Watched(job, input, tmp_path, 2, monkeypatch, arguments=SLOW, restarts=limits)
    moments = sorted((rng.uniform(0.02, 0.7) * EVENTS for _ in range(7 * segments)), reverse=True)
    victims = [number % (2 * segments) for number in range(len(moments))]
    killed: list[int] = []

    def disturb(figures: RunFigures) -> None:
        if moments and figures.events_in >= moments[-1] and watched.kill(victims[len(killed)]):
            moments.pop()
            killed.append(victims[len(killed)] // 2)

    watched.disturb = disturb
    result = watched.job.run()
    assert result.run.finished and not result.run.problems
    assert jobs.results(tmp_path) == alone[job]
    assert result.restarts == len(killed) >= 6 * segments
    assert all(killed.count(segment) >= 5 for segment in range(segments))
    figures = result.run.figures
    assert figures.events_in == EVENTS  # read by the first segment, and what was read again counts once
    outputs = {output: 0 for output, _, _ in alone[job]}
    for (output, _, _), records in alone[job].items():
        outputs[output] += len(records)
    assert figures.events_out == outputs["out"]
    assert result.run.sides["late"] == outputs["out.late"]


def test_a_job_that_is_stopped_and_started_with_two_three_and_one_workers_writes_the_same(
    input: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, stop_at in ((2, 0.25), (3, 0.25), (1, None)):
        watched = Watched("shops", input, tmp_path, count, monkeypatch, arguments=SLOW if stop_at else {})
        if stop_at is not None:

            def disturb(figures: RunFigures, watched: Watched = watched, stop_at: float = stop_at) -> None:
                running = watched.job._running
                if figures.events_in > stop_at * EVENTS and running is not None and running.goal is None:
                    watched.job.stop()

            watched.disturb = disturb
        result = watched.job.run()
        assert result.run.finished == (stop_at is None)
    assert read_workers(tmp_path / "state") == WorkerFolders(tmp_path / "state", 1, 3, 2)
    assert jobs.results(tmp_path) == alone["shops"]


@pytest.mark.nightly
def test_segments_that_are_killed_while_their_number_changes_start_again(
    input: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that read on to one place, and those that empty the logs."""
    first = Watched("shops", input, tmp_path, 2, monkeypatch, arguments=SLOW)
    first.disturb = lambda figures: first.job.stop() if figures.events_in > EVENTS / 3 else None
    first.job.run()
    second = Watched("shops", input, tmp_path, 3, monkeypatch, restarts=Restarts(most=50, first=0.01))
    victims = [0, 2, 3, 1, 2]

    def disturb(figures: RunFigures) -> None:
        running = second.job._running
        if victims and running is not None and running.goal is not None and second.kill(victims[-1]):
            victims.pop()

    second.disturb = disturb
    result = second.job.run()
    assert result.run.finished and len(victims) < 4
    assert jobs.results(tmp_path) == alone["shops"]


JOB = """
import sys
sys.path.insert(0, {here!r})
from exchange_job import countries
def pipeline(cfg):
    return countries()
"""


@pytest.fixture
def command(tmp_path: Path, input: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`streamml run` with workers."""
    (tmp_path / "job.py").write_text(JOB.format(here=str(HERE)))
    started: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from streamml.cli.main import main; main()", "run", "job.py"]
        command += ["--source", str(input), "--sink", "out.jsonl", "--state-dir", "state", "--json"]
        command += ["--batch-size", "64", "--checkpoint-interval", "50ms", *more]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def newest(folder: Path) -> int:
    """The newest checkpoint of any worker."""
    homes = ("worker-*", "segment-*/worker-*")
    found = (path for home in homes for path in folder.glob(f"state/gen-*/{home}/checkpoints/chk-*"))
    return max((int(path.name[4:]) for path in found), default=0)


@pytest.mark.nightly
def test_the_process_that_started_the_workers_is_killed_again_and_again(
    command: Any, alone: Any, tmp_path: Path
) -> None:
    rng = random.Random(11)
    for _ in range(11):
        process = command("--workers", "2")
        upto = newest(tmp_path) + rng.randint(0, 3)
        wait_for(lambda: newest(tmp_path) >= upto)  # noqa: B023
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "it has ended before it was killed"
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: all(map(gone, workers)))  # noqa: B023
    process = command()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["finished"]
    assert jobs.results(tmp_path) == alone["countries"]


@pytest.fixture(scope="module")
def runner() -> Iterator[Callable[..., int]]:
    """Runs a worker in a process that is killed at a step; returns its exit code."""
    command = [sys.executable, str(HERE / "exchange_job.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None

    def run(die_at: int | None, segment: int, index: int, *, in_vain: bool = False, **request: Any) -> int:
        request |= {"die_at": die_at, "share": [index, 2, 1, segment, 2], "in_vain": in_vain}
        process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


@pytest.mark.parametrize("segment", [0, 1])
def test_a_kill_at_any_step_of_a_checkpoint_loses_and_doubles_nothing(
    segment: int, input: Path, runner: Any, memory_path: Path
) -> None:
    short = memory_path / "short.jsonl"
    short.write_bytes(b"".join(input.read_bytes().splitlines(keepends=True)[:500]))
    options = {"checkpoint_interval": "0s", "batch_size": 250, "fsync": False}
    request = {"job": "shops", "input": short, "options": options}
    whole = memory_path / "alone"
    whole.mkdir()
    jobs.run_all("shops", str(short), whole, WorkerFolders(whole / "state"))
    wanted = jobs.results(whole)
    start = memory_path / "start"
    start.mkdir()
    if segment:
        assert [runner(None, 0, index, folder=start, **request) for index in (0, 1)] == [0, 0]
    deaths = 0
    while True:
        folder = memory_path / "run"
        subprocess.run(["cp", "-a", str(start), str(folder)], check=True)
        code = runner(deaths + 1, segment, 0, folder=folder, **request)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        if not segment:  # the consumers have seen what it had committed when it starts again
            assert [runner(None, 1, index, in_vain=True, folder=folder, **request) for index in (0, 1)] == [0, 0]
        for number, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert runner(None, number, index, folder=folder, **request) == 0
        assert jobs.results(folder) == wanted, f"killed at step {deaths}"
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert deaths > 30
