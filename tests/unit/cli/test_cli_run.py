"""`streamml run`, from file to file in this process."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamml.cli.sides import SideSink
from streamml.connectors import open_sink

Cli = Callable[..., Any]
FILES = ("--source", "file:in.jsonl", "--sink", "file:out.jsonl")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def test_a_run_from_file_to_file_gives_the_answer_and_the_side_outputs(
    cli: Cli, stream: list[str], answer: Any, read: Any
) -> None:
    done = cli("run", "clicks.py", *FILES)
    assert (done.code, done.err) == (0, "")
    assert read("out.jsonl") == answer(stream)
    assert len(read("out.duplicates.jsonl")) == 160
    assert len(read("out.rejected.jsonl")) == 40


def test_a_side_output_without_records_leaves_no_file(cli: Cli, home: Path, stream: list[str]) -> None:
    cli("run", "clicks.py", *FILES)
    assert sorted(path.name for path in home.glob("out*")) == [
        "out.duplicates.jsonl",
        "out.jsonl",
        "out.rejected.jsonl",
    ]


def test_json_is_one_object_with_the_figures_and_nothing_else(cli: Cli, stream: list[str]) -> None:
    done = cli("run", "clicks.py", *FILES, "--state-dir", "st", "--json")
    found = done.json
    assert done.err == ""
    assert (found["job"], found["engine"], found["finished"], found["stopped_by"]) == ("clicks", "local", True, None)
    assert (found["figures"]["events_in"], found["figures"]["events_out"]) == (2000, 1800)
    assert found["sides"]["rejected"]["records"] == sum(found["sides"]["rejected"]["kinds"].values()) == 40
    assert found["sides"]["late"] == {"uri": "file:out.late.jsonl", "records": 0, "kinds": {}}


@pytest.mark.parametrize("more", [(), ("--plain",)])
def test_without_a_terminal_nothing_has_control_codes(cli: Cli, stream: list[str], more: tuple[str, ...]) -> None:
    done = cli("run", "clicks.py", *FILES, *more)
    assert "in=" in done.out and "Output" in done.out
    assert CONTROL.findall(done.out + done.err) == []


def test_output_to_standard_output_stays_alone_there(cli: Cli, stream: list[str], answer: Any) -> None:
    done = cli("run", "clicks.py", "--source", "in.jsonl", "--sink", "-", "--side", "duplicates=null:")
    assert [json.loads(line) for line in done.out.splitlines()] == answer(stream)
    assert "events/s on average" in done.err
    assert sum('"side":"rejected"' in line for line in done.err.splitlines()) == 40


def test_without_a_sink_output_goes_to_standard_output(cli: Cli, stream: list[str], answer: Any) -> None:
    done = cli("run", "clicks.py", "--source", "in.jsonl")
    assert [json.loads(line) for line in done.out.splitlines()] == answer(stream)


def test_a_side_output_goes_where_it_is_told(cli: Cli, stream: list[str], read: Any) -> None:
    cli("run", "clicks.py", *FILES, "--side", "rejected=file:bad/r.jsonl")
    assert len(read("bad/r.jsonl")) == 40


def test_parameters_reach_the_job(cli: Cli, stream: list[str], answer: Any, read: Any) -> None:
    assert cli("run", "clicks.py", *FILES, "--param", "without=u1").code == 0
    assert read("out.jsonl") == answer(stream, without="u1")


def test_a_parameter_that_the_job_never_asks_for_is_refused(cli: Cli, stream: list[str]) -> None:
    done = cli("run", "clicks.py", *FILES, "--param", "pauze=1")
    assert done.code == 2
    assert "there is no parameter 'pauze'. Did you mean 'pause'?" in done.err


def test_another_batch_size_gives_the_same_output(cli: Cli, home: Path, stream: list[str]) -> None:
    cli("run", "clicks.py", *FILES)
    cli("run", "clicks.py", *FILES[:2], "--sink", "file:small.jsonl", "--batch-size", "7", "--cache-mb", "1")
    assert (home / "small.jsonl").read_bytes() == (home / "out.jsonl").read_bytes()


def test_output_that_is_there_is_replaced_only_when_asked(cli: Cli, home: Path, stream: list[str], read: Any) -> None:
    cli("run", "clicks.py", *FILES)
    before = (home / "out.jsonl").read_bytes()
    refused = cli("run", "clicks.py", *FILES)
    assert (refused.code, "out.jsonl" in refused.err) == (3, True)
    assert cli("run", "clicks.py", *FILES, "--overwrite").code == 0
    assert (home / "out.jsonl").read_bytes() == before
    assert len(read("out.rejected.jsonl")) == 40


def test_side_output_of_an_earlier_run_is_not_left_beside_new_output(
    cli: Cli, home: Path, stream: list[str], read: Any
) -> None:
    cli("run", "clicks.py", *FILES)
    (home / "in.jsonl").write_text(json.dumps({"id": "a", "user": "u", "ts": 1}) + "\n")
    cli("run", "clicks.py", *FILES, "--overwrite")
    assert (read("out.rejected.jsonl"), read("out.duplicates.jsonl")) == ([], [])


def test_a_finished_run_does_nothing_the_second_time_and_says_so(cli: Cli, home: Path, stream: list[str]) -> None:
    cli("run", "clicks.py", *FILES, "--state-dir", "st")
    before = (home / "out.jsonl").read_bytes()
    done = cli("run", "clicks.py", *FILES, "--state-dir", "st")
    assert done.code == 0
    assert "going on from checkpoint 1" in done.out and "Nothing new" in done.out
    assert (home / "out.jsonl").read_bytes() == before


def test_explain_prints_the_plan_and_runs_nothing(cli: Cli, home: Path) -> None:
    tree = cli("run", "clicks.py", "--explain")
    assert tree.out.splitlines()[0] == "pipeline clicks"
    assert "key by user" in tree.out and "dedupe" in tree.out
    assert cli("run", "clicks.py", "--explain", "tree").out == tree.out
    assert cli("run", "--explain", "clicks.py").out == tree.out
    assert cli("run", "clicks.py", "--explain", "mermaid").out.startswith("flowchart LR\n")


def test_metrics_are_served_while_the_run_lasts(cli: Cli, stream: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    from streamml.cli.view import View

    def fetch(self: View, figures: object) -> None:
        if self.seen:  # type: ignore[attr-defined]
            pages.append(urllib.request.urlopen(self.seen[0], timeout=10).read().decode())  # type: ignore[attr-defined]

    def say(self: View, text: str) -> None:
        self.seen = re.findall(r"http\S+", text)  # type: ignore[attr-defined]

    monkeypatch.setattr(View, "progress", fetch)
    monkeypatch.setattr(View, "say", say)
    assert cli("run", "clicks.py", *FILES, "--metrics-port", "0").code == 0
    assert "streamml_events_total 2000.0" in pages[-1]


def test_models_beside_the_job_come_before_the_shipped_ones(home: Path) -> None:
    from streamml.cli.loading import load_job

    shipped = load_job("clicks.py").models()
    (home / "models").mkdir()
    assert load_job("clicks.py").models() == ("models", *shipped)
    assert load_job("clicks.py").models(["mine", "yours"]) == ("mine", "yours", *shipped)


def test_several_sources_are_told_apart_by_tag(cli: Cli, home: Path, read: Any) -> None:
    (home / "two.py").write_text(
        "import streamml as sml\n"
        "class E(sml.Event, id='id', time='ts'):\n    id: str\n    ts: int\n"
        "def pipeline(cfg):\n"
        "    return sml.Pipeline('two').source('a', E, uri='file:a.jsonl').source('b', E).select('id')\n"
    )
    for name in "ab":
        (home / f"{name}.jsonl").write_text(f'{{"id":"{name}1","ts":1}}\n')
    assert cli("run", "two.py", "--source", "b=file:b.jsonl", "--sink", "o.jsonl").code == 0
    assert sorted(row["id"] for row in read("o.jsonl")) == ["a1", "b1"]
    missing = cli("run", "two.py")
    assert (missing.code, "--source b=URI" in missing.err) == (2, True)
    odd = cli("run", "two.py", "--source", "c=x.jsonl")
    assert (odd.code, "there is no source 'c'" in odd.err) == (2, True)
    bare = cli("run", "two.py", "--source", "x.jsonl")
    assert (bare.code, "there are several sources (a, b)" in bare.err) == (2, True)


def test_a_side_file_that_came_after_the_restored_checkpoint_is_emptied(tmp_path: Path) -> None:
    uri = f"file:{tmp_path}/late.jsonl"

    def side() -> SideSink:
        return SideSink("late", uri, lambda replace: open_sink(uri, overwrite=replace))

    first = side()
    first.open(None)
    unopened = first.prepare(1)
    first.commit(1)
    first.write_records([{"n": 1}])
    first.prepare(2)
    first.commit(2)
    first.close()
    again = side()
    again.open(unopened)  # checkpoint 2 was damaged, say
    again.write_records([{"n": 1}])
    again.prepare(2)
    again.commit(2)
    again.close()
    assert (tmp_path / "late.jsonl").read_text() == '{"n":1}\n'


def test_a_side_file_of_somebody_else_is_refused_at_the_start(tmp_path: Path) -> None:
    from streamml.errors import ConnectorError

    (tmp_path / "late.jsonl").write_text("mine\n")
    uri = f"file:{tmp_path}/late.jsonl"
    with pytest.raises(ConnectorError, match=re.escape("late.jsonl")):
        SideSink("late", uri, lambda replace: open_sink(uri, overwrite=replace)).open(None)
    assert (tmp_path / "late.jsonl").read_text() == "mine\n"
