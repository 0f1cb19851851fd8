"""Windows against a plain recomputation from lists of events, at every size of batch and across crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.contract import Opening, Operator
from streamml.errors import PlanError
from streamml.operators import Window, count, maximum, rate, session, sliding, total, trailing, tumbling
from streamml.operators.window_state import WindowPlan
from streamml.operators.windows import SessionWindow, SlidingWindow
from streamml.records import Batch, Record
from streamml.runtime import StageRuntime
from streamml.state.memory import MemoryStore
from streamml.times import MAX_TIME, MIN_TIME

FIELDS = {"n": count(), "sum": total("x"), "most": maximum("x"), "pace": rate(per="3ms")}
BAD = float("nan")
END = MAX_TIME


@dataclass(frozen=True)
class Row:
    time: int
    watermark: int
    x: float = 1
    key: str = "k"


class Loop(Window):
    """The same operator without its batch form."""


Loop.on_batch = Operator.on_batch  # type: ignore[method-assign]


def window(*args: Any, kind: type[Window] = Window, **options: Any) -> Window:
    return kind(*args, options.pop("fields", FIELDS), name="w", **options)


def batches(rows: Sequence[Row], cuts: Sequence[int], end: int = END) -> Iterator[Batch]:
    """The rows cut at these places; a batch's watermark is that of the row after it."""
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut <= len(rows))})
    for start, stop in pairwise(edges):
        part = rows[start:stop]
        yield Batch(
            [{"x": row.x} for row in part],
            times=[row.time for row in part],
            ids=[f"e{start + i}" for i in range(len(part))],
            watermarks=[row.watermark for row in part],
            watermark=rows[stop].watermark if stop < len(rows) else end,
            keys=[row.key for row in part],
        )


@dataclass
class Seen:
    """What came out, as plain data, and the stage that made it."""

    stage: StageRuntime
    main: list[tuple[Any, ...]] = field(default_factory=list)
    sides: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        out = self.stage.process(batch, now=0)
        self.main += map(plain, out.main.records())
        for name, records in out.sides.items():
            self.sides.setdefault(name, []).extend(records)

    def stored(self) -> list[tuple[bytes, bytes]]:
        self.stage.flush(0)
        return list(self.stage.store.scan(b"", b"\xff" * 64))

    @property
    def corrections(self) -> list[tuple[Any, ...]]:
        names = ("id", "revision", "replaces", "reason", "merged_into")
        return [tuple(record[name] for name in names) for record in self.sides.get("corrections", [])]


def plain(record: Record) -> tuple[Any, ...]:
    return record.key, record.id, record.timestamp, record.fields


def run(operator: Window, rows: Sequence[Row], cuts: Sequence[int] = (), end: int = END) -> Seen:
    seen = Seen(StageRuntime([operator], MemoryStore()))
    for batch in batches(rows, cuts, end):
        seen.take(batch)
    return seen


def results(seen: Seen) -> list[tuple[Any, ...]]:
    """Last part of the id, number of events, revision, whether it is retracted, whether it is early."""
    return [
        (id.rsplit("/", 1)[1], fields["n"], fields["revision"], fields["retracted"], fields["early"])
        for _, id, _, fields in seen.main
    ]


@dataclass
class Live:
    """The oracle's window: its events, and what was last said of it."""

    start: int
    end: int
    events: list[tuple[int, float]] = field(default_factory=list)
    revision: int = -1
    changed: bool = True
    reason: str = "early"


