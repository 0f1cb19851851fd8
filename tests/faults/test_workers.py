"""Workers that are killed, stopped, left alone or can't start; and their number changed with a kill at every step."""

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

from streamml.errors import ModelError, StreamMLError
from streamml.generate.payments import payments
from streamml.local.job import WorkerJob
from streamml.local.workers import Restarts
from streamml.observability.figures import RunFigures
from streamml.state.workers import WorkerFolders, read_workers

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(300)]

EVENTS = 12_000
HERE = Path(__file__).parent
SLOW = {"options": {"batch_size": 64, "checkpoint_interval": "50ms"}, "pause": 0.005}


def load_jobs() -> ModuleType:
    """The module by the name that the workers import it by."""
    if "workers_job" not in sys.modules:
        spec = importlib.util.spec_from_file_location("workers_job", HERE / "workers_job.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules["workers_job"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["workers_job"]


jobs = load_jobs()


@pytest.fixture(scope="module")
def input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = payments(EVENTS, cards=300, max_disorder="1s", late=0.03, late_by="5s", malformed=0.01)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def short(input: Path) -> Path:
    """The first part of that input."""
    path = input.with_name("short.jsonl")
    path.write_bytes(b"".join(input.read_bytes().splitlines(keepends=True)[:1_500]))
    return path


@pytest.fixture(scope="module")
def alone(input: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """What one process writes that nothing happens to."""
    folder = tmp_path_factory.mktemp("alone")
    jobs.run_all("windows", str(input), folder, WorkerFolders(folder / "state"))
    return jobs.results(folder)


class Watched:
    """A job of workers in this process, with something done to it while it runs."""

    def __init__(self, input: Path, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        monkeypatch.syspath_prepend(str(HERE))  # the workers find `workers_job` by the same path
        self.said: list[str] = []
        self.disturb: Callable[[RunFigures], None] = lambda figures: None
        arguments = {"job": "windows", "input": str(input), "folder": str(folder), **more.pop("arguments", {})}
        self.job = WorkerJob(
            jobs.windows(), folder / "state", count, "workers_job:make", arguments,
            say=self.said.append, on_progress=lambda figures: self.disturb(figures), **more,
        )  # fmt: skip

    def pid(self, index: int) -> int | None:
        running = self.job._running
        return None if running is None else running.workers[index].pid

    def kill(self, index: int) -> bool:
        pid = self.pid(index)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None


def test_a_worker_that_is_killed_goes_on_from_its_checkpoint_while_the_others_go_on(
    input: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    watched = Watched(input, tmp_path, 3, monkeypatch, arguments=SLOW, restarts=Restarts(most=20, first=0.01))
    targets = [rng.uniform(0.03, 0.9) * EVENTS for _ in range(6)]
    targets.sort(reverse=True)

    def disturb(figures: RunFigures) -> None:
        if targets and figures.events_in >= targets[-1] and watched.kill(rng.randrange(3)):
            targets.pop()

    watched.disturb = disturb
    result = watched.job.run()
    assert result.run.finished and not result.run.problems
    assert jobs.results(tmp_path) == alone
    assert result.restarts == 6 - len(targets) >= 4
    assert sum("killed by SIGKILL; it is started again" in text for text in watched.said) == result.restarts
    assert result.run.figures.events_in == EVENTS  # what was read again counts once
    assert result.run.sides["duplicates"] == sum(map(len, alone["out.duplicates"].values()))


def test_a_job_that_is_stopped_and_started_with_two_three_and_one_workers_writes_the_same(
    input: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, stop_at in ((2, 0.25), (3, 0.25), (1, None)):
        watched = Watched(input, tmp_path, count, monkeypatch, arguments=SLOW if stop_at else {})
        if stop_at is not None:

            def disturb(figures: RunFigures, watched: Watched = watched, stop_at: float = stop_at) -> None:
                running = watched.job._running
                if figures.events_in > stop_at * EVENTS and running is not None and running.goal is None:
                    watched.job.stop()

            watched.disturb = disturb
        result = watched.job.run()
        assert result.run.finished == (stop_at is None)
        if stop_at is not None:
            assert not list(tmp_path.glob("*.pending"))  # each worker committed its output with its last checkpoint
    assert read_workers(tmp_path / "state") == WorkerFolders(tmp_path / "state", 1, 3)
    assert len(list(tmp_path.glob("out.g*.jsonl"))) == 6
    assert jobs.results(tmp_path) == alone


def test_an_error_of_one_worker_stops_the_job_with_that_error(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(short, tmp_path, 2, monkeypatch, arguments={"fragile": ["/worker-1", "model"]})
    with pytest.raises(ModelError, match=r"^worker 1: the model is not there$"):
        watched.job.run()
    assert not any("started again" in text for text in watched.said)


def test_a_worker_that_crashes_again_and_again_ends_the_job_with_its_last_error(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Restarts(most=1, first=0.01)
    watched = Watched(short, tmp_path, 2, monkeypatch, arguments={"fragile": ["/worker-0", "lost"]}, restarts=limits)
    last = "worker 0: KeyError: 'lost'; that was death 2 within 600 seconds"
    with pytest.raises(StreamMLError, match=last) as caught:
        watched.job.run()
    assert type(caught.value) is StreamMLError
    assert any(text.startswith("worker 0: Traceback") for text in watched.said)
    assert (tmp_path / "state/gen-0001/worker-0001/checkpoints").is_dir()  # the other one was stopped in order


JOB = """
import sys
sys.path.insert(0, {here!r})
from workers_job import windows
def pipeline(cfg):
    return windows()
"""


@pytest.fixture
def command(tmp_path: Path, input: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`streamml run` with workers."""
    (tmp_path / "job.py").write_text(JOB.format(here=str(HERE)))
    started: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from streamml.cli.main import main; main()", "run", "job.py"]
        command += [
            "--source",
            str(input),
            "--sink",
            "out.jsonl",
            "--state-dir",
            "state",
            "--json",
            "--batch-size",
            "64",
            *more,
        ]
        command += ["--checkpoint-interval", "50ms"]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
    return found


def some_output(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("out.g*.jsonl"))


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_workers_end_with_the_process_that_started_them_and_the_next_start_goes_on(
    command: Any, alone: Any, tmp_path: Path
) -> None:
    process = command("--workers", "2")
    wait_for(lambda: some_output(tmp_path))
    pids = children(process.pid)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)  # one that takes its time to end: the next start waits for it
    process.kill()
    process.wait()
    second = command()
    wait_for(lambda: gone(pids[1]))
    os.kill(pids[0], signal.SIGCONT)
    wait_for(lambda: gone(pids[0]))
    wait_for(lambda: len(children(second.pid)) == 2)
    second.send_signal(signal.SIGTERM)  # this one ends in order
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert json.loads(out)["stopped_by"] == "SIGTERM"
    third = command()  # as many workers as the state has
    out, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    assert json.loads(out)["finished"]
    assert jobs.results(tmp_path) == alone


@pytest.fixture(scope="module")
def dealer() -> Iterator[Callable[..., int]]:
    """Changes the number of workers in a process that is killed at a step; returns its exit code."""
    command = [sys.executable, str(HERE / "workers_job.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None

    def deal(**request: Any) -> int:
        process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield deal
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def test_a_kill_at_any_step_of_a_change_of_the_number_of_workers_leaves_the_old_or_the_new_ones(
    short: Path, dealer: Any, memory_path: Path
) -> None:
    request = {"job": "windows", "input": short}
    whole = memory_path / "alone"
    whole.mkdir()
    jobs.run_all("windows", str(short), whole, WorkerFolders(whole / "state"))
    wanted = jobs.results(whole)
    start = memory_path / "start"
    start.mkdir()
    jobs.run_all("windows", str(short), start, WorkerFolders(start / "state"), stops=[600])
    outcomes: list[int] = []
    while True:
        folder = memory_path / "run"
        subprocess.run(["cp", "-a", str(start), str(folder)], check=True)
        code = dealer(die_at=len(outcomes) + 1, folder=folder, count=2, **request)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        left = read_workers(folder / "state")
        outcomes.append(left.count)
        if left.count == 1:
            assert dealer(die_at=None, folder=folder, count=2, **request) == 0
        jobs.run_all("windows", str(short), folder, read_workers(folder / "state"))
        assert jobs.results(folder) == wanted
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) > 15  # while the new state was built
    assert outcomes.count(2) >= 3  # once it counted: the switch made durable, the old state removed
