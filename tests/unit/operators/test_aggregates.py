"""Aggregates against statistics, NumPy and plain lists; the same whatever the tiles, the same bits after a restart."""

import json
import math
import pickle
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.errors import PlanError, RecordError, StateError
from streamml.operators import aggregates as agg
from streamml.operators import sketches
from streamml.operators.aggregation import Aggregation
from streamml.times import MAX_TIME, MIN_TIME

HOUR = 3_600_000
ALL = {
    "n": agg.count(),
    "total": agg.total("x"),
    "mean": agg.mean("x"),
    "var": agg.variance("x"),
    "var0": agg.variance("x", ddof=0),
    "min": agg.minimum("x"),
    "max": agg.maximum("x"),
    "last": agg.last("x"),
    "idle": agg.since_last(),
    "ewma": agg.ewma("x", half_life="1m"),
    "rate": agg.rate(per="1m"),
    "kinds": agg.distinct("kind"),
    "median": agg.quantile("x", 0.5),
    "p99": agg.quantile("x", 0.99),
}
EXACT = ["n", "min", "max", "last", "idle", "rate", "kinds"]
CLOSE = ["total", "mean", "var", "var0", "ewma"]

VALUES = st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-1000, 1000)
EVENTS = st.lists(
    st.tuples(VALUES, st.sampled_from(["a", "b", "", "é", 1, 2.5]), st.integers(0, HOUR - 1)), max_size=60
)


def fill(stats: Aggregation, events: list[tuple[Any, Any, int]], accs: list[Any] | None = None) -> list[Any]:
    accs = stats.new() if accs is None else accs
    for x, kind, time in events:
        row = tuple({"x": x, "kind": kind}[name] for name in stats.inputs)
        stats.check(row)
        stats.add(accs, row, time)
    return accs


def named(stats: Aggregation, accs: list[Any], time: int = HOUR, start: int = 0, end: int = HOUR) -> dict[str, Any]:
    return dict(zip(stats.names, stats.results(accs, time, start, end), strict=True))


def stored(stats: Aggregation, accs: list[Any]) -> list[Any]:
    return stats.from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(stats.to_wire(accs))))


def oracle(events: list[tuple[Any, Any, int]]) -> dict[str, Any]:
    xs = [float(x) for x, _, _ in events]
    newest = max((time for _, _, time in events), default=None)
    weights = [2.0 ** -((HOUR - time) / 60_000) for _, _, time in events]
    return {
        "n": len(xs),
        "total": math.fsum(xs),
        "mean": statistics.fmean(xs) if xs else None,
        "var": float(np.var(xs, ddof=1)) if len(xs) > 1 else None,
        "var0": float(np.var(xs)) if xs else None,
        "min": min(xs, default=None),
        "max": max(xs, default=None),
        "last": [float(x) for x, _, time in events if time == newest][-1] if xs else None,
        "idle": float(HOUR - newest) if newest is not None else -1.0,
        "ewma": float(np.average(xs, weights=weights)) if xs else None,
        "rate": len(xs) * 60_000 / HOUR,
        "kinds": len({kind for _, kind, _ in events}),
        "median": float(np.quantile(xs, 0.5, method="inverted_cdf")) if xs else None,
        "p99": float(np.quantile(xs, 0.99, method="inverted_cdf")) if xs else None,
    }


def assert_close(found: dict[str, Any], wanted: dict[str, Any], names: list[str], events: list[Any]) -> None:
    """Within 1e-12 of the size of the values (all that a sum near 0 can do), or 1e-300 (weights underflow)."""
    scale = math.fsum(abs(float(x)) for x, _, _ in events) + 1e-288
    square = math.fsum(float(x) ** 2 for x, _, _ in events) + 1e-288
    for name in names:
        if wanted[name] is None or found[name] is None:
            assert found[name] is wanted[name], name
        else:
            tolerance = 1e-12 * (square if name.startswith("var") else scale)
            assert abs(found[name] - wanted[name]) <= tolerance, name


