"""The Flink host of a stage, without PyFlink in it: one stage runtime for each key group."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from streamml.connectors.positions import ContentPositions
from streamml.contract import Opening
from streamml.flink.envelope import Envelopes
from streamml.flink.metrics import StageMeter
from streamml.flink.outputs import Sides, StageOutputs
from streamml.flink.store import MEMORY, FlinkMaps, FlinkStore
from streamml.flink.watermark import before_each
from streamml.flink.wire import split, split_key
from streamml.ingest import Ingest
from streamml.keying import Keying
from streamml.pipeline import RUNTIME_SIDES, SourceSpec, StageSpec
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.runtime import Output, StageRuntime
from streamml.state.descriptors import NEVER
from streamml.state.memory import MemoryStore
from streamml.watermarks import WatermarkTracker

__all__ = ["Group", "HostPlan", "StageHost"]

_PARTITION = "stream"
_LEAST_CACHE = 1 << 20


@dataclass(frozen=True)
class HostPlan:
    """What a host has to know of the pipeline.

    Attributes:
        pipeline: name of the pipeline.
        stage: the stage that it hosts; a stage without operators only decodes and assigns keys.
        sources: the pipeline's sources.
        tag: the source whose raw records come in; None when rows come from a stage before.
        timed: records of the last stage carry their event time; a Kafka sink would write it as the record's
        timestamp, and
            with old ones the brokers' retention drops records that were just written.
        ordered: all records come from one subtask, in order, so the watermark before each of them is that of the
            stage. With more of them a record is judged by the watermark of all, which may be a moment older.
        carried: they come from such a stage without a key, which may be ahead of the watermark that goes with its rows.
        scripted: what comes in was pickled by the test kit: (tag, wall clock, position, record) for all sources.
        typed: the main output of the last stage stays rows, for the test kit, where it would be JSON.
        keyed: raw records come with their record's key, see `wire.split_key`.
        following: the stage that comes next; None for the last one.
        selected: fields of the main output, None for all.
        models: folders that are searched for model bundles.
        groups: number of key groups.
        cache_bytes: bound of the state caches of all groups together.
    """

    pipeline: str
    stage: StageSpec
    sources: tuple[SourceSpec, ...]
    tag: str | None
    following: StageSpec | None = None
    selected: tuple[str, ...] | None = None
    models: tuple[str, ...] = ()
    groups: int = 128
    cache_bytes: int = 256 << 20
    timed: bool = True
    ordered: bool = False
    carried: bool = False
    scripted: bool = False
    typed: bool = False
    keyed: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the stage's side outputs."""
        return tuple(dict.fromkeys((*RUNTIME_SIDES, *(side for op in self.stage.operators for side in op.sides))))


@dataclass(slots=True)
class Group:
    """One key group at work.

    Attributes:
        runtime: the operators on this group's state.
        store: the state, None for a stage without a key.
        memory: what was stored of the runtime's memory.
    """

    runtime: StageRuntime
    store: FlinkStore | None = None
    memory: bytes | None = None

    @property
    def next_event_time(self) -> int:
        """When the next event-time timer is due."""
        return min((s.timers.next_time for s in self.runtime.steps if s.timers is not None), default=NEVER)


