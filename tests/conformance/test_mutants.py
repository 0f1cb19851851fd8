"""Broken engines, each of which the suite must find: a suite that no mutant fails proves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conformance_cases import REPRODUCIBLE

import streamml.local.engine
from streamml.contract import Context
from streamml.records import Batch
from streamml.runtime import Output, StageRuntime, _Step
from streamml.state.descriptors import ListHandle, _Handle
from streamml.state.memory import MemoryStore
from streamml.state.table import StateTable
from streamml.state.timers import TimerQueue
from streamml.testing import RunOptions, checkpoint, crash
from streamml.testing.compare import compare
from streamml.testing.local import LocalDriver, MemoryStorage, ScriptSink
from streamml.testing.player import ScriptSource
from streamml.times import MIN_TIME
from streamml.watermarks import WatermarkTracker

Patch = pytest.MonkeyPatch
MUTANTS: list[Callable[[Patch], None]] = []


def mutant(patch: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS.append(patch)
    return patch


def before_process(patch: Patch, change: Callable[[Batch], None]) -> None:
    """Let a stage see another batch than it was given."""
    process = StageRuntime.process

    def changed(self: StageRuntime, batch: Batch, now: int) -> Output:
        change(batch)
        return process(self, batch, now)

    patch.setattr(StageRuntime, "process", changed)


@mutant
def drops_late_records(patch: Patch) -> None:
    patch.setattr(Context, "late", lambda self, *args: None)


@mutant
def takes_an_event_as_old_as_the_watermark_for_late(patch: Patch) -> None:
    def change(batch: Batch) -> None:
        batch.watermarks = [watermark + 1 for watermark in batch.watermarks]

    before_process(patch, change)


@mutant
def judges_rows_by_the_watermark_after_the_batch(patch: Patch) -> None:
    def change(batch: Batch) -> None:
        batch.watermarks = [batch.watermark] * len(batch)

    before_process(patch, change)


@mutant
def judges_rows_by_the_watermark_before_the_batch(patch: Patch) -> None:
    def change(batch: Batch) -> None:
        batch.watermarks = batch.watermarks[:1] * len(batch)

    before_process(patch, change)


@mutant
def reorders_within_a_key(patch: Patch) -> None:
    finish = StageRuntime._finish

    def reversed_rows(self: StageRuntime, batch: Batch, now: int) -> Output:
        output = finish(self, batch, now)
        output.main = output.main.take(range(len(output.main))[::-1])
        return output

    patch.setattr(StageRuntime, "_finish", reversed_rows)


@mutant
def loses_timers_on_restore(patch: Patch) -> None:
    patch.setattr(TimerQueue, "_restore", lambda self: None)


@mutant
def loses_taken_back_timers_on_restore(patch: Patch) -> None:
    """A timer that fired or was deleted after a flush comes back."""
    flush = TimerQueue.flush

    def only_additions(self: TimerQueue) -> None:
        self._changes = {item: added for item, added in self._changes.items() if added}
        flush(self)

    patch.setattr(TimerQueue, "flush", only_additions)


@mutant
def loses_state_on_restore(patch: Patch) -> None:
    restore = MemoryStorage.__init__

    def empty(self: MemoryStorage, kept: dict[str, Any]) -> None:
        restore(self, kept)
        self.store = MemoryStore()

    patch.setattr(MemoryStorage, "__init__", empty)


@mutant
def checkpoints_without_the_changed_state(patch: Patch) -> None:
    patch.setattr(StateTable, "flush", lambda self, watermark, now: 0)


@mutant
def forgets_the_watermark_on_restore(patch: Patch) -> None:
    patch.setattr(WatermarkTracker, "restore", lambda self, stored: None)


@mutant
def forgets_ttl(patch: Patch) -> None:
    patch.setattr(_Handle, "_horizon", lambda self: MIN_TIME * 2)


@mutant
def expires_one_millisecond_late(patch: Patch) -> None:
    horizon = _Handle._horizon
    patch.setattr(_Handle, "_horizon", lambda self: horizon(self) - 1)


@mutant
def counts_a_ttl_from_arrival(patch: Patch) -> None:
    patch.setattr(_Handle, "_stamp", lambda self: max(self._scope.timestamp, self._scope.watermark))


@mutant
def a_list_forgets_its_elements_times(patch: Patch) -> None:
    patch.setattr(ListHandle, "get", lambda self: [] if self._cell() is None else list(self._cell().values))


@mutant
def emits_twice_after_a_crash(patch: Patch) -> None:
    def reopen(self: ScriptSink, prepared: Any) -> None:
        self.commit(0)

    patch.setattr(ScriptSink, "open", reopen)
    patch.setattr(ScriptSink, "close", lambda self: None)


@mutant
def reads_everything_again_after_a_crash(patch: Patch) -> None:
    patch.setattr(ScriptSource, "open", lambda self, positions: self._player.seek(0))


@mutant
def skips_a_record_after_a_crash(patch: Patch) -> None:
    patch.setattr(ScriptSource, "positions", lambda self: {"step": self._player.position() + 1})


@mutant
def ignores_undo_of_poison_rows(patch: Patch) -> None:
    def half(self: Context) -> None:
        self.undo.clear()
        self.emitted.clear()
        self.pending_sides.clear()

    patch.setattr(Context, "roll_back", half)


@mutant
def keeps_what_a_poison_row_emitted(patch: Patch) -> None:
    def half(self: Context) -> None:
        for step in reversed(self.undo):
            step()
        self.undo.clear()
        self.pending_sides.clear()

    patch.setattr(Context, "roll_back", half)


@mutant
def drops_a_batch_with_a_poison_row(patch: Patch) -> None:
    patch.setattr(_Step, "_one_by_one", lambda self, batch, error: batch.take([]))


@mutant
def fires_no_timers_at_the_end(patch: Patch) -> None:
    tick = streamml.local.engine._tick
    patch.setattr(streamml.local.engine, "_tick", lambda watermark: tick(MIN_TIME))


@mutant
def fires_timers_of_one_step_in_any_order(patch: Patch) -> None:
    pop = TimerQueue.pop

    def last_first(self: TimerQueue, upto: int) -> Any:
        due = []
        while self.next_time <= upto:
            due += pop(self, upto)
        return due[::-1]

    patch.setattr(TimerQueue, "pop", last_first)


@mutant
def takes_all_events_for_those_of_one_source(patch: Patch) -> None:
    def change(batch: Batch) -> None:
        batch.tags = None

    before_process(patch, change)


def failures() -> Iterator[str]:
    """Run the suite (all cases, cut or not), and yield the names of the cases that fail."""
    with LocalDriver() as engine:
        for case in REPRODUCIBLE:
            steps = list(case.script)
            runs = [(steps, RunOptions(batch_size=size)) for size in (1, 1000)]
            for cut in range(1, len(steps)):
                killed = [*steps[:cut], checkpoint(), *steps[cut : cut + 1], crash(), *steps[cut + 1 :]]
                runs.append((killed, RunOptions(batch_size=2, checkpoint_every=0)))
                runs.append(([*steps[:cut], crash(), *steps[cut:]], RunOptions(batch_size=2, checkpoint_every=1)))
            for script, options in runs:
                try:
                    found = compare(engine.run(dataclasses.replace(case, script=script), options), case.expected)
                except Exception as exc:
                    found = [repr(exc)]
                if found:
                    yield case.name
                    break


def test_no_case_fails_on_the_engine_as_it_is() -> None:
    assert next(failures(), None) is None


@pytest.mark.parametrize("broken", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_engine_fails_a_case(monkeypatch: Patch, broken: Callable[[Patch], None]) -> None:
    broken(monkeypatch)
    assert next(failures(), None) is not None, f"no case fails on an engine that {broken.__name__.replace('_', ' ')}"
