"""`streamml run --engine beam` where there is no Beam, and options that belong to another engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


def test_without_beam_the_extra_is_named(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("apache_beam", "streamml.beam"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    done = cli("run", "clicks.py", "--engine", "beam", "--source", "in.jsonl")
    assert (done.code, "--engine beam needs Apache Beam: pip install 'streamml[beam]'" in done.err) == (2, True)


@pytest.mark.parametrize("words", [["--runner", "prism"], ["--", "--streaming"]], ids=["runner", "options"])
def test_a_runner_without_beam_is_refused(cli: Any, home: Path, words: list[str]) -> None:
    done = cli("run", "clicks.py", *words)
    assert (done.code, "only --engine beam takes a runner" in done.err) == (2, True)