@given(EVENTS)
def test_results_agree_with_statistics_and_numpy_on_the_raw_values(events: list[Any]) -> None:
    stats = Aggregation(ALL)
    found, wanted = named(stats, fill(stats, events)), oracle(events)
    for name in [*EXACT, "median", "p99"]:
        assert found[name] == wanted[name], name
    assert_close(found, wanted, CLOSE, events)


@given(EVENTS, st.lists(st.integers(0, 60), max_size=5))
def test_tiles_merged_in_order_give_the_same_as_one_go(events: list[Any], cuts: list[int]) -> None:
    events = sorted(events, key=lambda event: event[2])
    stats = Aggregation(ALL)
    edges = [0, *sorted(cuts), len(events)]
    merged = stats.new()
    for low, high in pairwise(edges):
        tile = fill(stats, events[low:high])
        before = msgspec.msgpack.encode([stats.to_wire(merged), stats.to_wire(tile)])
        old, merged = merged, stats.merge(merged, tile)
        assert msgspec.msgpack.encode([stats.to_wire(old), stats.to_wire(tile)]) == before
        fill(stats, [(7.0, "new", 5)], stats.merge(old, tile))  # what is added to the result does not reach the inputs
        assert msgspec.msgpack.encode([stats.to_wire(old), stats.to_wire(tile)]) == before
    found, wanted = named(stats, merged), named(stats, fill(stats, events))
    for name in [*EXACT, "median", "p99"]:
        assert found[name] == wanted[name], name
    assert_close(found, wanted, CLOSE, events)


@given(EVENTS, st.sets(st.integers(0, 60), max_size=8))
def test_state_that_was_stored_anywhere_goes_on_bit_for_bit(events: list[Any], cuts: set[int]) -> None:
    stats = Aggregation(ALL)
    unbroken, restored = stats.new(), stats.new()
    for i, event in enumerate(events):
        if i in cuts:
            restored = stored(stats, restored)
        fill(stats, [event], unbroken)
        fill(stats, [event], restored)
        assert repr(named(stats, restored, time=event[2])) == repr(named(stats, unbroken, time=event[2]))


@given(EVENTS)
def test_the_compiled_functions_do_what_the_methods_of_the_parts_say(events: list[Any]) -> None:
    stats = Aggregation(ALL)
    half = len(events) // 2
    tiles = [fill(stats, events[:half]), fill(stats, events[half:])]
    merged = stats.merge(*tiles)
    place = {part: i for i, part in enumerate(stats.parts)}
    by_hand = []
    for part in stats.parts:
        two = []
        for piece in (events[:half], events[half:]):
            acc = part.init()
            for x, kind, time in piece:
                acc = part.add(acc, {"x": x, "kind": kind, None: None}[part.reads], time)
            two.append(acc)
        by_hand.append(part.merge(*two))
    assert repr(stats.to_wire(merged)) == repr(stats.to_wire(by_hand))
    for name, aggregate in ALL.items():
        own = [merged[place[part]] for part in aggregate.parts]
        assert repr(aggregate.finish(*own, HOUR, 0, HOUR)) == repr(named(stats, merged)[name])


def test_no_event_has_documented_results() -> None:
    stats = Aggregation(ALL)
    nothing = {name: None for name in ALL} | {"n": 0, "total": 0.0, "idle": -1.0, "rate": 0.0, "kinds": 0}
    assert named(stats, stats.new()) == nothing
    assert named(stats, stats.merge(stats.new(), stored(stats, stats.new()))) == nothing


def test_results_have_the_type_that_is_declared() -> None:
    stats = Aggregation(ALL)
    results = stats.results(fill(stats, [(1, "a", 1), (True, 2, 2)]), 2, 0, HOUR)
    assert [type(value) for value in results] == list(stats.dtypes)