class Oracle:
    """The definition: every instant in turn, a window is a list of events, sessions are cut anew from a sorted list."""

    def __init__(self, operator: Window) -> None:
        self.window = operator.window
        self.lateness, self.early = operator.allowed_lateness, operator.early
        self.live: dict[str, list[Live]] = {}
        self.main: list[tuple[Any, ...]] = []
        self.corrections: list[tuple[Any, ...]] = []
        self.late: list[str] = []
        self.bad: list[str] = []
        self.clock = -200

    def play(self, rows: Sequence[Row]) -> None:
        for number, row in enumerate(rows):
            self.advance(row.watermark)
            self.event(f"e{number}", row)
        self.advance(400)

    def advance(self, watermark: int) -> None:
        while self.clock < watermark:
            self.clock += 1
            for key in sorted(self.live):
                for live in self.live[key]:
                    tick = self.early is not None and self.clock % self.early == 0 and live.changed
                    if live.end == self.clock or (tick and live.start < self.clock < live.end):
                        self.say(key, live)
                self.live[key] = [live for live in self.live[key] if live.end + self.lateness > self.clock]

    def event(self, id: str, row: Row) -> None:
        spans = [
            (start, start + (self.window.gap if isinstance(self.window, SessionWindow) else self.window.size))
            for start in ([row.time] if isinstance(self.window, SessionWindow) else self.window.starts(row.time))
        ]
        spans = [(start, end) for start, end in spans if end + self.lateness > row.watermark]
        if not spans:
            self.late.append(id)
        elif row.x != row.x:
            self.bad.append(id)
        elif isinstance(self.window, SessionWindow):
            self.session(row)
        else:
            for start, end in spans:
                self.count(row, start, end)

    def count(self, row: Row, start: int, end: int) -> None:
        lives = self.live.setdefault(row.key, [])
        live = next((live for live in lives if live.start == start), None)
        if live is None:
            live = Live(start, end)
            lives.append(live)
            lives.sort(key=lambda live: live.start)
        live.events.append((row.time, row.x))
        live.changed = True
        if end <= row.watermark:
            live.reason = "late event"
            self.say(row.key, live)

    def session(self, row: Row) -> None:
        before = {live.start: live for live in self.live.get(row.key, [])}
        events = sorted([event for live in before.values() for event in live.events] + [(row.time, row.x)])
        gap = self.window.gap
        after: list[Live] = []
        for time, x in events:
            if not after or time >= after[-1].end:
                after.append(Live(time, time))
            after[-1].end = time + gap
            after[-1].events.append((time, x))
        mine = next(live for live in after if live.start <= row.time < live.end)
        for number, live in enumerate(after):
            if live is not mine:
                after[number] = before[live.start]
            elif live.start in before:
                old = before[live.start]
                live.revision = old.revision
                live.reason = "late event" if old.end <= row.watermark else old.reason
        for start, old in before.items():
            if old.revision >= 0 and all(live.start != start for live in after):
                self.retract(row.key, old, mine)
        self.live[row.key] = after
        if mine.end <= row.watermark:
            self.say(row.key, mine)

    def id(self, key: str, live: Live) -> str:
        return f"pipeline/w/{key}/{live.start}" + ("" if isinstance(self.window, SessionWindow) else f"-{live.end}")

    def say(self, key: str, live: Live) -> None:
        live.revision += 1
        until = self.clock if self.clock < live.end else live.end
        span = max(until - live.start, min(3, live.end - live.start))
        xs = [x for _, x in live.events]
        told = {"n": len(xs), "sum": float(sum(xs)), "most": float(max(xs)), "pace": len(xs) * 3 / span}
        self.put(key, live, told, False, self.clock < live.end, live.reason, None)
        live.changed, live.reason = False, "early"

    def retract(self, key: str, live: Live, into: Live) -> None:
        live.revision += 1
        self.put(key, live, dict.fromkeys(FIELDS), True, False, "merged", self.id(key, into))

    def put(
        self, key: str, live: Live, told: dict[str, Any], retracted: bool, early: bool, reason: str, into: str | None
    ) -> None:
        replaces = live.revision - 1 if live.revision else None
        told |= {"window_start": live.start, "window_end": live.end, "revision": live.revision, "replaces": replaces}
        told |= {"retracted": retracted, "early": early}
        self.main.append((key, self.id(key, live), live.end - 1, told))
        if live.revision:
            self.corrections.append((self.id(key, live), live.revision, replaces, reason, into))


WINDOWS = st.sampled_from(
    [tumbling(10), tumbling(12, tile=4), sliding(12, 4), sliding(9, 2), sliding(10, 7), session(4), session(9)]
)
OPERATORS = st.builds(
    dict, w=WINDOWS, allowed_lateness=st.sampled_from([0, 1, 7, 40]), early=st.sampled_from([None, 3, 5])
)
STEPS = st.lists(
    st.tuples(
        st.integers(-12, 12),  # time against the watermark's, or against 0 while there is none
        st.sampled_from([0, 0, 1, 2, 3, 5, 15]),  # how far the watermark moves before the row
        st.sampled_from([0, 1, 2, 5, -3, 2.5, 1, 1, BAD]),
        st.sampled_from("abb"),
    ),
    min_size=3,
    max_size=24,
)
CUTS = st.lists(st.integers(1, 23), max_size=6)


