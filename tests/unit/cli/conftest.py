"""A small job in a file, a stream for it, and the answer by a plain loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamml.cli.main import main

JOB = '''\
"""Number the clicks of each user.

Each click once.
"""

import pathlib
import time

import streamml as sml
from streamml.operators import Dedupe, Filter


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


class Number(sml.KeyedOperator):
    """Numbers the events of a key."""

    seen = sml.ValueState(int, 0)
    pages = sml.MapState(int, str)
    recent = sml.ListState(str)

    def adds(self):
        return ["n"]

    def on_event(self, event, ctx):
        self.seen.set(self.seen.get() + 1)
        self.pages.put(event.timestamp % 3, event.id.rpartition("/")[2])
        self.recent.append(event.id.rpartition("/")[2])
        ctx.set_timer(event.timestamp + 86_400_000, "day")
        ctx.emit(event.with_fields(n=self.seen.get()))

    def on_timer(self, timer, ctx):
        pass


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    pause, without = cfg.param("pause", 0.0), cfg.param("without", "nobody")

    def wanted(event):
        if pause:
            pathlib.Path("started").touch()
            time.sleep(pause)
        return event.user != without

    return (
        sml.Pipeline("clicks", schema=Click, out_of_orderness="1s")
        .then(Filter(wanted))
        .key_by("user")
        .then(Dedupe(ttl="1h"))
        .then(Number())
        .select("id", "user", "n")
    )
'''


@dataclass
class Done:
    """What a call of the command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as the one JSON value that it must be."""
        return json.loads(self.out)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call the command in this process."""

    def call(*args: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        code = ended.value.code
        return Done(int(code) if code is not None else 0, out, err)

    return call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one, with the job `clicks.py`; lines of text are not wrapped in tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "clicks.py").write_text(JOB)
    return tmp_path


def clicks(count: int) -> list[str]:
    """Lines with a duplicate in ten and a broken line in fifty."""
    lines = []
    for i in range(count):
        record = {"id": f"c{i - 7 if i % 10 == 9 else i}", "user": f"u{i * i % 11}", "ts": 1_700_000_000_000 + i * 10}
        if i % 10 == 9:
            record |= {"user": f"u{(i - 7) ** 2 % 11}", "ts": 1_700_000_000_000 + (i - 7) * 10}
        lines.append("{broken" if i % 50 == 49 else json.dumps(record))
    return lines


@pytest.fixture
def answer() -> Callable[..., list[dict[str, Any]]]:
    """The job's answer to some lines, by a plain loop."""
    return _answer


def _answer(lines: list[str], without: str = "nobody") -> list[dict[str, Any]]:
    seen: set[str] = set()
    counts: dict[str, int] = {}
    answer = []
    for line in lines:
        if line == "{broken":
            continue
        record = json.loads(line)
        if record["user"] == without or record["id"] in seen:
            continue
        seen.add(record["id"])
        counts[record["user"]] = counts.get(record["user"], 0) + 1
        answer.append(
            {"_id": f"clicks/{record['id']}", **{k: record[k] for k in ("id", "user")}, "n": counts[record["user"]]}
        )
    return answer


@pytest.fixture
def read(home: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Reads a file of JSON lines."""
    return lambda name: [json.loads(line) for line in (home / name).read_text().splitlines()]


@pytest.fixture
def stream(home: Path) -> list[str]:
    """2000 lines, also in `in.jsonl`."""
    lines = clicks(2000)
    (home / "in.jsonl").write_text("\n".join(lines) + "\n")
    return lines


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process of its own; what is left of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def call(*args: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from streamml.cli.main import main; main()", *map(str, args)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=home, env=environment, **options)
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
