"""The markers of what an engine can't do."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamml.errors import UnsupportedError

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).parents[2] / "conftest.py"

GAPS = """
import pytest
from streamml.errors import UnsupportedError

gap = pytest.mark.notyet("local", raises=UnsupportedError, reason="not there")

@gap
def test_open(engine):
    raise UnsupportedError("no")

@gap
def test_closed(engine):
    pass

@gap
def test_wrong(engine):
    assert False

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=gap)])
def test_of_one_parameter(engine, n):
    if n == 2:
        raise UnsupportedError("no")
"""


def test_a_gap_is_a_strict_xfail_and_a_wrong_answer_is_none(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers =\n    local: the embedded engine\n")
    pytester.makepyfile(GAPS)
    result = pytester.runpytest_inprocess("--strict-markers", "-p", "no:cacheprovider", "-rA")
    assert result.parseoutcomes() == {"xfailed": 2, "failed": 2, "passed": 1}
    result.stdout.re_match_lines(
        ["XFAIL .*test_open.*notyet: not there.*", "FAILED .*test_closed.*", "FAILED .*test_wrong.*"]
    )


@pytest.mark.parametrize(
    ("engines", "words", "message"),
    [
        (["loco"], {"raises": UnsupportedError, "reason": "x"}, "wanted names of engines"),
        ([], {"raises": UnsupportedError, "reason": "x"}, "got none"),
        (["local"], {"reason": "x"}, "wanted raises= and reason="),
        (["local"], {"raises": UnsupportedError}, "wanted raises= and reason="),
        (["local"], {"raises": UnsupportedError, "reason": ""}, "wanted raises= and reason="),
        (["local"], {"raises": AssertionError, "reason": "x"}, "a wrong answer is no gap"),
    ],
)
def test_a_gap_that_is_not_well_declared_stops_the_run(engines: list[str], words: dict[str, Any], message: str) -> None:
    spec = importlib.util.spec_from_file_location("gaps", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    mark = pytest.Mark("notyet", tuple(engines), words, _ispytest=True)
    with pytest.raises(pytest.UsageError, match=re.escape(message)):
        conftest.check_gap(SimpleNamespace(nodeid="test"), mark)