def script(steps: Sequence[tuple[int, int, float, str]], unstarted: int) -> list[Row]:
    rows, watermark = [], 0
    for number, (ahead, move, x, key) in enumerate(steps):
        watermark += move
        rows.append(Row(watermark + ahead, MIN_TIME if number < unstarted else watermark, x, key))
    return rows


def build(options: dict[str, Any], kind: type[Window] = Window) -> Window:
    rest = {name: value for name, value in options.items() if name != "w"}
    return window(options["w"], kind=kind, **rest)


@settings(max_examples=200, deadline=None)
@given(OPERATORS, STEPS, st.integers(0, 4), CUTS)
def test_results_corrections_and_late_events_are_those_of_a_recomputation(options, steps, unstarted, cuts):
    rows = script(steps, unstarted)
    oracle = Oracle(build(options))
    oracle.play(rows)
    seen = run(build(options), rows, cuts)
    assert seen.main == oracle.main
    assert seen.corrections == oracle.corrections
    assert [record["id"] for record in seen.sides.get("late", [])] == oracle.late
    assert [record["id"] for record in seen.sides.get("rejected", [])] == oracle.bad


@settings(max_examples=150, deadline=None)
@given(OPERATORS, STEPS, st.integers(0, 4), CUTS)
def test_batches_of_any_size_give_the_outputs_and_the_state_of_the_loop(options, steps, unstarted, cuts):
    rows = script(steps, unstarted)
    cut = min(cuts, default=0)
    single = run(build(options, Loop), rows, range(len(rows)))
    for kind in (Window, Loop):
        seen = run(build(options, kind), rows, cuts)
        assert (seen.main, str(seen.sides)) == (single.main, str(single.sides))  # as text: NaN is not equal to itself
    if 0 < cut < len(rows):
        loop, batch = (
            run(build(options, kind), rows[:cut], cuts if kind is Window else range(cut), end=rows[cut].watermark)
            for kind in (Loop, Window)
        )
        assert loop.stored() == batch.stored()


@settings(max_examples=150, deadline=None)
@given(OPERATORS, STEPS, CUTS)
def test_a_crash_at_any_cut_changes_nothing(options, steps, cuts):
    rows = script(steps, 0)
    calm = run(build(options), rows, cuts)
    parts = list(batches(rows, cuts))
    seen = Seen(StageRuntime([build(options)], MemoryStore()))
    for number, batch in enumerate(parts):
        seen.take(batch)
        seen.stage.flush(0)
        snapshot = json.loads(json.dumps(seen.stage.snapshot()))
        if number + 1 < len(parts):
            seen.stage.process(list(batches(rows, cuts))[number + 1], now=0)  # is lost
        seen.stage = StageRuntime([build(options)], seen.stage.store, memory=snapshot)
    assert seen.main == calm.main
    assert str(seen.sides) == str(calm.sides)


@settings(max_examples=100, deadline=None)
@given(OPERATORS, STEPS, CUTS)
def test_a_key_has_one_timer_at_most_and_at_the_end_nothing_is_left(options, steps, cuts):
    seen = Seen(StageRuntime([build(options)], MemoryStore()))
    for batch in batches(script(steps, 0), cuts):
        seen.take(batch)
        assert len(seen.stage.steps[0].timers) <= 2
        assert bool(seen.stored()) == bool(len(seen.stage.steps[0].timers))
    assert seen.stored() == []


@settings(max_examples=200, deadline=None)
@given(OPERATORS.filter(lambda options: not isinstance(options["w"], SlidingWindow)), STEPS, CUTS)
def test_upserting_by_id_and_deleting_what_is_retracted_leaves_each_counted_event_once(options, steps, cuts):
    rows = script(steps, 0)
    seen = run(build(options), rows, cuts)
    table: dict[str, dict[str, Any]] = {}
    for _, id, _, fields in seen.main:
        assert fields["replaces"] == (table[id]["revision"] if id in table else None)
        assert fields["revision"] == (0 if id not in table else table[id]["revision"] + 1)
        table[id] = fields
    kept = [fields for fields in table.values() if not fields["retracted"]]
    dropped = sum(len(seen.sides.get(name, [])) for name in ("late", "rejected"))
    assert sum(fields["n"] for fields in kept) == len(rows) - dropped


