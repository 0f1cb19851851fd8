"""A graceful stop, a start on finished input, and input that was appended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_sigterm_takes_a_checkpoint_and_a_restart_goes_on_from_there(nursery: Any, w: Any, tmp_path: Path) -> None:
    request = w.request(tmp_path, options={"checkpoint_interval": "1h"})
    read = 0
    for share in (0.2, 0.5, 0.7):
        run = nursery.start(**request)
        for line in run:
            if line.startswith("at ") and int(line[3:]) >= share * w.events:
                break
        run.kill(signal.SIGTERM)
        assert run.code == 0 and not run.end["finished"]
        read += run.end["events"]
        written = (tmp_path / "out.jsonl").read_bytes()
        assert written and w.outputs["out.jsonl"].startswith(written)  # flushed up to where it stopped
        assert not list(tmp_path.glob("*.pending"))
    last = nursery.run(**request)
    assert last.end["finished"] and read + last.end["events"] == w.events  # nothing was read twice
    w.check(tmp_path)


def test_a_start_on_finished_input_changes_nothing_and_says_so(nursery: Any, small: Any, memory_path: Path) -> None:
    request = small.request(memory_path)
    assert not nursery.run(**request).end["nothing_new"]
    for _ in range(2):
        end = nursery.run(**request).end
        assert end["finished"] and end["nothing_new"] and end["events"] == 0
        small.check(memory_path)


def test_appended_input_is_read_on_with_the_state_that_was_there(nursery: Any, w: Any, tmp_path: Path) -> None:
    """`w` has no windows whose results come at their end: all of its output is that of an input that never ended."""
    lines = w.input.read_bytes().splitlines(keepends=True)[:6_000]
    grown, request = tmp_path / "grown.jsonl", w.request(tmp_path / "run", input=tmp_path / "grown.jsonl")
    for end in (2_000, 4_000, 6_000):
        grown.write_bytes(b"".join(lines[:end]))
        assert nursery.run(**request).end["events"] == 2_000
    whole = w.request(tmp_path / "whole", input=grown)
    assert nursery.run(**whole).end["events"] == 6_000
    for name in w.outputs:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (tmp_path / "run" / "out.duplicates.jsonl").read_bytes().count(b"\n") > 100


def test_a_window_that_the_end_of_the_input_closed_begins_anew(nursery: Any, small: Any, memory_path: Path) -> None:
    def payment(number: int, ts: int) -> str:
        return (
            json.dumps({"tx_id": f"t{number}", "card_id": "c", "amount": 1, "merchant": 1, "country": 1, "ts": ts})
            + "\n"
        )

    grown = memory_path / "grown.jsonl"
    request = small.request(memory_path / "run", input=grown)
    grown.write_text(payment(1, 1_000_000) + payment(2, 1_000_100))
    assert nursery.run(**request).end["finished"]
    with grown.open("a") as file:
        file.write(payment(3, 1_000_200) + payment(2, 1_000_100))
    assert nursery.run(**request).end["events"] == 2
    results = [json.loads(line) for line in (memory_path / "run" / "out.jsonl").read_text().splitlines()]
    assert [(r["window_start"], r["n"], r["revision"]) for r in results] == [(1_000_000, 2, 0), (1_000_200, 1, 0)]
    duplicates = (memory_path / "run" / "out.duplicates.jsonl").read_text()
    assert '"windows/t2"' in duplicates  # what was seen before the end is still known
