"""Each exit code, and what is said with it."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from streamml.cli.exits import CODES_HELP, ExitCode

FILES = ("--source", "in.jsonl", "--sink", "out.jsonl")


def test_a_plan_error_is_2_in_one_message_on_standard_error(cli: Any, home: Path) -> None:
    (home / "plan.py").write_text(
        "import streamml as sml\n"
        "from streamml.operators import Dedupe\n"
        "class E(sml.Event, id='id', time='ts'):\n    id: str\n    ts: int\n"
        "def pipeline(cfg):\n    return sml.Pipeline('p', schema=E).then(Dedupe())\n"
    )
    done = cli("run", "plan.py")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("PlanError: ") and "call key_by" in done.err
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback(cli: Any, home: Path) -> None:
    done = cli("run", "nothing.py", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err and "load_job" in done.err


def test_an_unknown_option_is_2(cli: Any, home: Path) -> None:
    assert cli("run", "clicks.py", "--sourse", "x").code == 2


def test_a_missing_input_is_3_and_leaves_output_alone(cli: Any, home: Path) -> None:
    (home / "out.jsonl").write_text("old\n")
    done = cli("run", "clicks.py", "--source", "none.jsonl", "--sink", "out.jsonl", "--overwrite")
    assert done.code == 3
    assert done.err.startswith("ConnectorError: ") and "none.jsonl" in done.err
    assert (home / "out.jsonl").read_text() == "old\n"


def test_a_port_in_use_is_3(cli: Any, stream: list[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = cli("run", "clicks.py", *FILES, "--metrics-port", other.getsockname()[1])
    assert done.code == 3
    assert "choose another port" in done.err


def test_state_of_another_pipeline_is_4(cli: Any, home: Path, stream: list[str]) -> None:
    cli("run", "clicks.py", *FILES, "--state-dir", "st")
    (home / "other.py").write_text((home / "clicks.py").read_text().replace('Pipeline("clicks"', 'Pipeline("other"'))
    done = cli("run", "other.py", *FILES, "--state-dir", "st")
    assert done.code == 4
    assert "belongs to pipeline 'clicks'" in done.err


def test_only_damaged_checkpoints_are_4(cli: Any, home: Path, stream: list[str]) -> None:
    cli("run", "clicks.py", *FILES, "--state-dir", "st")
    for manifest in (home / "st" / "checkpoints").glob("chk-*/MANIFEST.json"):
        manifest.write_text("{")
    done = cli("run", "clicks.py", *FILES, "--state-dir", "st")
    assert done.code == 4
    assert "none can be used" in done.err


def test_a_missing_model_is_5(cli: Any, home: Path, stream: list[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = (home / "clicks.py").read_text()
    source = source.replace("import Dedupe, Filter", "import Dedupe, Filter, Infer")
    source = source.replace(
        ".then(Number())", ".then(Number()).then(Infer('nosuch@prod', inputs=['n'], outputs={'s': 0}))"
    )
    (home / "model.py").write_text(source)
    done = cli("run", "model.py", *FILES)
    assert done.code == 5, done.err
    assert done.err.startswith("ModelError: ") and "nosuch" in done.err


def test_an_error_that_nobody_foresaw_is_1_and_says_where(
    cli: Any, home: Path, stream: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamml.local import LocalEngine

    def broken(self: LocalEngine) -> None:
        raise ZeroDivisionError("no idea")

    monkeypatch.setattr(LocalEngine, "run", broken)
    done = cli("run", "clicks.py", *FILES)
    assert done.code == 1
    assert re.search(r"ZeroDivisionError: no idea \(at .*test_cli_errors\.py:\d+\)", done.err)
    assert "--debug shows the traceback" in done.err and "Traceback" not in done.err


def test_flink_has_a_command_of_its_own(cli: Any, home: Path) -> None:
    done = cli("run", "clicks.py", "--engine", "flink")
    assert done.code == 2
    assert done.err.startswith("UnsupportedError: ") and "streamml submit clicks.py" in done.err


def test_every_code_is_documented() -> None:
    for code in ExitCode:
        assert re.search(rf"\b{code.value} \w", CODES_HELP)


# --- jobs that can't be loaded ----------------------------------------------------------------------------------------


def test_an_unknown_ready_job_suggests_a_near_one(cli: Any, home: Path) -> None:
    done = cli("run", "paymants")
    assert done.code == 2
    assert "Did you mean 'payments'?" in done.err


def test_a_file_named_without_its_ending_is_pointed_out(cli: Any, home: Path) -> None:
    assert "and there is one: clicks.py" in cli("run", "clicks").err


def test_a_syntax_error_gives_file_and_line(cli: Any, home: Path) -> None:
    (home / "bad.py").write_text("import streamml\n\ndef pipeline(cfg:\n    pass\n")
    done = cli("run", "bad.py")
    assert done.code == 2
    assert "bad.py:3: syntax error" in done.err and "def pipeline(cfg:" in done.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nosuchmodule\n", "job job.py:1: there is no module 'nosuchmodule'"),
        ("x = 1\ny = x / 0\n", "job job.py:2: importing it raised ZeroDivisionError: division by zero"),
        ("def pipelin(cfg): ...\n", "it defines no pipeline(cfg). It defines pipelin. Add: def pipeline(cfg"),
        ("def pipeline(cfg):\n    pass\n", "must return a streamml.Pipeline, got NoneType. Is a `return` missing?"),
        ("def pipeline(cfg):\n    a = []\n    return a[1]\n", "job job.py:3: pipeline(cfg) raised IndexError"),
    ],
)
def test_a_job_that_does_not_work_says_where_and_what_to_do(cli: Any, home: Path, source: str, said: str) -> None:
    (home / "job.py").write_text(source)
    done = cli("run", "job.py")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_job_may_import_what_lies_beside_it(cli: Any, home: Path) -> None:
    (home / "beside_the_job.py").write_text("NAME = 'clicks'\n")
    text = (home / "clicks.py").read_text()
    (home / "jobs").mkdir()
    (home / "jobs" / "beside_this_job.py").write_text("NAME = 'named-beside'\n")
    text = text.replace("import time\n", "import time\nfrom beside_this_job import NAME\n").replace(
        '"clicks", s', "NAME, s"
    )
    (home / "jobs" / "far.py").write_text(text)
    assert cli("run", "jobs/far.py", "--explain").out.startswith("pipeline named-beside\n")


# --- options that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--side", "lat=null:"], "there is no side output 'lat'. Did you mean 'late'?"),
        (["--side", "late"], "wanted name=URI"),
        (["--param", "pause"], "wanted name=value"),
        (["--param", "pause=fast"], "wanted float"),
        (["--source", "other.jsonl"], "'clicks' was given already"),
        (["--checkpoint-interval", "5"], "wanted a duration"),
        (["--json", "--sink", "-"], "pass --sink URI"),
        (["--metrics-port", "x"], "wanted a port"),
        (["--demo"], "leave --source, --sink"),
    ],
)
def test_an_option_that_does_not_fit_is_2(cli: Any, stream: list[str], options: list[str], said: str) -> None:
    done = cli("run", "clicks.py", *FILES, *options)
    assert done.code == 2
    assert said in done.err


def test_a_source_without_an_address_is_2(cli: Any, home: Path) -> None:
    done = cli("run", "clicks.py")
    assert (done.code, "has no address; pass --source URI" in done.err) == (2, True)
