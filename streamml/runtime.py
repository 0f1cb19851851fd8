"""The stage runtime: a fused chain of operators over micro-batches. Written once; every engine hosts it.

An engine gives it batches with a watermark for each row, a store, and a clock; it gives back the main output and the
side outputs. What comes out for a key depends only on the rows and their watermarks, never on where the stream was
cut into micro-batches: timers fire between the two rows between which the watermark passed them.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamml.contract import Context, Opening, Operator
from streamml.errors import CheckpointError, StateError
from streamml.records import Batch, Record, as_dict
from streamml.state.descriptors import NEVER
from streamml.state.layout import Slot
from streamml.state.store import Store
from streamml.state.table import KEY_GROUPS, Entry, StateTable
from streamml.state.timers import TimerQueue
from streamml.times import MAX_TIME, MIN_TIME

__all__ = ["Output", "StageRuntime"]

Sides = dict[str, list[dict[str, Any]]]


@dataclass(slots=True)
class Output:
    """What a stage made of a micro-batch."""

    main: Batch
    sides: Sides = field(default_factory=dict)


class _Rows:
    """Rows that an operator emits, in order."""

    __slots__ = ("batches", "entries", "records", "watermarks")

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.records: list[Record] = []
        self.watermarks: list[int] = []
        self.entries: list[Entry] = []

    def add(self, records: list[Record], watermark: int, entry: Entry | None) -> None:
        self.records += records
        self.watermarks += [watermark] * len(records)
        if entry is not None:
            self.entries += [entry] * len(records)

    def add_batch(self, batch: Batch, watermark: int) -> None:
        if len(batch):
            self._seal(watermark)
            self.batches.append(batch)

    def _seal(self, watermark: int) -> None:
        if self.records:
            self.batches.append(Batch.of(self.records, self.watermarks, watermark, self.entries or None))
            self.records, self.watermarks, self.entries = [], [], []

    def batch(self, watermark: int) -> Batch:
        self._seal(watermark)
        joined = Batch.concat(self.batches)
        if joined is None:
            return Batch([], times=[], ids=[], watermarks=[], watermark=watermark)
        joined.watermark = watermark
        return joined


class _Step:
    """One operator of the chain, with its timers."""

    def __init__(
        self,
        operator: Operator,
        stage: StageRuntime,
        number: int,
        slots: list[int],
        handles_ttl: list[int | None],
        opened: Operator | None = None,
    ) -> None:
        self.stage = stage
        kind = type(operator)
        self.vectorised = kind.defines("on_batch")
        self.has_timers = kind.defines("on_timer")
        self.slots = slots
        self.timers: TimerQueue | None = None
        self.processing_timers: TimerQueue | None = None
        if self.has_timers:
            self.timers, self.processing_timers = (
                TimerQueue(stage.store, stage=stage.number, operator=number, clock=clock, groups=stage.groups)
                for clock in (0, 1)
            )
        self.ctx = Context(operator, self.timers, self.processing_timers, reject=self._reject, table=stage.table)
        states = operator.bound_states()
        self.keeps_stage_state = any(state.scope == "stage" for state in states.values())
        self.running = (opened or operator).running(
            {
                name: state.handle(slot, self.ctx, ttl)
                for (name, state), slot, ttl in zip(states.items(), slots, handles_ttl, strict=True)
            }
        )
        self.operator = operator

    def run(self, batch: Batch, now: int) -> Batch:
        """Handle a batch and every timer up to its watermark."""
        self.ctx.now = now
        if self.vectorised and self.timers is None:
            result = self._on_batch(batch) if len(batch) else batch
            result.watermark = batch.watermark
            return result
        out = _Rows()
        if self.vectorised:
            self._run_segments(batch, out)
        else:
            self._run_loop(batch, 0, len(batch), out)
        if self.timers is not None:
            self._fire(self.timers, batch.watermark, out)
        return out.batch(batch.watermark)

    def tick(self, watermark: int, now: int) -> Batch:
        """Fire processing-time timers that are due."""
        out = _Rows()
        self.ctx.now = now
        if self.processing_timers is not None:
            self._fire(self.processing_timers, now, out, watermark)
        return out.batch(watermark)

    def _run_loop(self, batch: Batch, start: int, stop: int, out: _Rows) -> None:
        ctx, timers, on_event = self.ctx, self.timers, self.running.on_event
        watermarks, entries = batch.watermarks, batch.entries
        entry: Entry | None = None
        for row in range(start, stop):
            watermark = watermarks[row]
            if timers is not None and timers.next_time <= watermark:
                self._fire(timers, watermark, out)
            event = batch.record(row)
            if entries is not None:
                entry = entries[row]
            ctx.at(entry, event, event.key, event.timestamp, watermark)
            try:
                on_event(event, ctx)
            except (StateError, CheckpointError):
                raise
            except Exception as exc:
                ctx.roll_back()
                self._reject(event, exc, self.operator.name)
            self._settle(out, watermark, entry)

    def _settle(self, out: _Rows, watermark: int, entry: Entry | None) -> None:
        ctx = self.ctx
        if ctx.undo:
            ctx.undo.clear()
        if ctx.emitted:
            out.add(ctx.emitted, watermark, entry)
            ctx.emitted = []
        if ctx.pending_sides:
            self.stage.collect(ctx.pending_sides)
            ctx.pending_sides = []

    def _run_segments(self, batch: Batch, out: _Rows) -> None:
        """Hand a batch to `on_batch` in runs within which no timer can come due."""
        timers, watermarks, rows = self.timers, batch.watermarks, len(batch)
        assert timers is not None
        start = 0
        while start < rows:
            watermark = watermarks[start]
            if timers.next_time <= watermark:
                self._fire(timers, watermark, out)
            bound = min(timers.next_time, self.operator.earliest_timer(watermark, min(batch.times[start:])))
            stop = max(bisect_left(watermarks, bound, start, rows), start + 1)
            out.add_batch(self._on_batch(batch.slice(start, stop)), watermark)
            start = stop

    def _on_batch(self, batch: Batch) -> Batch:
        ctx = self.ctx
        ctx.at(None, None, None, batch.times[-1], batch.watermarks[-1])
        saved = self._save(batch)
        try:
            result = self.running.on_batch(batch, ctx)
        except (StateError, CheckpointError):
            raise
        except Exception as exc:
            for cells, slot, cell in saved:
                cells[slot] = cell
            ctx.roll_back()
            return self._one_by_one(batch, exc)
        if ctx.pending_sides:
            self.stage.collect(ctx.pending_sides)
            ctx.pending_sides = []
        ctx.undo.clear()
        return result

    def _one_by_one(self, batch: Batch, error: Exception) -> Batch:
        """Handle the rows of a batch whose batch form raised, so that only the poison rows are rejected."""
        out = _Rows()
        if type(self.operator).defines("on_event"):
            self._run_loop(batch, 0, len(batch), out)
        elif len(batch) == 1:
            self._reject(batch.record(0), error, self.operator.name)
            self._settle(out, batch.watermarks[0], None)
        else:
            for row in range(len(batch)):
                out.add_batch(self._on_batch(batch.slice(row, row + 1)), batch.watermarks[row])
        return out.batch(batch.watermark)

    def _save(self, batch: Batch) -> list[tuple[list[Any], int, Any]]:
        """Copy the operator's cells, so that a batch form that raises can be taken back.

        Not for operators that promise not to.
        """
        if not self.slots or self.running.rejects_rows or batch.entries is None:
            return []
        distinct = {id(entry): entry for entry in batch.entries}
        if self.keeps_stage_state:
            distinct[id(self.ctx.stage_entry)] = self.ctx.stage_entry
        return [(e.cells, slot, copy.deepcopy(e.cells[slot])) for e in distinct.values() for slot in self.slots]

    def _fire(self, timers: TimerQueue, upto: int, out: _Rows, watermark: int | None = None) -> None:
        ctx, on_timer = self.ctx, self.running.on_timer
        while timers.next_time <= upto:
            due = timers.pop(upto)
            entries = self.stage.table.entries([timer.key for timer in due])
            for timer, entry in zip(due, entries, strict=True):
                seen = timer.time - 1 if watermark is None else watermark
                ctx.at(entry, None, timer.key, timer.time, max(seen, ctx.watermark) if watermark is None else seen)
                try:
                    on_timer(timer, ctx)
                except (StateError, CheckpointError):
                    raise
                except Exception as exc:
                    ctx.roll_back()
                    stub = Record(None, key=timer.key, timestamp=timer.time, id=f"timer/{timer.name}@{timer.time}")
                    self._reject(stub, exc, self.operator.name)
                self._settle(out, ctx.watermark, entry)

    def _reject(self, event: Record, error: BaseException, step: str) -> None:
        self.ctx.pending_sides.append(("rejected", rejected(event, error, step)))


def rejected(event: Record, error: BaseException, step: str) -> dict[str, Any]:
    """Return the `rejected` record of an event that made a step raise."""
    return {
        "id": event.id,
        "key": event.key,
        "timestamp": event.timestamp,
        "operator": step,
        "error": type(error).__name__,
        "reason": str(error),
        "event": as_dict(event),
    }


class StageRuntime:
    """A chain of operators under one key (or none), with its state, timers and side outputs.

    Args:
        operators: the chain in order.
        store: where the state is kept; the stage owns the rows of its number.
        number: number of the stage in the pipeline.
        memory: what `snapshot` returned with the restored checkpoint, None for a new job.
        opening: what operators get when they open.
        cache_bytes: bound of the state cache.
        like: a stage of the same operators in this process, whose opened operators (models and the like) this one
            shares: for engines that keep the state of each key group apart. The other one opens and closes them.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        store: Store,
        *,
        number: int = 0,
        groups: int = KEY_GROUPS,
        memory: dict[str, Any] | None = None,
        opening: Opening | None = None,
        cache_bytes: int = 512 << 20,
        like: StageRuntime | None = None,
    ) -> None:
        self.store = store
        self.number = number
        self.groups = groups
        memory = memory or {}
        self.sides: Sides = {}
        slots: list[Slot] = []
        plan: list[tuple[Operator, list[int], list[int | None]]] = []
        for operator in operators:
            states = operator.bound_states()
            ttls = [state.millis(operator) for state in states.values()]
            plan.append((operator, list(range(len(slots), len(slots) + len(states))), ttls))
            slots += [
                Slot(f"{operator.name}.{name}", state, ttl)
                for (name, state), ttl in zip(states.items(), ttls, strict=True)
            ]
        self.table = StateTable(
            store, slots, stage=number, groups=groups, memory=memory.get("state"), cache_bytes=cache_bytes
        )
        self._timer_ids: dict[str, int] = dict(memory.get("timers", {}))
        self.steps: list[_Step] = []
        for place, (operator, numbers, ttls) in enumerate(plan):
            timer_id = self._timer_ids.setdefault(operator.name, len(self._timer_ids) + 1)
            opened = like.steps[place].running if like is not None else None
            self.steps.append(_Step(operator, self, timer_id, numbers, ttls, opened))
        self.watermark: int = memory.get("watermark", MIN_TIME)
        self._stateful = bool(slots) or any(step.has_timers for step in self.steps)
        for step in self.steps:
            step.ctx.watermark = self.watermark
            if like is None:
                step.running.open(opening or Opening())
        self._owner = like is None

    def collect(self, records: list[tuple[str, dict[str, Any]]]) -> None:
        """Take side records in order; called by the steps."""
        for name, record in records:
            self.sides.setdefault(name, []).append(record)

    def process(self, batch: Batch, now: int) -> Output:
        """Run a micro-batch (it may have no rows) through the chain and fire the timers that its watermark reaches."""
        if batch.watermark < MAX_TIME:  # the end of the input fires timers, but expires no state: more may be appended
            self.watermark = max(self.watermark, batch.watermark)
        if self._stateful and len(batch):
            batch.entries = self.table.entries(batch.keys)
        return self._finish(self._chain(batch, 0, now), now)

    def tick(self, now: int) -> Output | None:
        """Fire processing-time timers that are due; None when there are none."""
        if all(step.processing_timers is None or step.processing_timers.next_time > now for step in self.steps):
            return None
        parts = [self._chain(step.tick(self.watermark, now), i + 1, now) for i, step in enumerate(self.steps)]
        merged = Batch.concat(parts) or parts[-1]
        return self._finish(merged, now)

    def _chain(self, batch: Batch, start: int, now: int) -> Batch:
        for step in self.steps[start:]:
            batch = step.run(batch, now)
        return batch

    def _finish(self, batch: Batch, now: int) -> Output:
        batch.entries = None
        sides, self.sides = self.sides, {}
        if self._stateful:
            self.table.trim(self.watermark, now)
        return Output(batch, sides)

    @property
    def next_processing_time(self) -> int:
        """When the next processing-time timer is due."""
        return min(
            (s.processing_timers.next_time for s in self.steps if s.processing_timers is not None), default=NEVER
        )

    def flush(self, now: int) -> int:
        """Write all changed state and timers to the store; returns how many state rows were written."""
        for step in self.steps:
            for queue in (step.timers, step.processing_timers):
                if queue is not None:
                    queue.flush()
        return self.table.flush(self.watermark, now) if self._stateful else 0

    def snapshot(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint beside the store, plain JSON; call after `flush`."""
        return {"state": self.table.snapshot(), "timers": self._timer_ids, "watermark": self.watermark}

    def close(self) -> None:
        """Close the operators, all of them even if one fails; raises the first failure."""
        failures: list[Exception] = []
        for step in self.steps if self._owner else ():
            try:
                step.running.close()
            except Exception as exc:
                failures.append(exc)
        if failures:
            raise failures[0]