class StageHost:
    """Runs one stage for all key groups of one Flink subtask."""

    def __init__(self, plan: HostPlan) -> None:
        self.plan = plan
        schemas = [spec.schema for spec in plan.sources]
        tracker = WatermarkTracker()
        tagged = len(plan.sources) > 1
        self._ingest = {
            spec.tag: Ingest(spec, plan.pipeline, tracker, tagged=tagged, keyed=plan.keyed)
            for spec in plan.sources
            if plan.scripted or spec.tag == plan.tag
        }
        self._keying = Keying(plan.stage) if plan.stage.selector is not None and self._ingest else None
        self._envelopes = Envelopes(schemas)
        following = Keying(plan.following) if plan.following is not None else None
        self._outputs = StageOutputs(schemas, following, plan.selected, plan.sides, typed=plan.typed, timed=plan.timed)
        self._operators = plan.stage.operators
        self._template: StageRuntime | None = None
        self._meter: StageMeter | None = None
        ttls = [
            ttl
            for op in self._operators
            for state in op.bound_states().values()
            if (ttl := state.millis(op)) is not None
        ]
        self._sweep_every = max(min(ttls) // 2, 60_000) if ttls else 0

    def open(self, meter: StageMeter | None = None) -> None:
        """Open the operators, once for all groups.

        Args:
            meter: counts what the stage does; its frames are yielded with the outputs. None for no figures.
        """
        self._meter = meter
        metrics = meter.metrics if meter is not None else None
        opening = Opening(self.plan.pipeline, models=self.plan.models, metrics=metrics)
        self._template = StageRuntime(self._operators, MemoryStore(), groups=1, opening=opening)

    def close(self) -> None:
        """Close the operators."""
        if self._template is not None:
            self._template.close()
            self._template = None

    def whole(self) -> Group:
        """Return the one group of a stage without a key."""
        assert self._template is not None
        return Group(self._template)

    def group(self, maps: FlinkMaps) -> Group:
        """Return the group that is Flink's current key, with its stored state."""
        store = FlinkStore(maps, sweep_every=self._sweep_every)
        memory = store.get_many([MEMORY])[0]
        runtime = StageRuntime(
            self._operators,
            store,
            groups=1,  # a group's rows need no group in their keys: Flink keeps them apart
            memory=msgspec.json.decode(memory) if memory is not None else None,
            cache_bytes=max(self.plan.cache_bytes // self.plan.groups, _LEAST_CACHE),
            like=self._template,
        )
        return Group(runtime, store, memory)

    def batch(self, group: Group, payload: bytes, count: int, watermark: int, now: int) -> Iterator[bytes]:
        """Handle a batch; yields joined records, see `wire.join`."""
        if self._meter is not None:
            self._meter.start()
            self._meter.batch(count)
        payloads, before = split(payload, count)
        # A restored job may see records before it sees the watermark of the checkpoint.
        watermark = max(watermark, group.runtime.watermark)
        marks = before_each(before, watermark) if self.plan.ordered else [watermark] * count
        for batch, bad in self._decoded(payloads, marks, now):
            if self._keying is not None:
                batch, unkeyed = self._keying.assign(batch)
                bad += unkeyed
            yield from self._finish(group, group.runtime.process(batch, now), now, bad)
        yield from self._figures(group, now)

    def _decoded(
        self, payloads: list[bytes], marks: list[int], now: int
    ) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
        if not self._ingest:
            yield self._envelopes.decode(payloads, marks, carried=self.plan.carried), []
        elif not self.plan.scripted:
            positions, keys = ContentPositions(payloads), None
            if self.plan.keyed:
                keys, payloads = map(list, zip(*map(split_key, payloads), strict=True))
            chunk = Chunk(payloads, [(_PARTITION, len(payloads))], positions, keys)
            yield self._ingest[self.plan.tag or ""].batch(chunk, now, marks)
        else:
            records = zip(map(pickle.loads, payloads), marks, strict=True)
            for (tag, clock), run in groupby(records, key=lambda pair: (pair[0][0], pair[0][1])):
                rows = list(run)
                chunk = Chunk([row[3] for row, _ in rows], [("0", len(rows))], [row[2] for row, _ in rows])
                yield self._ingest[tag].batch(chunk, clock, [mark for _, mark in rows])

    def advance(self, group: Group, watermark: int, now: int) -> Iterator[bytes]:
        """Fire the event-time timers up to a watermark."""
        if self._meter is not None:
            self._meter.start()
        tick = Batch([], times=[], ids=[], watermarks=[], watermark=watermark)
        yield from self._finish(group, group.runtime.process(tick, now), now, [])
        yield from self._figures(group, now)

    def tick(self, group: Group, now: int) -> Iterator[bytes]:
        """Fire the processing-time timers that are due."""
        if self._meter is not None:
            self._meter.start()
        output = group.runtime.tick(now)
        if output is not None:
            yield from self._finish(group, output, now, [])
        yield from self._figures(group, now)

    def _figures(self, group: Group, now: int) -> Iterator[bytes]:
        if self._meter is not None and (frame := self._meter.finish(group.runtime.watermark, now)) is not None:
            yield frame

    def _finish(self, group: Group, output: Output, now: int, bad: list[dict[str, Any]]) -> Iterator[bytes]:
        if group.store is not None:
            group.runtime.flush(now)
            memory = msgspec.json.encode(group.runtime.snapshot())
            if memory != group.memory:
                group.store.write({MEMORY: memory})
                group.memory = memory
        sides: Sides = output.sides
        if bad:
            sides["rejected"] = bad + sides.get("rejected", [])
        unwritable = -len(sides.get("rejected", ()))
        main = self._outputs.main(output.main, sides)
        if self._meter is not None:
            unwritable += len(sides.get("rejected", ()))
            self._meter.outputs(len(output.main) - unwritable, sides)
        if main is not None:
            yield main
        for name, records in sides.items():
            if records:
                yield self._outputs.side(name, records)
