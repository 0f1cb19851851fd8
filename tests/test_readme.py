"""Every command and snippet of the README and of docs/ runs, in order, in an empty folder for each page."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors.kafka_address import SINK_OPTIONS, SOURCE_OPTIONS
from streamml.observability.names import NAMES

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<how>file|needs|from): (?P<what>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
ELSEWHERE = {"make run": "test_make_run_ends_with_a_summary"}
"""Commands that have a test of their own."""


def blocks(page: str) -> list[tuple[str, str, str, str]]:
    """Return blocks as (how, what, kind, text); `how` says what is done with the text."""
    found = BLOCK.finditer((ROOT / page).read_text())
    return [(m["how"] or "", m["what"] or "", m["kind"], m["text"]) for m in found]


def is_here(need: str) -> bool:
    """Return whether a program, or a module (`python:NAME`), is here."""
    if need.startswith("python:"):
        return importlib.util.find_spec(need.removeprefix("python:")) is not None
    return shutil.which(need) is not None


def shell(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page: str, folder: Path) -> dict[str, str]:
    """Run a page from top to bottom; return what each command printed. A broker that it left behind is ended."""
    outputs: dict[str, str] = {}
    try:
        for how, what, kind, text in blocks(page):
            if how == "file":
                (folder / what).write_text(text)
            elif kind == "bash" and text.strip() not in ELSEWHERE:
                if how == "needs" and (gone := [need for need in what.split() if not is_here(need)]):
                    warnings.warn(f"{page}: not run, since {', '.join(gone)} is not here: {text}", stacklevel=1)
                    continue
                for command in text.strip().splitlines():
                    outputs[command] = shell(command, folder)
    finally:
        for pid in folder.rglob("broker.pid"):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        for state in folder.rglob("cluster.json"):
            from streamml.flink.cluster import TrialCluster

            TrialCluster.open(state.parent).stop()
    return outputs


def check_readme(outputs: dict[str, str]) -> None:
    shown = outputs["cat out.jsonl out.duplicates.jsonl out.rejected.jsonl"]
    assert '"clicks_1m":2,"mean_price_1m":3.0' in shown
    assert "$.price" in shown
    assert "dedupe.seen" in outputs["streamml state get state --key u1"]


def check_kafka(outputs: dict[str, str]) -> None:
    assert "sasl.password=(hidden)" in outputs["python settings.py"]
    assert "secret store" not in outputs["python settings.py"]
    if "python count.py" in outputs:
        found = re.fullmatch(r"(\d+) scores, 0 of them twice\n", outputs["python count.py"])
        assert found is not None and int(found[1]) > 2_500
        assert "whole" in outputs["streamml state list state"]


CHECKS: dict[str, Callable[[dict[str, str]], None]] = {"README.md": check_readme, "docs/kafka.md": check_kafka}
"""What must be in the outputs of a page, beside that every command succeeds."""


def marked(page: str) -> Any:
    """Return a page with the marks of the engines that it needs, so that its test runs beside theirs."""
    needs = {need for how, what, *_ in blocks(page) if how == "needs" for need in what.split()}
    marks = [pytest.mark.slow, pytest.mark.timeout(600)]
    if "mvn" in needs:
        marks.append(pytest.mark.kafka)
    if "python:pyflink" in needs:
        marks.append(pytest.mark.flink)
    if "python:apache_beam" in needs:
        marks.append(pytest.mark.beam)
    return pytest.param(page, marks=marks)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    outputs = run_page(page, tmp_path)
    if page in CHECKS:
        CHECKS[page](outputs)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_written_to_a_file(page: str) -> None:
    for how, what, kind, text in blocks(page):
        if how == "from":
            assert text in (ROOT / what).read_text(), f"{what} does not say: {text}"
        else:
            assert how == "file" or kind == "bash", f"a block that no test runs: {text[:80]}"


def test_the_page_about_kafka_names_every_option_and_every_metric() -> None:
    page = (ROOT / "docs/kafka.md").read_text()
    cells = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    options = {name for name in cells if not name.startswith("streamml_")}
    assert set(SOURCE_OPTIONS) | set(SINK_OPTIONS) <= options
    metrics = {name for name in NAMES if name.startswith("streamml_kafka_")}
    assert {name for name in cells if name.startswith("streamml_kafka_")} == metrics


@pytest.mark.slow
def test_make_run_ends_with_a_summary(tmp_path: Path) -> None:
    shown = shell(f"make -C {ROOT} run", tmp_path)
    assert "AUC" in shown
