"""The watermark against an oracle that looks at the whole history each time."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.times import MAX_TIME, MIN_TIME
from streamml.watermarks import WatermarkTracker

BOUND, JUMP, IDLE = 5, 50, 1_000


@dataclass
class Oracle:
    """Keeps everything that happened; each watermark is worked out anew from it."""

    partitions: dict[str, list[int]] = field(default_factory=dict)
    seen_at: dict[str, int] = field(default_factory=dict)
    idle_names: set[str] = field(default_factory=set)
    reached: int = MIN_TIME

    @staticmethod
    def trust(times: list[int]) -> tuple[int, int | None]:
        """The newest trusted time, and the jump that waits to be confirmed by the next event."""
        trusted, waiting = MIN_TIME, None
        for time in times:
            if time <= trusted + JUMP:
                trusted, waiting = max(trusted, time), None
            elif waiting is None:
                waiting = time
            else:  # two in a row: at least the smaller one is true
                trusted, waiting = sorted((waiting, time))
                if waiting - trusted <= JUMP:
                    trusted, waiting = waiting, None
        return trusted, waiting

    def newest(self, times: list[int]) -> int:
        return self.trust(times)[0]

    def own(self, name: str) -> int:
        newest = self.newest(self.partitions[name])
        return MIN_TIME if newest == MIN_TIME else newest - BOUND

    def minimum(self) -> int:
        return min((self.own(name) for name in self.partitions if name not in self.idle_names), default=MAX_TIME)

    def advance(self, reached: int) -> None:
        if reached < MAX_TIME:
            self.reached = max(self.reached, reached)

    def event(self, name: str, time: int, now: int) -> int:
        before = self.reached
        self.idle_names.discard(name)
        self.seen_at[name] = now
        moved = self.own(name)
        self.partitions[name].append(time)
        if self.own(name) > moved:  # others are looked at when this one moves
            self.advance(self.minimum())
        return before

    def idle(self, now: int) -> int:
        for name, times in self.partitions.items():
            if name not in self.idle_names and now - self.seen_at[name] >= IDLE:
                self.idle_names.add(name)
                waiting = self.trust(times)[1]
                if waiting is not None and waiting <= now:
                    times.append(waiting)  # silence and the clock speak for it
        if self.partitions and self.idle_names >= self.partitions.keys():
            started = [n for n in self.partitions if self.own(n) != MIN_TIME]
            self.advance(max((self.own(n) + now - self.seen_at[n] for n in started), default=MIN_TIME))
        elif self.idle_names & self.partitions.keys():
            self.advance(self.minimum())
        return self.reached


def follow(tracker: WatermarkTracker, name: str, now: int = 0) -> None:
    tracker.add(name, bound=BOUND, max_jump=JUMP, idleness=IDLE, now=now)


Runs = st.tuples(st.sampled_from("abc"), st.lists(st.one_of(st.integers(0, 120), st.integers(0, 3_000)), max_size=8))
Steps = st.lists(
    st.one_of(
        Runs,
        st.tuples(st.just("wait"), st.sampled_from([1, 400, 1_000, 2_500])),
        st.tuples(st.just("idle"), st.none()),
        st.tuples(st.just("finish"), st.sampled_from("bc")),
        st.tuples(st.just("restore"), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(steps=Steps)
def test_every_watermark_equals_that_of_the_whole_history(steps: list[tuple[str, object]]) -> None:
    tracker, oracle, now = WatermarkTracker(), Oracle(), 0
    for name in "abc":
        follow(tracker, name)
        oracle.partitions[name], oracle.seen_at[name] = [], 0
    for what, value in steps:
        if what == "wait":
            now += value  # type: ignore[operator]
        elif what == "idle":
            assert tracker.idle(now) == oracle.idle(now)
        elif what == "finish":
            tracker.finish(value)  # type: ignore[arg-type]
            if oracle.partitions.pop(value, None) is not None:  # type: ignore[call-overload]
                oracle.advance(oracle.minimum())
        elif what == "restore":
            stored = json.loads(json.dumps(tracker.snapshot()))
            names, tracker = tracker.partitions(), WatermarkTracker()
            for name in names:
                follow(tracker, name, now)
            tracker.restore(stored)
            oracle.idle_names.clear()
            oracle.seen_at = dict.fromkeys(names, now)
        elif what in oracle.partitions:
            before = tracker.current
            found = tracker.observe(what, value, now)  # type: ignore[arg-type]
            oracle.idle_names.discard(what)
            oracle.seen_at[what] = now
            assert found == [oracle.event(what, time, now) for time in value]  # type: ignore[union-attr, attr-defined]
            assert found == sorted(found) and all(w >= before for w in found)
        assert tracker.current == oracle.reached


@settings(max_examples=200, deadline=None)
@given(times=st.lists(st.integers(0, 400), max_size=40), cuts=st.sets(st.integers(0, 40)))
def test_it_does_not_matter_where_the_stream_is_cut(times: list[int], cuts: set[int]) -> None:
    whole, parts = WatermarkTracker(), WatermarkTracker()
    for tracker in (whole, parts):
        follow(tracker, "a")
        follow(tracker, "b")
        tracker.observe("b", [100, 101], 0)
    edges = sorted({0, len(times), *(cut for cut in cuts if cut < len(times))})
    pieces = [parts.observe("a", times[a:b], 0) for a, b in itertools.pairwise(edges)]
    assert whole.observe("a", times, 0) == [watermark for piece in pieces for watermark in piece]
    assert whole.snapshot() == parts.snapshot()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(0, JUMP - BOUND), min_size=3, max_size=40),
    delays=st.lists(st.integers(0, BOUND), min_size=40, max_size=40),
    place=st.integers(0, 39),
    ahead=st.integers(2 * JUMP * 40, 10**12),
)
def test_one_wrong_clock_makes_no_event_late_that_is_within_the_bound(
    steps: list[int], delays: list[int], place: int, ahead: int
) -> None:
    times, newest = [], 1_000
    for step, delay in zip(steps, delays, strict=False):
        newest += step
        times.append(newest - delay)
    tracker = WatermarkTracker()
    follow(tracker, "a")
    place = min(place, len(times))
    found = tracker.observe("a", [*times[:place], newest + ahead, *times[place:]], 0)
    del found[place]
    assert all(time >= watermark for time, watermark in zip(times, found, strict=True))


def test_a_stream_that_really_jumps_is_followed_from_its_second_event_on() -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a")
    tracker.observe("a", [100, 101, 5_000], 0)
    assert tracker.current == 101 - BOUND
    tracker.observe("a", [102], 0)  # that speaks against it
    tracker.observe("a", [5_000, 5_000 - JUMP], 0)
    assert tracker.current == 5_000 - BOUND


def test_a_stream_of_distant_events_is_one_event_behind() -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a")
    tracker.observe("a", [1_000, 2_000, 3_000], 0)
    assert tracker.current == 2_000 - BOUND


def test_a_lone_event_counts_once_its_partition_is_idle() -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a", now=5_000)
    tracker.observe("a", [4_990], 5_000)
    assert tracker.current == MIN_TIME
    assert tracker.idle(5_000 + 2 * IDLE) == 4_990 - BOUND + 2 * IDLE


def test_the_slowest_partition_leads_and_an_idle_one_does_not() -> None:
    tracker = WatermarkTracker()
    follow(tracker, "slow")
    follow(tracker, "fast")
    tracker.observe("slow", [10, 11], 0)
    tracker.observe("fast", [900, 901, 940], 500)
    assert tracker.current == 11 - BOUND
    assert tracker.idle(IDLE - 1) == 11 - BOUND
    assert tracker.idle(IDLE) == 940 - BOUND
    assert tracker.observe("slow", [12, 13], IDLE) == [940 - BOUND, 940 - BOUND]  # it never falls


def test_when_all_are_idle_the_watermark_follows_the_clock() -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a")
    assert tracker.idle(10 * IDLE) == MIN_TIME  # nothing has come, so there is no time to go on from
    tracker.observe("a", [10, 11], 10 * IDLE)
    assert tracker.idle(12 * IDLE) == 11 - BOUND + 2 * IDLE


@pytest.mark.parametrize("names", [[], ["other"]])
def test_partitions_that_are_gone_are_ignored_when_it_is_restored(names: list[str]) -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a")
    tracker.observe("a", [10, 11], 0)
    again = WatermarkTracker()
    for name in names:
        follow(again, name)
    again.restore(tracker.snapshot())
    assert again.current == 11 - BOUND and again.partitions() == names


@pytest.mark.parametrize(("ahead", "trusted"), [(JUMP, True), (JUMP + 1, False)])
def test_an_event_is_trusted_up_to_the_largest_jump(ahead: int, trusted: bool) -> None:
    tracker = WatermarkTracker()
    follow(tracker, "a")
    tracker.observe("a", [100, 101, 101 + ahead], 0)
    assert tracker.current == (101 + ahead if trusted else 101) - BOUND


def test_when_all_are_idle_the_one_that_is_furthest_leads() -> None:
    tracker = WatermarkTracker()
    for name in "abc":
        follow(tracker, name)
    tracker.observe("a", [10, 11], 0)
    tracker.observe("b", [500, 501], 0)
    assert tracker.current == MIN_TIME  # nothing of "c"
    assert tracker.idle(IDLE) == 501 - BOUND + IDLE
