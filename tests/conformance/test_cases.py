"""Every case on every engine, whatever the micro-batches and wherever the engine is killed."""

from __future__ import annotations

import dataclasses

import pytest
from conformance_cases import CASES, REPRODUCIBLE

from streamml.errors import UnsupportedError
from streamml.testing import Capability, Case, Engine, RunOptions, checkpoint, crash
from streamml.testing.compare import compare
from streamml.testing.reference import answer
from streamml.testing.script import ScriptEvent

BATCH_SIZES = (1, 2, 3, 1000)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_cut = pytest.mark.parametrize("case", REPRODUCIBLE, ids=lambda case: case.name)


def check(engine: Engine, case: Case, options: RunOptions) -> None:
    found = compare(engine.run(case, options), case.expected)
    assert found == [], "\n".join([*found, f"with {options}", str(case)])


@by_name
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_answer_does_not_depend_on_the_micro_batches(engine: Engine, case: Case, batch_size: int) -> None:
    check(engine, case, RunOptions(batch_size=batch_size))


@by_cut
def test_a_crash_after_any_step_changes_nothing(engine: Engine, case: Case) -> None:
    """Killed after each step: without a checkpoint, with one right before, and with one after every event."""
    if Capability.CRASH not in engine.capabilities:
        pytest.skip(f"engine {engine.name!r} can't be killed")
    steps = list(case.script)
    for cut in range(1, len(steps) + 1):
        for mark, every in (((), 0), ((checkpoint(),), 0), ((), 1), ((), 2)):
            script = [*steps[:cut], *mark, crash(), *steps[cut:]]
            killed = dataclasses.replace(case, script=script, name=f"{case.name}, cut at {cut}")
            check(engine, killed, RunOptions(batch_size=3, checkpoint_every=every))


@by_cut
def test_a_crash_between_a_checkpoint_and_the_next_event_changes_nothing(engine: Engine, case: Case) -> None:
    """A checkpoint at one step, a crash at a later one: all pairs."""
    if Capability.CRASH not in engine.capabilities:
        pytest.skip(f"engine {engine.name!r} can't be killed")
    steps = list(case.script)
    for first in range(len(steps)):
        for second in range(first + 1, len(steps) + 1):
            script = [*steps[:first], checkpoint(), *steps[first:second], crash(), *steps[second:]]
            check(engine, dataclasses.replace(case, script=script), RunOptions(batch_size=2, checkpoint_every=0))


@by_cut
def test_a_crash_changes_nothing_on_the_durable_store(engine: Engine, case: Case) -> None:
    """The real checkpoints on disk: once for each case, a checkpoint in the first half and a crash in the second."""
    if Capability.CRASH not in engine.capabilities:
        pytest.skip(f"engine {engine.name!r} can't be killed")
    steps = list(case.script)
    first, second = len(steps) // 3, 2 * len(steps) // 3 + 1
    script = [*steps[:first], checkpoint(), *steps[first:second], crash(), *steps[second:]]
    options = RunOptions(batch_size=2, checkpoint_every=0, store="rocksdb")
    check(engine, dataclasses.replace(case, script=script), options)


@by_name
def test_the_reference_agrees_with_the_answer_that_was_written_by_hand(case: Case) -> None:
    try:
        expected = answer(case)
    except UnsupportedError:
        pytest.skip("a whole pipeline: its answer is by hand only")
    from streamml.testing.result import OutputRecord, Result

    main = [OutputRecord(None, key=r.key, timestamp=r.timestamp, id=r.id, fields=dict(r.fields)) for r in expected.main]
    sides = {**{name: [] for name in case.expected.sides}, **expected.sides}
    written = {
        name: [{k: v for k, v in wanted.items() if k not in ("reason", "event")} for wanted in records]
        for name, records in case.expected.sides.items()
    }
    assert compare(Result(main, sides), dataclasses.replace(case.expected, sides=written)) == []


def test_there_are_no_fewer_cases_than_there_were() -> None:
    """A suite that silently shrinks proves less; raise the floor with each case that is added."""
    assert len(CASES) >= 67
    assert sum(isinstance(step, ScriptEvent) for case in CASES for step in case.script) >= 230
