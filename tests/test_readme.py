"""Every command and snippet of the README runs, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<how>file|needs|from): (?P<what>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
ELSEWHERE = {"make run": "test_make_run_ends_with_a_summary"}
"""Commands that have a test of their own."""


def blocks() -> list[tuple[str, str, str, str]]:
    """Return blocks as (how, what, kind, text); `how` says what is done with the text."""
    found = BLOCK.finditer((ROOT / "README.md").read_text())
    return [(m["how"] or "", m["what"] or "", m["kind"], m["text"]) for m in found]


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


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    outputs: dict[str, str] = {}
    for how, what, kind, text in blocks():
        if how == "file":
            (tmp_path / what).write_text(text)
        elif kind == "bash" and text.strip() not in ELSEWHERE:
            if how == "needs" and any(shutil.which(program) is None for program in what.split()):
                warnings.warn(f"not run, since {what} are not all here: {text}", stacklevel=1)
                continue
            for command in text.strip().splitlines():
                outputs[command] = shell(command, tmp_path)
    shown = outputs["cat out.jsonl out.duplicates.jsonl out.rejected.jsonl"]
    assert '"clicks_1m":2,"mean_price_1m":3.0' in shown
    assert "$.price" in shown
    assert "dedupe.seen" in outputs["streamml state get state --key u1"]


def test_every_block_of_the_readme_is_run_or_written_to_a_file() -> None:
    for how, what, kind, text in blocks():
        if how == "from":
            assert text in (ROOT / what).read_text(), f"{what} does not say: {text}"
        else:
            assert how == "file" or kind == "bash", f"a block that no test runs: {text[:80]}"


@pytest.mark.slow
def test_make_run_ends_with_a_summary(tmp_path: Path) -> None:
    shown = shell(f"make -C {ROOT} run", tmp_path)
    assert "AUC" in shown