class TestSinceLast:
    stats = Aggregation({"idle": agg.since_last()})

    def idle(self, times: list[int], at: int) -> float:
        accs = self.stats.new()
        for time in times:
            self.stats.add(accs, (), time)
        return float(self.stats.results(accs, at, MIN_TIME, MAX_TIME)[0])

    def test_the_first_event_has_no_previous_one(self) -> None:
        assert self.idle([5], at=5) == -1.0

    def test_two_events_at_one_time_are_zero_apart(self) -> None:
        assert self.idle([5, 5], at=5) == 0.0

    def test_a_windows_end_looks_back_at_the_newest_event(self) -> None:
        assert self.idle([5, 9], at=10) == 1.0

    @given(st.lists(st.integers(-50, 50), min_size=1, max_size=12), st.data())
    def test_the_newest_event_of_the_newest_tile_finds_its_predecessor(self, times: list[int], data: Any) -> None:
        newest = max(times)
        others = sorted(times)[:-1]
        wanted = float(newest - others[-1]) if others else -1.0
        assert self.idle(data.draw(st.permutations(times)), at=newest) == wanted
        tiles: dict[int, list[Any]] = {}
        for time in times:
            self.stats.add(tiles.setdefault(time // 10, self.stats.new()), (), time)
        merged = self.stats.new()
        for index in sorted(tiles):
            merged = self.stats.merge(merged, tiles[index])
        assert self.stats.results(merged, newest, MIN_TIME, MAX_TIME) == (wanted,)

    def test_an_event_late_within_its_tile_never_gets_a_negative_answer(self) -> None:
        assert self.idle([1, 10, 9], at=9) == 0.0
        assert self.idle([10, 20, 5], at=5) == 0.0


@given(EVENTS, st.randoms(use_true_random=False))
def test_ewma_does_not_depend_on_the_order_of_arrival(events: list[Any], random: Any) -> None:
    stats = Aggregation({"ewma": agg.ewma("x")})
    mixed = list(events)
    random.shuffle(mixed)
    assert_close(named(stats, fill(stats, mixed)), named(stats, fill(stats, events)), ["ewma"], events)


def test_ewma_survives_gaps_of_any_length() -> None:
    stats = Aggregation({"ewma": agg.ewma("x", half_life=1)})
    assert stats.results(fill(stats, [(1.0, "", -(2**50)), (3.0, "", 2**50), (9.0, "", 0)]), 0, 0, 1) == (3.0,)


@pytest.mark.parametrize(
    ("times", "at", "start", "end", "wanted"),
    [
        ([0, 10, 20], 600, 0, 1000, 3 / 0.6 / 10),  # 600 of 1000 ms elapsed, per 100 ms
        ([0, 10, 20], 1000, 0, 1000, 3 / 10),  # the window's end
        ([5], 5, 0, 1000, 1.0),  # a span shorter than `per` counts as one `per`
        ([5], 50, 0, 50, 2.0),  # a window shorter than `per`, as a whole
        ([1000, 1200], 1200, MIN_TIME, MAX_TIME, 1.0),  # no edges: from the first event
        ([1000], 1000, MIN_TIME, MAX_TIME, 1.0),
        ([7], 7, 7, 7, 1.0),
    ],
)
def test_rate_is_over_the_elapsed_span(times: list[int], at: int, start: int, end: int, wanted: float) -> None:
    stats = Aggregation({"rate": agg.rate(per="100ms")})
    accs = fill(stats, [(0.0, "", time) for time in times])
    assert stats.results(accs, at, start, end)[0] == pytest.approx(wanted, rel=1e-12)


def test_variance_keeps_its_digits_far_from_zero() -> None:
    stats = Aggregation({"var": agg.variance("x")})
    xs = [1e9 + 1, 1e9 + 2, 1e9 + 4]
    assert named(stats, fill(stats, [(x, "", 0) for x in xs]))["var"] == pytest.approx(7 / 3, rel=1e-7)


class TestQuantileSketch:
    def rank_error(self, values: list[float], kll: sketches.Kll) -> float:
        ordered = np.sort(values)
        worst = 0.0
        for q in np.linspace(0.01, 0.99, 99):
            found = kll.quantile(float(q))
            assert found is not None
            low, high = np.searchsorted(ordered, found, "left"), np.searchsorted(ordered, found, "right")
            share = q * len(values)
            worst = max(worst, float(max(low - share, share - high, 0.0)) / len(values))
        return worst

    @pytest.mark.parametrize("shape", ["normal", "sorted", "reversed", "zipf", "zigzag"])
    def test_rank_error_is_within_the_bound_of_datasketches_for_the_same_k(self, shape: str) -> None:
        datasketches = pytest.importorskip("datasketches")
        rng = np.random.default_rng(7)
        values = {
            "normal": rng.normal(size=30_000),
            "sorted": np.arange(30_000.0),
            "reversed": np.arange(30_000.0)[::-1],
            "zipf": rng.zipf(1.3, 30_000).astype(float),
            "zigzag": np.arange(30_000.0) * np.tile([1.0, -1.0], 15_000),
        }[shape].tolist()
        bound = datasketches.kll_doubles_sketch(200).normalized_rank_error(False)
        one, merged = sketches.Kll(200), sketches.Kll(200)
        for i in range(0, len(values), 500):
            tile = sketches.Kll(200)
            for value in values[i : i + 500]:
                one.add(value, i)
                tile.add(value, i)
            merged = merged.merge(tile)
        assert merged.n == one.n == len(values)
        assert self.rank_error(values, one) <= bound
        assert self.rank_error(values, merged) <= bound
        assert (one.quantile(0.0), one.quantile(1.0)) == (min(values), max(values))
        assert (merged.quantile(0.0), merged.quantile(1.0)) == (min(values), max(values))
        assert len(msgspec.msgpack.encode(one.to_wire())) < 8_000

    @given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(1, 8), st.data())
    @settings(max_examples=40)
    def test_weights_always_sum_to_the_count(self, values: list[float], tiles: int, data: Any) -> None:
        merged = sketches.Kll(8)
        for i in range(tiles):
            tile = sketches.Kll(8)
            for value in values[i::tiles]:
                tile.add(value, i)
            merged = merged.merge(tile)
        assert sum(len(level) << h for h, level in enumerate(merged._levels)) == merged.n == len(values)
        assert merged.quantile(data.draw(st.floats(0, 1))) in values

    def test_state_stored_beyond_k_values_goes_on_bit_for_bit(self) -> None:
        rng = np.random.default_rng(11)
        values = rng.normal(size=6_000).tolist()
        one, other = sketches.Kll(64), sketches.Kll(64)
        for i, value in enumerate(values):
            one.add(value, i)
            other.add(value, i)
            if i % 97 == 0:
                assert other.quantile(0.9) == one.quantile(0.9)
                other = sketches.Kll.from_wire(64, msgspec.msgpack.decode(msgspec.msgpack.encode(other.to_wire())))
        assert other.to_wire() == one.to_wire()
        assert other.merge(one).to_wire() == one.merge(other).to_wire()

    def test_another_process_gives_the_same_bits(self) -> None:
        """datasketches' own KLL fails this: its coin is random, and can't be seeded."""
        program = """
import json, random
from streamml.operators.aggregates import distinct, quantile
from streamml.operators.aggregation import Aggregation
stats = Aggregation({"q": quantile("x", 0.37, k=32), "d": distinct("name")})
draw = random.Random(5)
tiles = [stats.new() for _ in range(4)]
for i in range(8000):
    stats.add(tiles[i // 2000], (draw.random(), f"name {draw.randrange(5000)}"), i)
merged = tiles[0]
for tile in tiles[1:]:
    merged = stats.merge(merged, tile)
print(json.dumps([stats.results(merged, 0, 0, 1), str(stats.to_wire(merged)[-1])]))
"""
        runs = [
            subprocess.run(
                [sys.executable, "-c", program],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]
        assert runs[0] == runs[1]
        assert json.loads(runs[0])[0][0] == pytest.approx(0.37, abs=0.05)


class TestDistinctSketch:
    @pytest.mark.parametrize("n", [1, 10, 100, 1_000, 50_000])
    def test_estimate_is_within_three_standard_errors(self, n: int) -> None:
        hll = sketches.Hll(11)
        for i in range(n):
            hll.add(f"card {i}")
            hll.add(f"card {i // 2}")
        assert abs(hll.estimate() - n) <= 3 * 1.04 / math.sqrt(2**11) * n

    @given(st.integers(0, 3_000), st.lists(st.integers(0, 3_000), max_size=4), st.sampled_from([4, 7, 11]))
    @settings(max_examples=60, deadline=None)
    def test_answer_does_not_depend_on_order_tiles_or_restarts(self, n: int, cuts: list[int], lg_k: int) -> None:
        values = [(i * 7919) % 2_003 for i in range(n)]
        one, backwards, restored, merged = (sketches.Hll(lg_k) for _ in range(4))
        tile = sketches.Hll(lg_k)
        for i, value in enumerate(values):
            if i in cuts:
                restored = sketches.Hll.from_bytes(lg_k, restored.to_bytes())
                merged, tile = merged.merge(tile), sketches.Hll(lg_k)
            for hll in (one, restored, tile):
                hll.add(value)
        for value in reversed(values):
            backwards.add(value)
        answers = {hll.estimate() for hll in (one, backwards, restored, merged.merge(tile))}
        assert len(answers) == 1

    def test_equal_numbers_are_one_value_and_text_is_never_a_number(self) -> None:
        hll = sketches.Hll(11)
        for value in (1, 1.0, True, 2**63, float(2**63), "1", "", "s", 2.5):
            hll.add(value)
        assert hll.estimate() == len({1, 2**63, "1", "", "s", 2.5})

    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasketches", None)
        sketches.require_datasketches.cache_clear()
        with pytest.raises(PlanError, match=re.escape("pip install 'streamml[sketches]'")):
            agg.distinct("merchant")
        assert Aggregation({"q": agg.quantile("x", 0.5)}).new()  # which needs no package


class TestAggregation:
    def test_equal_parts_are_shared_and_inputs_are_named_once(self) -> None:
        stats = Aggregation(
            {"n": agg.count(), "s": agg.total("x"), "m": agg.mean("x"), "other": agg.mean("y"), "d": agg.distinct("x")}
        )
        assert [part.label for part in stats.parts] == ["count", "hll(x,11)", "sum(x)", "sum(y)"]
        assert (stats.inputs, stats.plain) == (("x", "y"), False)

    def test_signature_depends_on_what_is_stored_and_not_on_names_or_order(self) -> None:
        one = Aggregation({"a": agg.mean("x"), "b": agg.maximum("x")})
        same = Aggregation({"top": agg.maximum("x"), "n": agg.count(), "avg": agg.mean("x")})
        assert one.signature == same.signature == "v1|count|greatest(x)|sum(x)"
        assert Aggregation({"a": agg.ewma("x", "1m")}).signature != Aggregation({"a": agg.ewma("x", "2m")}).signature

    def test_plain_accumulators_may_be_stored_without_to_wire(self) -> None:
        stats = Aggregation({name: value for name, value in ALL.items() if name not in ("kinds", "median", "p99")})
        assert stats.plain
        accs = fill(stats, [(1.5, "", 3), (2.5, "", 4)])
        raw = msgspec.msgpack.decode(msgspec.msgpack.encode(accs))
        more = [(0.5, "", 5), (4.5, "", 4)]
        assert repr(named(stats, fill(stats, more, raw))) == repr(named(stats, fill(stats, more, accs)))
        assert repr(named(stats, stats.merge(raw, raw))) == repr(named(stats, stats.merge(accs, accs)))

    @pytest.mark.parametrize(
        "bad", [None, math.nan, math.inf, -math.inf, "12", [], np.float64(1.0), np.int64(1), 10**400]
    )
    def test_a_value_that_is_no_number_is_refused_before_anything_has_changed(self, bad: Any) -> None:
        stats = Aggregation(
            {"n": agg.count(), "sum_x": agg.total("x"), "avg_y": agg.mean("y"), "k": agg.distinct("kind")}
        )
        plain = Aggregation({"n": agg.count(), "sum_x": agg.total("x"), "avg_y": agg.mean("y")})
        for checked, row in ((stats, (1.0, bad, "a")), (plain, (1.0, bad))):
            with pytest.raises(RecordError, match="field 'y', of which avg_y is taken: wanted a finite number"):
                checked.check(row)

    def test_the_message_says_what_came_and_what_to_do(self) -> None:
        stats = Aggregation({"sum": agg.total("amount"), "max": agg.maximum("amount")})
        message = (
            "field 'amount', of which sum, max is taken: wanted a finite number (a plain int or float), "
            "got 'ten' (str). "
            "Filter such events out or give the field a default before this operator."
        )
        with pytest.raises(RecordError, match=re.escape(message)):
            stats.check(("ten",))

    @pytest.mark.parametrize("bad", [None, math.nan, b"x"])
    def test_distinct_takes_text_and_numbers_and_nothing_else(self, bad: Any) -> None:
        stats = Aggregation({"k": agg.distinct("kind")})
        for good in ("", "a", 1, 2**80, -1.5, True):
            stats.check((good,))
        with pytest.raises(
            RecordError, match=re.escape("field 'kind', of which k is taken: wanted text or a finite number")
        ):
            stats.check((bad,))

    def test_a_field_that_is_also_summed_takes_no_text(self) -> None:
        with pytest.raises(RecordError, match="got 'a'"):
            Aggregation({"k": agg.distinct("x"), "s": agg.total("x")}).check(("a",))

    def test_any_number_that_is_accepted_can_be_added(self) -> None:
        stats = Aggregation(ALL)
        fill(stats, [(x, "a", i) for i, x in enumerate([1e308, -1e308, 10**308, True, 0, -0.0, 5e-324, 2**70])])

    def test_stored_state_of_other_aggregates_is_refused(self) -> None:
        stats = Aggregation({"n": agg.count(), "s": agg.total("x")})
        with pytest.raises(StateError, match=re.escape("wanted 2 accumulators (v1|count|sum(x)), got 3.")):
            stats.from_wire([1, 2.0, 3.0])

    def test_it_can_be_sent_to_a_worker(self) -> None:
        stats = Aggregation(ALL)
        copy = pickle.loads(pickle.dumps(stats))
        events = [(1.0, "a", 1), (2.0, "b", 2)]
        assert (copy.signature, copy.fields) == (stats.signature, stats.fields)
        assert named(copy, fill(copy, events)) == named(stats, fill(stats, events))

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: Aggregation({}), "aggregates: wanted at least one"),
            (lambda: Aggregation({"n": agg.count}), "aggregates, 'n': wanted an aggregate, got <function count"),  # type: ignore[dict-item]
            (lambda: Aggregation({"n": agg.count}), "Did you mean count(...)?"),  # type: ignore[dict-item]
            (lambda: Aggregation({"n": "x"}), "Write it as count() or mean('amount')."),  # type: ignore[dict-item]
            (lambda: Aggregation({"": agg.count()}), "wanted a name for the result of count()"),
            (lambda: agg.mean(""), "mean: wanted the name of a field, got ''"),
            (lambda: agg.ewma("x", half_life=0), "ewma, half_life: wanted a duration of at least 1ms"),
            (lambda: agg.rate(per="0s"), "rate, per: wanted a duration of at least 1ms"),
            (lambda: agg.variance("x", ddof=-1), "variance, ddof: wanted a whole number from 0"),
            (lambda: agg.quantile("x", 99), "quantile, q: wanted a share from 0 to 1, got 99"),
            (lambda: agg.quantile("x", 0.5, k=3), "quantile, k: wanted a whole number from 8 to 65535, got 3"),
            (lambda: agg.distinct("x", lg_k=30), "distinct, lg_k: wanted a whole number from 4 to 21, got 30"),
        ],
    )
    def test_what_makes_no_sense_is_refused_when_it_is_written(self, build: Any, message: str) -> None:
        with pytest.raises(PlanError, match=re.escape(message)):
            build()
