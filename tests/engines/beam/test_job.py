"""Door 1: whole jobs on Beam runners, from their addresses, against the embedded engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamml.cli.main import main
from streamml.generate import workload

pytest.importorskip("apache_beam")

ROOT = Path(__file__).parents[3]
EVENTS = int(os.environ.get("STREAMML_W_EVENTS", "10000"))
OUTPUTS = ("", ".late", ".duplicates", ".rejected")
JOB = """\
import streamml as sml
from streamml.operators import Dedupe, Map


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


def half(event):
    return event.with_fields(half=1 / (event.ts - 5))


def pipeline(cfg):
    made = sml.Pipeline("clicks", schema=Click, out_of_orderness="1s").key_by("user").then(Dedupe(ttl="1h"))
    return made.then(Map(half)).select("id", "user", "half")
"""


def command(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    prism = ROOT / ".cache/prism"
    found = {"STREAMML_PRISM": str(next(prism.glob("2.77*/prism"), ""))} if prism.is_dir() else {}
    return subprocess.run(
        [sys.executable, "-c", "from streamml.cli.main import main; main()", *map(str, words)],
        cwd=folder,
        env={**found, **os.environ, "GOMAXPROCS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


BROKEN = """\
class Broken(sml.KeyedOperator):
    def open(self, opening):
        raise ValueError("no such thing")

    def on_event(self, event, ctx):
        ctx.emit(event)


