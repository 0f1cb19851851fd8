"""The DoFns around a `StageHost`: state, timers and outputs are Beam's."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.windowed_value import WindowedValue

from streamml.beam.elements import to_payload
from streamml.beam.group import TIMERS, Cells, in_time
from streamml.beam.host import HostPlan, StageHost, borrow, give_back
from streamml.beam.outputs import Outputs
from streamml.beam.watermark import from_beam
from streamml.connectors.positions import ContentPositions
from streamml.ingest import Ingest
from streamml.keying import Keying
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.times import MAX_TIME, MIN_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["BoundedStageFn", "FrontFn", "HostedFn", "KeyedStageFn"]

_PARTITION = "stream"


def _now() -> int:
    return int(time.time() * 1000)


class HostedFn(beam.DoFn):
    """Base of DoFns that share the host of their process."""

    def __init__(self, plan: HostPlan) -> None:
        self._plan = plan.pickled()
        self._host: StageHost

    def setup(self) -> None:
        self._host = borrow(self._plan)
        plan = self._host.plan
        self._outputs = Outputs(
            self._host.envelopes,
            Keying(plan.following) if plan.following is not None else None,
            groups=plan.groups,
            form="rows" if plan.settings.scripted else plan.settings.form,
            selected=plan.selected,
            marks=plan.marks,
        )

    def teardown(self) -> None:
        give_back(self._host)


class FrontFn(HostedFn):
    """Decodes records, runs the operators before the first key, and hands on the rows of a bundle by key group."""

    def setup(self) -> None:
        super().setup()
        plan = self._host.plan
        tracker, tagged = WatermarkTracker(), len(plan.sources) > 1
        self._ingest = {
            spec.tag: Ingest(spec, plan.pipeline, tracker, tagged=tagged)
            for spec in plan.sources
            if plan.tag in (None, spec.tag)
        }
        self._buffer: list[Any] = []
        self._earliest = MAX_TIME

    def start_bundle(self) -> None:
        self._buffer, self._earliest = [], None  # type: ignore[assignment]

    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        self._buffer.append(element)
        if self._earliest is None or timestamp < self._earliest:
            self._earliest = timestamp
        if len(self._buffer) >= self._host.plan.settings.batch_size:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for made in self._flush():
            tag, value = (made.tag, made.value) if isinstance(made, TaggedOutput) else (None, made)
            windowed = WindowedValue(value.value, value.timestamp, [GlobalWindow()])
            yield windowed if tag is None else TaggedOutput(tag, windowed)

    def _flush(self) -> Iterator[Any]:
        payloads, earliest, now = self._buffer, self._earliest, _now()
        self._buffer, self._earliest = [], None  # type: ignore[assignment]
        for batch, bad in self._decoded(payloads, now):
            with self._host.lock:
                output = self._host.template.process(batch, now)
            for made in self._outputs.of(output, bad):
                yield (
                    made
                    if self._host.plan.following is not None and not isinstance(made, TaggedOutput)
                    else _stamped(made, earliest)
                )

    def _decoded(self, payloads: list[Any], now: int) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
        if not payloads:
            return
        if not self._host.plan.settings.scripted:
            records = list(map(to_payload, payloads))
            chunk = Chunk(records, [(_PARTITION, len(records))], ContentPositions(records))
            (ingest,) = self._ingest.values()
            yield ingest.batch(chunk, now, [MIN_TIME] * len(records))
            return
        rows = [pickle.loads(payload) for payload in payloads]
        for (tag, clock), run in groupby(rows, key=lambda row: (row[0], row[1])):
            mine = list(run)
            chunk = Chunk([row[3] for row in mine], [("0", len(mine))], [row[2] for row in mine])
            yield self._ingest[tag].batch(chunk, clock, [MIN_TIME] * len(mine))


def _stamped(made: Any, earliest: Any) -> Any:
    """Give what leaves the front the Beam time of its records, which keeps the watermark behind it."""
    if isinstance(made, TaggedOutput):
        value = made.value.value if isinstance(made.value, TimestampedValue) else made.value
        return TaggedOutput(made.tag, TimestampedValue(value, earliest))
    return TimestampedValue(made.value, earliest)


HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
ROWS = BagStateSpec("rows", BytesCoder())
ENTRIES = BagStateSpec("entries", BytesCoder())
WAITING = BagStateSpec("waiting", BytesCoder())
DUE = TimerSpec("due", TimeDomain.WATERMARK)
HOLD = TimerSpec("hold", TimeDomain.WATERMARK)
LOOK = TimerSpec("look", TimeDomain.WATERMARK)
WALL = TimerSpec("wall", TimeDomain.REAL_TIME)

_HEAD, _ROWS, _ENTRIES, _WAITING = map(beam.DoFn.StateParam, (HEAD, ROWS, ENTRIES, WAITING))
_DUE, _HOLD, _LOOK, _WALL = map(beam.DoFn.TimerParam, (DUE, HOLD, LOOK, WALL))


def _when(name: str, spec: TimerSpec) -> Any:
    """Return the method that Beam calls when a timer fires."""

    def fired(
        self: KeyedStageFn,
        key: Any = beam.DoFn.KeyParam,
        at: Any = beam.DoFn.TimestampParam,
        head: Any = _HEAD,
        rows: Any = _ROWS,
        entries: Any = _ENTRIES,
        waiting: Any = _WAITING,
        due: Any = _DUE,
        hold: Any = _HOLD,
        look: Any = _LOOK,
        wall: Any = _WALL,
    ) -> Iterator[Any]:
        cells = _cells(head, (rows, entries, waiting), (due, hold, look, wall))
        now = max(_now(), at.micros // 1000) if spec is WALL else _now()
        yield from self._outputs.of(self._host.fired(key, name, from_beam(at), cells, now))

    fired.__name__ = f"on_{name}"  # Beam looks it up by its name
    return on_timer(spec)(fired)


class KeyedStageFn(HostedFn):
    """Hosts a keyed stage of an unbounded stream; Beam's key is the number of a key group."""

    def process(
        self,
        element: tuple[int, bytes],
        head: Any = _HEAD,
        rows: Any = _ROWS,
        entries: Any = _ENTRIES,
        waiting: Any = _WAITING,
        due: Any = _DUE,
        hold: Any = _HOLD,
        look: Any = _LOOK,
        wall: Any = _WALL,
    ) -> Iterator[Any]:
        cells = _cells(head, (rows, entries, waiting), (due, hold, look, wall))
        yield from self._outputs.of(self._host.batch(*element, cells, _now()))

    on_due = _when("due", DUE)
    on_hold = _when("hold", HOLD)
    on_look = _when("look", LOOK)
    on_wall = _when("wall", WALL)


def _cells(head: Any, logs: tuple[Any, Any, Any], timers: tuple[Any, ...]) -> Cells:
    return Cells(head, logs, dict(zip(TIMERS, timers, strict=True)))


class BoundedStageFn(HostedFn):
    """Hosts a keyed stage of a bounded input: gets all rows of a key group at once, and handles them by event time."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        decode, now = self._host.envelopes.decode, _now()
        found = Batch.concat(map(decode, element[1]))
        if found is None:
            return
        times, ids = found.times, found.ids
        order = sorted(range(len(found)), key=lambda row: (times[row], ids[row]))
        batch = in_time(found.take(order), MIN_TIME, MIN_TIME)
        with self._host.lock:
            runtime = self._host.fresh()
            size = self._host.plan.settings.batch_size
            outputs = []
            for start in range(0, len(batch), size):
                part = batch.slice(start, start + size)
                part.watermark = part.watermarks[-1]
                outputs.append(runtime.process(part, now))
            end = Batch([], times=[], ids=[], watermarks=[], watermark=MAX_TIME)
            outputs.append(runtime.process(end, now))
        for output in outputs:
            yield from self._outputs.of(output)
