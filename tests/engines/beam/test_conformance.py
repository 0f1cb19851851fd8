"""The conformance suite on Beam's `TestStream`: all of it on Prism, a share of it on BundleBased, which is slow."""

from __future__ import annotations

import pytest
from conformance_cases import CASES

from streamml.errors import UnsupportedError
from streamml.testing import RunOptions
from streamml.testing.beam import BeamDriver
from streamml.testing.compare import compare
from streamml.testing.script import Script, ScriptEvent

DIFFERENT = {
    # Rows of two keys overtake each other on their way through key groups, so under another key their order is not that
    # of the input.
    "prism": {"a pipeline may change its key, and each stage has states of its own"},
    # BundleBased ignores the watermark holds of timers, so the watermark passes the window's results on their way.
    "direct": {"a window's results may be keyed and counted again"},
}
REAL_CLOCK = {
    # Its timer is due in five seconds of the real clock; Prism does not end before.
    "a processing-time timer does not fire by event time, nor at the end of the input",
}
HERE = [case for case in CASES if case.needs <= BeamDriver.capabilities and case.name not in REAL_CLOCK]
SHARE = 9


@pytest.mark.timeout(300)
def test_every_case_has_the_same_answer(runner: str) -> None:
    cases = (
        HERE if runner == "prism" else [c for c in HERE if c.name in DIFFERENT["direct"] or HERE.index(c) % SHARE == 0]
    )
    wrong: list[str] = []
    with BeamDriver(runner) as driver:
        for case in cases:
            assert case.expected is not None
            found = compare(driver.run(case, RunOptions()), case.expected)
            if case.name in DIFFERENT[runner]:
                wrong += [] if found else [f"{case.name}: agrees now; take it out of DIFFERENT"]
            elif found:
                wrong += [f"{case.name}:", *found, str(case)]
    assert wrong == [], "\n".join(wrong)


def test_what_beam_can_not_do_is_refused() -> None:
    beyond = [case for case in CASES if not case.needs <= BeamDriver.capabilities]
    assert beyond
    for case in beyond:
        with pytest.raises(UnsupportedError, match="can't do"):
            BeamDriver().run(case)


def test_there_are_no_fewer_cases_than_there_were() -> None:
    assert len(HERE) >= 71
    assert sum(isinstance(step, ScriptEvent) for case in HERE for step in Script(case.script)) >= 230
