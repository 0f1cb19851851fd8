"""Stopping a run by signals, and going on after it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RUN = ("run", "clicks.py", "--source", "file:in.jsonl", "--sink", "file:out.jsonl", "--state-dir", "st")
SLOW = (*RUN, "--batch-size", "20", "--checkpoint-interval", "50ms", "--param", "pause=0.003")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_same_command_exactly_once(
    number: signal.Signals, start: Any, cli: Any, home: Path, stream: list[str], answer: Any, read: Any
) -> None:
    process = start(*SLOW, "--json")
    wait_for(lambda: (home / "out.jsonl").exists() and (home / "out.jsonl").stat().st_size > 0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    first = json.loads(out)
    assert (first["finished"], first["stopped_by"]) == (False, number.name)
    assert 0 < len(read("out.jsonl")) < len(answer(stream))
    assert not list(home.glob("*.pending"))

    second = cli(*RUN, "--json").json
    assert (second["finished"], second["resumed_from"]) == (True, first["figures"]["checkpoint"])
    assert read("out.jsonl") == answer(stream)
    assert first["figures"]["events_in"] + second["figures"]["events_in"] == 2000
    assert len(read("out.duplicates.jsonl")) == 160
    assert len(read("out.rejected.jsonl")) == 40


def test_a_stopped_run_says_how_to_go_on(start: Any, home: Path, stream: list[str]) -> None:
    process = start(*SLOW)
    wait_for(lambda: (home / "out.jsonl").exists() and (home / "out.jsonl").stat().st_size > 0)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SIGTERM: stopping after a checkpoint" in out
    assert "To go on: the same command" in out


def test_a_stopped_run_without_a_state_folder_says_that_it_starts_over(
    start: Any, home: Path, stream: list[str]
) -> None:
    process = start(*SLOW[:6], *SLOW[8:])
    wait_for(lambda: (home / "out.jsonl").exists() and (home / "out.jsonl").stat().st_size > 0)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "the next run starts over" in out


def test_a_second_interrupt_breaks_off_at_once_and_the_next_run_is_right(
    start: Any, cli: Any, home: Path, stream: list[str], answer: Any, read: Any
) -> None:
    process = start(*RUN, "--batch-size", "500", "--param", "pause=0.05")  # its first batch takes 25 seconds
    wait_for(lambda: (home / "started").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert read("out.jsonl") == []
    assert cli(*RUN).code == 0
    assert read("out.jsonl") == answer(stream)


def test_a_second_sigterm_does_not_break_off(start: Any, home: Path, read: Any, stream: list[str]) -> None:
    process = start(*RUN, "--batch-size", "50", "--param", "pause=0.02")
    wait_for(lambda: (home / "started").exists())
    for _ in range(20):
        process.terminate()
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(read("out.jsonl")) > 0


def test_a_reader_that_goes_away_is_no_noise(start: Any, home: Path, stream: list[str]) -> None:
    process = start("run", "clicks.py", "--source", "in.jsonl", "--sink", "-", "--side", "duplicates=null:", "--side", "rejected=null:", "--batch-size", "20", "--param", "pause=0.002")  # fmt: skip # noqa: E501
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Error" not in err and "Traceback" not in err