@settings(max_examples=200, deadline=None)
@given(OPERATORS, STEPS, st.integers(-5, 30), st.integers(0, 20))
def test_no_event_makes_anything_due_before_the_bound_that_cuts_batches(options, steps, watermark, ahead):
    operator = build(options)
    before = [Row(watermark + ahead - 20, watermark)]
    seen = run(operator, before, end=watermark)
    rows = [Row(watermark - 12 + abs(t), watermark) for t, *_ in steps]
    timers = seen.stage.steps[0].timers
    bound = operator.earliest_timer(watermark, min((row.time for row in rows), default=0))
    assert bound > watermark
    for row in rows:
        pending = timers.next_time
        seen.take(next(batches([row], [], end=watermark)))
        assert timers.next_time >= min(bound, pending)


@pytest.mark.parametrize("kind", [tumbling(10), sliding(10, 5), session(10)])
def test_a_key_that_never_rests_keeps_no_more_than_its_live_windows(kind: Any) -> None:
    sizes = []
    for number in (100, 2_000):
        rows = [Row(time + time % 30 // 20 * 40, time) for time in range(1_000, 1_000 + number)]
        seen = run(window(kind, allowed_lateness=20, early=5), rows, end=1_000 + number)
        sizes.append(sum(len(row) for _, row in seen.stored()))
    assert sizes[0] == pytest.approx(sizes[1], abs=40)


def test_a_key_without_windows_holds_nothing_in_memory() -> None:
    seen = run(window(tumbling(10)), [Row(1, 0)])
    assert seen.stage.table.cache["k"].cells == [None]


def test_a_result_comes_when_the_watermark_reaches_the_end_of_its_window() -> None:
    seen = run(window(tumbling(10)), [Row(3, 0, 4), Row(12, 9, 1), Row(13, 10, 1)], end=19)
    fields = {"n": 1, "sum": 4.0, "most": 4.0, "pace": 0.3, "window_start": 0, "window_end": 10}
    fields |= {"revision": 0, "replaces": None, "retracted": False, "early": False}
    assert seen.main == [("k", "pipeline/w/k/0-10", 9, fields)]


def test_windows_without_events_have_no_result() -> None:
    assert results(run(window(tumbling(10)), [Row(3, 0), Row(45, 0)])) == [
        ("0-10", 1, 0, False, False),
        ("40-50", 1, 0, False, False),
    ]


@pytest.mark.parametrize(("watermark", "late"), [(14, False), (15, True)])
def test_an_event_is_late_once_its_window_ended_the_allowed_lateness_ago(watermark: int, late: bool) -> None:
    seen = run(window(tumbling(10), allowed_lateness=5), [Row(3, 0), Row(4, watermark)])
    assert len(seen.main) == 2 - late
    assert [(r["id"], r["late_by_ms"]) for r in seen.sides.get("late", [])] == ([("e1", watermark - 4)] if late else [])


def test_a_late_event_counts_in_those_of_its_sliding_windows_that_are_not_gone() -> None:
    seen = run(window(sliding(10, 5)), [Row(7, 0), Row(8, 10)])
    assert results(seen) == [("0-10", 1, 0, False, False), ("5-15", 2, 0, False, False)]


def test_a_late_event_opens_a_window_that_had_none_without_a_correction() -> None:
    seen = run(window(tumbling(10), allowed_lateness=100), [Row(3, 50), Row(4, 50)])
    assert results(seen) == [("0-10", 1, 0, False, False), ("0-10", 2, 1, False, False)]
    assert seen.corrections == [("pipeline/w/k/0-10", 1, 0, "late event", None)]


def test_a_session_that_swallows_an_emitted_one_retracts_it_and_names_itself() -> None:
    rows = [Row(0, -5), Row(15, -5), Row(8, 30)]
    seen = run(window(session(10), allowed_lateness=100), rows)
    assert results(seen) == [
        ("0", 1, 0, False, False),
        ("15", 1, 0, False, False),
        ("15", None, 1, True, False),
        ("0", 3, 1, False, False),
    ]
    assert seen.corrections == [
        ("pipeline/w/k/15", 1, 0, "merged", "pipeline/w/k/0"),
        ("pipeline/w/k/0", 1, 0, "late event", None),
    ]


def test_a_session_that_begins_earlier_is_another_one_only_if_it_was_emitted() -> None:
    assert results(run(window(session(10)), [Row(5, 0), Row(0, 0)])) == [("0", 2, 0, False, False)]
    seen = run(window(session(10), allowed_lateness=100), [Row(5, 0), Row(0, 20)])
    assert results(seen) == [("5", 1, 0, False, False), ("5", None, 1, True, False), ("0", 2, 0, False, False)]


def test_a_session_that_grows_past_the_watermark_again_is_corrected_at_its_new_end() -> None:
    operator = window(session(10), allowed_lateness=100)
    rows = [Row(0, -5), Row(8, 12)]
    assert len(run(operator, rows, end=17).main) == 1
    seen = run(operator, rows, end=18)
    assert results(seen) == [("0", 1, 0, False, False), ("0", 2, 1, False, False)]
    assert seen.corrections == [("pipeline/w/k/0", 1, 0, "late event", None)]


def test_early_results_come_at_multiples_of_the_interval_while_something_changed() -> None:
    operator = window(tumbling(30), early=5)
    seen = run(operator, [Row(1, 0), Row(2, 4), Row(3, 16), Row(4, 17)], end=29)
    assert [(fields["n"], fields["early"]) for *_, fields in seen.main] == [(2, True), (4, True)]
    seen = run(operator, [Row(1, 0), Row(2, 4), Row(3, 16), Row(4, 17)])
    assert results(seen)[-1] == ("0-30", 4, 2, False, False)
    assert [reason for *_, reason, _ in seen.corrections] == ["early", "early"]


def test_a_session_that_grows_after_an_early_result_has_another_one() -> None:
    seen = run(window(session(10), early=5), [Row(1, 0), Row(4, 6)])
    assert results(seen) == [("1", 1, 0, False, True), ("1", 2, 1, False, True), ("1", 2, 2, False, False)]


def test_a_batch_that_lacks_a_field_in_one_row_rejects_only_that_row() -> None:
    stage = StageRuntime([window(tumbling(10))], MemoryStore())
    values: list[Any] = [{"x": 1}, {"y": 1}, {"x": 2}]
    envelope = {"times": [1, 2, 3], "ids": ["a", "b", "c"], "watermarks": [0] * 3, "keys": ["k"] * 3}
    out = stage.process(Batch(values, watermark=END, **envelope), now=0)
    assert [record.sum for record in out.main.records()] == [3.0]
    assert [record["id"] for record in out.sides["rejected"]] == ["b"]


def test_the_next_operator_gets_the_results_with_state_of_their_key() -> None:
    second = Window(tumbling(20), {"windows": count()}, allowed_lateness=20, name="v")
    stage = StageRuntime([window(tumbling(10), allowed_lateness=5), second], MemoryStore())
    for batch in batches([Row(1, 0), Row(11, 0), Row(2, 11), Row(12, 11, key="b")], [2]):
        out = stage.process(batch, now=0)
    assert [(r.key, r.windows) for r in out.main.records()] == [("b", 1), ("k", 3)]


def test_the_pipeline_and_the_key_are_part_of_the_id() -> None:
    stage = StageRuntime([window(tumbling(10))], MemoryStore(), opening=Opening(pipeline="payments"))
    out = stage.process(next(batches([Row(1, 0, key="card/1")], [])), now=0)
    assert out.main.ids == ["payments/w/card/1/0-10"]


def test_what_is_known_after_it_are_the_fields_of_the_result() -> None:
    operator = window(tumbling(10), fields={"n": count()})
    assert operator.fields_after(frozenset({"x"})) == frozenset(
        {"n", "window_start", "window_end", "revision", "replaces", "retracted", "early"}
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": trailing(10, tile=5), "fields": FIELDS}, "wanted tumbling"),
        ({"window": tumbling(10), "fields": {"revision": count()}}, "revision is what the result says"),
        ({"window": tumbling(10), "fields": {}}, "wanted at least one"),
        ({"window": tumbling(10), "fields": FIELDS, "early": 0}, "at least 1ms"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Window(**options)


def test_state_of_every_kind_of_window_survives_its_wire_form() -> None:
    for kind in (tumbling(10), sliding(10, 5), session(10)):
        operator = window(kind, allowed_lateness=100, early=5)
        plan: WindowPlan = operator.plan
        windows = plan.new()
        for time, watermark in ((3, 0), (14, 12), (40, 30)):
            windows.add(plan, (1.0,), time, watermark)
        wire = json.loads(json.dumps(plan.to_wire(windows)))
        assert json.loads(json.dumps(plan.to_wire(plan.from_wire(wire)))) == wire
