"""Help texts, the list of jobs, the version, the doctor, and what starting the command loads."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamml
from streamml.cli import checks, generate, run, state
from streamml.cli.exits import CODES_HELP


def options(command: Callable[..., Any]) -> dict[str, Any]:
    """Options of a command with their defaults."""
    found = {name.replace("_", "-"): p.default for name, p in inspect.signature(command).parameters.items()}
    return {f"--{name}": default for name, default in found.items() if default is not inspect.Parameter.empty}


COMMANDS = {
    ("run",): run.run,
    ("generate", "payments"): generate.payments,
    ("state", "keys"): state.keys,
    ("state", "sizes"): state.sizes,
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_each_option_with_its_default(cli: Any, home: Path, command: tuple[str, ...]) -> None:
    text = cli(*command, "--help").out
    for option, default in options(COMMANDS[command]).items():
        (line,) = re.findall(rf"│ +{option} .*", text)
        # The description of an option may take several lines, up to the next option or the end of its group.
        block = text[text.index(line) :]
        block = re.split(r"\n│ +(?:\*\s+)?--|\n╰", block)[0]
        (shown,) = re.findall(r"\[default:\s+(.*?)\]", " ".join(re.sub(r"[│\n]", " ", block).split()))
        if default not in (None, False):
            assert shown == str(default), option


def test_help_of_run_is_in_groups_and_tells_the_exit_codes(cli: Any, home: Path) -> None:
    text = cli("run", "--help").out
    for group in ("Input and output", "State", "Job", "Display", "Demonstration"):
        assert f"─ {group} ─" in text
    assert CODES_HELP.split(",")[1].strip() in " ".join(text.split())


def test_help_of_the_command_lists_its_commands(cli: Any, home: Path) -> None:
    text = cli("--help").out
    for command in ("run", "jobs", "generate", "state", "doctor", "version"):
        assert re.search(rf"│ {command} ", text)


def test_version_is_the_package_version(cli: Any, home: Path) -> None:
    assert cli("version").out == streamml.__version__ + "\n"


def test_an_unknown_command_suggests_a_near_one(cli: Any, home: Path) -> None:
    done = cli("rum")
    assert (done.code, "'run'" in done.err) == (2, True)


def test_starting_the_command_loads_nothing_heavy() -> None:
    heavy = ["numpy", "rich.live", "rocksdict", "pyarrow", "onnxruntime", "prometheus_client", "streamml.local"]
    program = f"import sys, streamml.cli.main; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_jobs_lists_the_payments_job(cli: Any, home: Path) -> None:
    done = cli("jobs")
    assert done.code == 0
    assert "payments" in done.out and "dedupe > features > session" in done.out
    (entry,) = [entry for entry in cli("jobs", "--json").json if entry["name"] == "payments"]
    assert entry["sources"] == ["payments: Payment"]
    assert entry["demo"] is True


def test_the_doctor_knows_every_extra_and_exits_with_0(cli: Any, home: Path) -> None:
    from importlib.metadata import metadata

    done = cli("doctor", "--json", "--broker", "localhost:1")
    found = {(check["group"], check["name"]): check for check in done.json}
    groups = {group for group, _ in found}
    for extra in metadata("streamml").get_all("Provides-Extra") or ():
        assert extra in ("all", "dev") or f"Extra [{extra}]" in groups
    assert found["Packages", "msgspec"]["status"] == "ok"
    assert found["Services", "Kafka broker"]["status"] == "missing"
    assert found["Services", "Kafka broker"]["get"]
    assert done.code == 0


def test_the_doctor_says_how_to_get_what_is_missing(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    wanted = ['nosuchpackage>=1; extra == "flink"', "msgspec>=99", "rich"]
    monkeypatch.setattr(checks.metadata, "requires", lambda name: wanted)
    text = cli("doctor", "--broker", "localhost:1").out
    assert "pip install 'streamml[flink]'" in text
    assert re.search(r"msgspec +too old +\S+, wanted >=99", text)
    assert re.search(r"java +missing", text) and "JDK 17" in text


@pytest.mark.parametrize("said", ['openjdk version "17.0.15" 2025-04-15', 'java version "1.8.0_392"'])
def test_the_doctor_reads_java_versions(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_said", lambda command: said)
    found = checks._java()
    assert (found.status, found.found) in (("ok", "17.0.15"), ("old", "1.8.0_392"))
