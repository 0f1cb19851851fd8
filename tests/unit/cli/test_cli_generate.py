"""`streamml generate`: the same options, the same bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from streamml.cli.generate import paced
from streamml.generate import Payments

FEW = ("generate", "payments", "--events", "500")


def test_the_file_holds_the_lines_of_the_generator(cli: Any, home: Path) -> None:
    done = cli(*FEW, "--seed", "3", "--drift-at", "0.5", "--malformed", "0.1", "--rate", "200", "--to", "file:p.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "")
    wanted = Payments(500, 3, drift_at=0.5, malformed=0.1, rate=200.0)
    assert (home / "p.jsonl").read_bytes() == b"".join(line + b"\n" for line in wanted)


def test_the_same_options_give_the_same_bytes_and_another_seed_does_not(cli: Any, home: Path) -> None:
    first, second, other = cli(*FEW).out, cli(*FEW).out, cli(*FEW, "--seed", "8").out
    assert first == second != other
    assert len(first.splitlines()) == 500


def test_a_packed_file_is_the_same_bytes_again(cli: Any, home: Path) -> None:
    cli(*FEW, "--to", "a.jsonl.gz")
    cli(*FEW, "--to", "b.jsonl.gz")
    assert (home / "a.jsonl.gz").read_bytes() == (home / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((home / "a.jsonl.gz").read_bytes()).decode() == cli(*FEW).out


def test_the_truth_says_what_each_line_is(cli: Any, home: Path) -> None:
    out = cli(*FEW, "--truth", "truth.jsonl", "--fraud", "0.2").out
    truth = [json.loads(line) for line in (home / "truth.jsonl").read_text().splitlines()]
    rows = list(Payments(500, fraud=0.2).rows())
    assert out == "".join(row.line.decode() + "\n" for row in rows)
    assert [(t["tx_id"], t["kind"], t["fraud"]) for t in truth] == [(row.tx_id, row.kind, row.label) for row in rows]
    assert any(t["fraud"] for t in truth)


def test_a_file_that_is_there_is_replaced_only_when_asked(cli: Any, home: Path) -> None:
    (home / "p.jsonl").write_text("mine\n")
    done = cli(*FEW, "--to", "p.jsonl")
    assert (done.code, "--overwrite" in done.err) == (3, True)
    assert (home / "p.jsonl").read_text() == "mine\n"
    assert cli(*FEW, "--to", "p.jsonl", "--overwrite").code == 0


def test_live_lines_carry_the_present_time(cli: Any, home: Path) -> None:
    import time

    before = time.time_ns() // 1_000_000
    lines = cli(
        "generate", "payments", "--events", "40", "--rate", "400", "--live", "--malformed", "0"
    ).out.splitlines()
    after = time.time_ns() // 1_000_000
    times = [json.loads(line)["ts"] for line in lines]
    assert len(lines) == 40
    assert before <= max(times) <= after + 100  # the last line is due 100 ms after the first


def test_lines_are_paced_by_the_clock() -> None:
    now, flushed = [0.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    due = [(line, now[0]) for line in paced([b"x"] * 1000, 250.0, lambda: flushed.append(now[0]), clock=lambda: now[0], sleep=sleep)]  # fmt: skip # noqa: E501
    assert all(i / 250.0 - 1e-6 <= at <= i / 250.0 + 0.021 for i, (_, at) in enumerate(due))
    assert flushed, "what was written must be seen while the generator waits"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--live"], 2, "--rate 500"),
        (["--rate", "fast"], 2, "wanted lines per second"),
        (["--malformed", "2"], 2, "wanted a share between 0 and 1"),
        (["--to", "p.parquet"], 2, "JSON lines"),
        (["--to", "kafka://localhost/x"], 2, "to a file, or to -"),
        (["--to", "in.jsonl/p.jsonl"], 3, "can't be written"),
    ],
)
def test_what_does_not_fit_is_refused(cli: Any, stream: list[str], options: list[str], code: int, said: str) -> None:
    done = cli(*FEW, *options)
    assert done.code == code, done.err
    assert said in done.err


def test_a_reader_that_goes_away_is_no_noise(start: Any) -> None:
    process = start("generate", "payments", "--events", "200000")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (3, "")