def half"""


@dataclass
class Done:
    """What a call of the command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(clicks: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call the command in this process, in the folder of `clicks`."""
    monkeypatch.chdir(clicks)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


def beam_run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    done = command("run", *words, folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def lines(folder: Path, pattern: str) -> Counter[str]:
    """The records of all files that fit, without where they came from: files have offsets of their own on Beam."""
    found: Counter[str] = Counter()
    for path in folder.glob(pattern):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if "offset" in record:
                record = {name: record[name] for name in ("payload", "operator", "reason", "partition")}
            found[json.dumps(record, sort_keys=True)] += 1
    return found


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W with malformed records, and what the embedded engine makes of it."""
    folder = tmp_path_factory.mktemp("w")
    with (folder / "w.jsonl").open("wb") as file:
        file.writelines(line + b"\n" for line in workload(EVENTS, malformed=0.002))
    beam_run("payments", "--source", "w.jsonl", "--sink", "file:local/scores.jsonl", folder=folder)
    return folder


@pytest.mark.timeout(300)
def test_the_payments_job_gives_the_same_records_on_prism_as_on_the_embedded_engine(w: Path, runner: str) -> None:
    """W has late events, duplicates and broken ones; each row is judged by the watermark right before it."""
    if runner != "prism":
        pytest.skip("an unbounded source needs Prism, for Beam 2.77 or newer, in .cache/prism or $STREAMML_PRISM")
    words = ["--engine", "beam", "--runner", "prism", "--source", "w.jsonl", "--sink", "file:beam/scores.jsonl"]
    beam_run("payments", *words, "--", "--streaming", folder=w)
    for output in OUTPUTS:
        ours = lines(w, f"beam/scores{output}-*.jsonl")
        assert ours.total() > EVENTS // 1000, f"few records in {output or 'the main output'}"
        assert ours == lines(w, f"local/scores{output}.jsonl"), output


@pytest.mark.timeout(300)
def test_files_without_streaming_are_a_bounded_input_in_which_nothing_is_late(w: Path) -> None:
    """The oracle is the embedded engine on the file sorted by event time, then id."""
    rows, bad = [], []
    for line in (w / "w.jsonl").read_bytes().splitlines():
        try:
            record = json.loads(line)
            rows.append((record["ts"], record["tx_id"], line))
        except (ValueError, KeyError):
            bad.append(line)
    in_order = [line for *_, line in sorted(rows)]
    (w / "sorted.jsonl").write_bytes(b"\n".join([*in_order, *bad]) + b"\n")
    (w / "halves").mkdir(exist_ok=True)
    whole = (w / "w.jsonl").read_bytes().splitlines()
    for number in range(2):
        (w / f"halves/{number}.jsonl").write_bytes(b"\n".join(whole[number::2]) + b"\n")
    beam_run("payments", "--source", "sorted.jsonl", "--sink", "file:sorted/scores.jsonl", folder=w)
    words = ["--engine", "beam", "--source", "halves/*.jsonl", "--sink", "file:bounded/scores.jsonl"]
    beam_run("payments", *words, folder=w)
    assert not lines(w, "bounded/scores.late-*.jsonl")
    assert lines(w, "bounded/scores-*.jsonl") == lines(w, "sorted/scores.jsonl")
    assert lines(w, "bounded/scores.duplicates-*.jsonl").total() > EVENTS // 100


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    (tmp_path / "clicks.py").write_text(JOB)
    rows = [{"id": f"c{n}", "user": f"u{n % 3}", "ts": n} for n in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return tmp_path


def test_output_is_in_shards_which_another_run_replaces_only_when_told(cli: Any, clicks: Path) -> None:
    words = ["run", "clicks.py", "--engine", "beam", "--source", "in.jsonl", "--sink", "file:out/clicks.jsonl.gz"]
    done = cli(*words)
    assert (done.code, "output in out/clicks-*.jsonl.gz" in done.err) == (0, True), done.err
    shards = sorted(each.name for each in (clicks / "out").iterdir())
    assert all(name.startswith(("clicks-", "clicks.rejected-")) for name in shards), shards
    again = cli(*words)
    assert (again.code, "pass --overwrite" in again.err) == (3, True)
    assert cli(*words, "--overwrite").code == 0
    read = cli("run", "clicks.py", "--source", "out/clicks-*.jsonl.gz", "--sink", "null:", "--json")
    assert json.loads(read.out)["figures"]["events_in"] == 9  # without the one that divides by zero, and the broken


def test_what_a_row_makes_fail_is_rejected_and_the_terminal_takes_the_rest(cli: Any) -> None:
    done = cli("run", "clicks.py", "--engine", "beam", "--source", "in.jsonl")
    assert sorted(json.loads(line)["user"] for line in done.out.splitlines()) == ["u0"] * 4 + ["u1"] * 3 + ["u2"] * 2
    sides = [json.loads(line) for line in done.err.splitlines() if line.startswith('{"side"')]
    assert sorted(side["error"] for side in sides) == ["DecodeError", "ZeroDivisionError"]


REFUSED: list[tuple[list[str], int, str]] = [
    (["--", "--streaming"], 2, "take --runner prism"),
    (["--state-dir", "x"], 2, "--state-dir: the embedded engine has it"),
    (["--sink", "file:x.parquet"], 2, "wanted a name such as x.parquet.jsonl"),
    (["--source", "-"], 2, "a Beam job reads kafka://HOST:PORT/TOPIC or file:PATH"),
    (["--source", "none/*.jsonl"], 3, "no file is there"),
]


@pytest.mark.parametrize(("words", "code", "why"), REFUSED, ids=[case[2][:24] for case in REFUSED])
def test_what_does_not_work_is_refused_before_the_job_starts(cli: Any, words: list[str], code: int, why: str) -> None:
    given = [] if "--source" in words else ["--source", "in.jsonl"]
    done = cli("run", "clicks.py", "--engine", "beam", *given, *words)
    assert (done.code, why in done.err) == (code, True), done.err


def test_an_operator_that_can_not_open_ends_the_job_with_its_error(cli: Any, clicks: Path) -> None:
    (clicks / "broken.py").write_text(
        JOB.replace("Map(half)", "Broken()").replace(', "half")', ")").replace("def half", BROKEN)
    )
    done = cli("run", "broken.py", "--engine", "beam", "--source", "in.jsonl", "--sink", "null:")
    assert done.code == 1
    assert "StreamMLError: pipeline 'clicks' failed on Beam: " in done.err and "no such thing" in done.err
