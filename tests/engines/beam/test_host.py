"""The host without a runner: several workers, lost bundles, and state that Beam alone keeps between them."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgspec
import pytest

import streamml as sml
from streamml.errors import StateError
from streamml.operators import Dedupe, Session, Window, count, total, tumbling
from streamml.pipeline import Pipeline
from streamml.records import Batch
from streamml.testing import advance, event, run
from streamml.testing.probes import Remember, WallAlarm
from streamml.times import MAX_TIME, MIN_TIME

pytest.importorskip("apache_beam")

from streamml.beam.group import TIMERS, Cells
from streamml.beam.host import HostPlan, StageHost
from streamml.beam.settings import StageSettings
from streamml.beam.store import GroupStore, Log
from streamml.beam.watermark import LAST, from_beam, next_look, to_beam


class Bag(list[bytes]):
    """A bag cell."""

    add = list.append
    read = list.copy


class Value:
    """A read-modify-write cell."""

    kept: bytes | None = None

    def read(self) -> bytes | None:
        return self.kept

    def write(self, value: bytes) -> None:
        self.kept = value


class Timer:
    """A timer: when it is due, None if it is not set."""

    at: int | None = None

    def set(self, time: Any) -> None:
        self.at = time.micros // 1000

    def clear(self) -> None:
        self.at = None


def beam_cells() -> Cells:
    return Cells(Value(), (Bag(), Bag(), Bag()), {name: Timer() for name in TIMERS})


class Stored(sml.Event, id="id", key="key", time="t"):
    id: str
    key: str
    t: int
    n: int


OPERATORS = [
    Dedupe(ttl="20s"),
    Remember(ttl="30s"),
    Session(gap="4s", fields={"visits": count()}),
    Window(tumbling("5s"), {"sum": total("n")}),
]


class Unpack(sml.Operator):
    """The value as a dict, which `Remember` reads."""

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str] | None:
        return None

    def on_batch(self, batch: Batch, ctx: Any) -> Batch:
        made = batch.with_fields({})
        made.values = [{"n": value.n} for value in batch.values]
        return made


def stage(points: tuple[int, ...] = ()) -> HostPlan:
    pipeline = Pipeline("p", schema=Stored).key_by("key").then(Unpack())
    for operator in OPERATORS:
        pipeline = pipeline.then(operator)
    settings = StageSettings(order="arrival", points=points)
    return HostPlan("token", "p", pipeline.stages[1], pipeline.sources, settings, groups=1)


def fire(host: StageHost, cells: Cells, watermark: int) -> list[Any]:
    """What a runner does when the watermark moves: every timer that is due, in order of time."""
    outputs = []
    while True:
        due = [
            (t.at, name)
            for name, t in cells.timers.items()
            if t.at is not None and name != "wall" and t.at <= watermark
        ]
        if not due:
            return outputs
        at, name = min(due)
        cells.timers[name].at = None
        outputs.append(host.fired(0, name, from_beam(to_beam(at)), cells, 0))


@pytest.mark.parametrize("seed", range(8))
def test_workers_that_take_turns_and_bundles_that_are_done_again_change_nothing(seed: int) -> None:
    """Three workers share a key group; any of them may be the next, be new, or be cut off before it commits."""
    draw = random.Random(seed)
    steps: list[Any] = []
    watermark = 0
    for number in range(60):
        if draw.random() < 0.25:
            watermark += draw.randrange(1, 4_000)
            steps.append(advance(watermark))
        else:
            time = max(0, watermark + draw.randrange(-2_000, 6_000))
            steps.append(event(draw.choice("abc"), t=time, id=f"e{draw.randrange(number + 1)}", n=draw.randrange(5)))
    pipeline = Pipeline("p", schema=Stored, max_future=2**61).key_by("key").then(Unpack())
    for operator in OPERATORS:
        pipeline = pipeline.then(operator)
    wanted = run(pipeline, steps)

    plan = stage(tuple(sorted({step.to for step in steps if hasattr(step, "to")})))
    hosts = [StageHost(plan) for _ in range(3)]
    cells = beam_cells()
    main: list[Any] = []
    sides: dict[str, list[Any]] = {}

    def bundle(work: Any) -> None:
        """Do a bundle, sometimes first on a worker that is cut off after it and before Beam commits."""
        nonlocal cells
        if draw.random() < 0.3:
            work(draw.choice(hosts), copy.deepcopy(cells))
        if draw.random() < 0.1:
            hosts[draw.randrange(3)] = StageHost(plan)
        for output in work(draw.choice(hosts), cells):
            if output is not None:
                main.extend((r.id, r.key, r.timestamp, r.fields) for r in output.main.records())
                for name, records in output.sides.items():
                    sides.setdefault(name, []).extend(records)

    bundle(lambda host, at: [host.batch(0, b"", at, 0)])
    for step in steps:
        if hasattr(step, "to"):
            bundle(lambda host, at, to=step.to: fire(host, at, to))
        else:
            value = Stored(step.id, step.key, step.t, step.fields["n"])
            batch = Batch([value], times=[step.t], ids=[f"p/{step.id}"], watermarks=[0], watermark=0, keys=[step.key])
            payload = hosts[0].envelopes.encode(batch)
            bundle(lambda host, at, payload=payload: [host.batch(0, payload, at, 0)])
    bundle(lambda host, at: fire(host, at, LAST))

    def by_key(rows: Any) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        for row in rows:
            found.setdefault(row[1], []).append(row)
        return found

    assert by_key(main) == by_key((r.id, r.key, r.timestamp, r.fields) for r in wanted.main)
    assert {name: len(records) for name, records in sides.items()} == {
        name: len(records) for name, records in wanted.sides.items() if records
    }
    assert len(main) > 5
    assert sides.get("duplicates")


def test_a_processing_time_timer_is_set_and_fires() -> None:
    pipeline = Pipeline("p", schema=Stored).key_by("key").then(WallAlarm(delay="5s"))
    plan = HostPlan("wall", "p", pipeline.stages[1], pipeline.sources, StageSettings(order="arrival"), groups=1)
    host, cells = StageHost(plan), beam_cells()
    batch = Batch([Stored("a", "k", 7, 1)], times=[7], ids=["p/a"], watermarks=[0], watermark=0, keys=["k"])
    host.batch(0, host.envelopes.encode(batch), cells, 1_000)
    assert cells.timers["wall"].at == 6_000
    output = host.fired(0, "wall", 6_000, cells, 6_000)
    assert output is not None
    assert [record.key for record in output.main.records()] == ["k"]


def test_a_log_says_what_a_dict_says_and_stays_within_a_few_times_its_content() -> None:
    draw = random.Random(1)
    bags, oracle = (Bag(), Bag()), dict[bytes, bytes]()
    sizes = [0, 0]
    for _ in range(400):
        logs = [Log(size) for size in sizes]
        for log, bag in zip(logs, bags, strict=True):
            log.attach(bag)
        store = GroupStore(logs[0], logs[1])
        for _ in range(draw.randrange(4)):
            key = b"\0\0\0" + draw.choice([b"k", b"t", b"m", b"c"]) + bytes([draw.randrange(40)])
            row = None if draw.random() < 0.3 else draw.randbytes(draw.randrange(2_000))
            store.write({key: row})
            oracle.update({key: row}) if row is not None else oracle.pop(key, None)
        assert dict(store.scan(b"", b"\xff" * 8)) == oracle
        for log in logs:
            log.save()
        sizes = [log.size for log in logs]
        assert sizes == [sum(map(len, bag)) for bag in bags]
    content = sum(len(key) + len(row) for key, row in oracle.items())
    assert sum(sizes) < 2 * (64 << 10) + 4 * content
    assert any(len(bag) < 100 for bag in bags)


def test_state_of_another_version_is_refused_and_not_overwritten() -> None:
    cells = beam_cells()
    cells.head.write(msgspec.msgpack.encode({"known": "yesterday"}))
    before = cells.head.read()
    with pytest.raises(StateError, match="another version"):
        StageHost(stage()).batch(0, b"", cells, 0)
    assert cells.head.read() == before


def test_the_looks_find_a_watermark_to_the_step_and_end_soon() -> None:
    """The watermark is a number that only the timers see, as on a runner."""
    for lag in (0, 1, 999, 5_000, 15_000):
        known, looks = MIN_TIME, 0
        newest = 1_700_000_000_000
        watermark = newest - lag
        while (look := next_look(known, newest, 1_000)) <= watermark:
            known, looks = look, looks + 1
        assert watermark - 1_000 < known <= watermark
        assert looks < 40
        while (look := next_look(known, newest, 1_000)) <= LAST:
            known, looks = (MAX_TIME if look == LAST else look), looks + 1
        assert looks < 80
