"""The conformance suite on Flink: all cases as one job, then with faults in the middle."""

from __future__ import annotations

import dataclasses

import pytest
from conformance_cases import CASES, REPRODUCIBLE

from streamml.testing import Case, RunOptions, checkpoint, crash, rescale
from streamml.testing.compare import compare
from streamml.testing.flink import FlinkDriver
from streamml.testing.script import Script, ScriptEvent, Step

pytestmark = [
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DIFFERENT = {
    # Rows of two keys overtake each other where they are gathered by key group, so under another key their order is
    # not that of the input.
    "a pipeline may change its key, and each stage has states of its own",
}
REAL_CLOCK = {
    # Its wall clock stands still, and Flink's goes on while a job is started again.
    "a processing-time timer does not fire by event time, nor at the end of the input",
}
HERE = [case for case in CASES if case.needs <= FlinkDriver.capabilities]
IN_TWO = [
    case for case in REPRODUCIBLE if case in HERE and case.name not in DIFFERENT | REAL_CLOCK and len(case.script) > 2
]


def check(cases: list[Case], options: RunOptions, different: frozenset[str] = frozenset()) -> None:
    wrong: list[str] = []
    for case, result in zip(cases, FlinkDriver().run_many(cases, options), strict=True):
        assert case.expected is not None
        found = compare(result, case.expected)
        if case.name in different:
            wrong += [] if found else [f"{case.name}: agrees now; take it out of DIFFERENT"]
        elif found:
            wrong += [f"{case.name}:", *found, str(case)]
    assert wrong == [], "\n".join(wrong)


def test_every_case_has_the_same_answer(flink: None) -> None:
    check(HERE, RunOptions(batch_size=1000), frozenset(DIFFERENT))


def test_a_crash_in_the_middle_changes_nothing(flink: None) -> None:
    """Half of the cases: a checkpoint, two steps that are lost, a crash."""
    cases = []
    for number, case in enumerate(IN_TWO[::2]):
        steps: list[Step] = list(case.script)
        cut = 1 + number % (len(steps) - 1)
        script = [*steps[:cut], checkpoint(), *steps[cut : cut + 2], crash(), *steps[cut + 2 :]]
        cases.append(dataclasses.replace(case, script=script))
    check(cases, RunOptions(batch_size=2, checkpoint_every=0))


def test_more_workers_and_fewer_again_change_nothing(flink: None) -> None:
    """The other half: from one subtask to two and back."""
    cases = []
    for number, case in enumerate(IN_TWO[1::2]):
        steps: list[Step] = list(case.script)
        cut = 1 + number % (len(steps) - 1)
        later = cut + max(1, (len(steps) - cut) // 2)
        script = [*steps[:cut], rescale(2), *steps[cut:later], rescale(1), *steps[later:]]
        cases.append(dataclasses.replace(case, script=script))
    check(cases, RunOptions(batch_size=1000))


def test_there_are_no_fewer_cases_than_there_were() -> None:
    assert len(HERE) >= 73
    assert sum(isinstance(step, ScriptEvent) for case in HERE for step in Script(case.script)) >= 240
