"""Window descriptions against brute force over the definition: `[start, end)`, aligned to the epoch."""

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamml.errors import PlanError
from streamml.operators.windows import (
    SlidingWindow,
    TrailingWindow,
    TumblingWindow,
    all_time,
    session,
    sliding,
    trailing,
    tumbling,
)
from streamml.times import MAX_TIME, MIN_TIME

TIMES = st.integers(-200, 200)


def windows_holding(time: int, size: int, slide: int) -> list[int]:
    return [start for start in range(-1000, 1000) if start % slide == 0 and start <= time < start + size]


@given(TIMES, st.integers(1, 40), st.integers(1, 40))
def test_sliding_starts_are_the_windows_that_hold_the_time(time: int, size: int, slide: int) -> None:
    if slide > size:
        slide, size = size, slide
    assert SlidingWindow(size, slide).starts(time) == windows_holding(time, size, slide)


@given(TIMES, st.integers(1, 40))
def test_tumbling_has_exactly_one_window_for_a_time(time: int, size: int) -> None:
    window = TumblingWindow(size, size)
    assert window.starts(time) == windows_holding(time, size, size)
    assert window.bounds(time) == (window.starts(time)[0], window.starts(time)[0] + size)


@given(TIMES, st.integers(1, 12), st.integers(1, 12))
def test_tiles_cut_every_window_without_rest(time: int, tile: int, tiles: int) -> None:
    for window in (TumblingWindow(tile * tiles, tile), TrailingWindow(tile * tiles, tile)):
        start, end = window.bounds(time)
        assert start <= time < end
        assert (start % tile, end % tile, end - start) == (0, 0, tile * tiles)
        index = window.tile_of(time)
        assert index * tile <= time < (index + 1) * tile


@given(TIMES, st.integers(1, 40), st.integers(1, 40))
def test_a_sliding_windows_tile_divides_all_its_edges(time: int, size: int, slide: int) -> None:
    window = SlidingWindow(max(size, slide), min(size, slide))
    tile = window.tile
    assert all(start % tile == 0 and (start + window.size) % tile == 0 for start in window.starts(time))
    larger = [n for n in range(tile + 1, 41) if window.size % n == 0 and window.slide % n == 0]
    assert larger == []


@given(TIMES, TIMES, st.integers(1, 12), st.integers(1, 12))
def test_trailing_counts_nothing_older_than_its_size_and_all_that_is_a_tile_younger(
    time: int, older: int, tile: int, tiles: int
) -> None:
    window = TrailingWindow(tile * tiles, tile)
    age = time - older
    start, _ = window.bounds(time)
    if age >= window.size:
        assert older < start
    elif 0 <= age <= window.size - tile:
        assert older >= start


def test_durations_are_kept_in_milliseconds_however_they_are_written() -> None:
    assert trailing("10m", tile=timedelta(seconds=10)) == trailing(600_000, "10s") == TrailingWindow(600_000, 10_000)
    assert tumbling("1h") == TumblingWindow(3_600_000, 3_600_000)
    assert tumbling("1h", tile="1m").tile == 60_000
    assert all_time().tile == 1000
    assert all_time().bounds(5) == (MIN_TIME, MAX_TIME)
    assert session("30m").gap == 1_800_000


def test_negative_times_fall_into_the_window_that_starts_before_them() -> None:
    assert tumbling("10s").starts(-1) == [-10_000]
    assert tumbling("10s").starts(-10_000) == [-10_000]
    assert all_time("1s").tile_of(-1) == -1
    assert sliding("10s", "5s").starts(-1) == [-10_000, -5_000]


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (all_time(), "all_time(tile=1s)"),
        (tumbling("1h"), "tumbling(1h)"),
        (tumbling("1h", "1m"), "tumbling(1h, tile=1m)"),
        (trailing("10m", "10s"), "trailing(10m, tile=10s)"),
        (sliding("10s", "1500ms"), "sliding(10s, slide=1500ms)"),
        (session("30m"), "session(30m)"),
    ],
)
def test_a_window_reads_as_it_was_written(window: object, text: str) -> None:
    assert str(window) == text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: session(0), "session, gap: wanted a duration of at least 1ms, got 0."),
        (lambda: tumbling("0.4ms"), "tumbling, size: wanted a duration of at least 1ms, got '0.4ms'."),
        (lambda: tumbling("ten"), "tumbling, size: wanted a duration such as '5s', '250ms' or '1h30m', got 'ten'"),
        (lambda: all_time(-1), "all_time, tile: a duration can't be negative, got -1"),
        (
            lambda: trailing("10m", "7s"),
            "trailing window: the size must be a whole number of tiles, got size=10m and tile=7s. "
            "For example tile='1s'.",
        ),
        (lambda: trailing("10s", "20s"), "For example tile='10s'."),
        (lambda: tumbling("1h", "45m"), "tumbling window: the size must be a whole number of tiles"),
        (
            lambda: sliding("5s", "10s"),
            "sliding window: the slide can't be longer than the size, else events fall between windows; "
            "got size=5s and slide=10s. For windows end to end write tumbling('5s').",
        ),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_with_what_to_do(build: object, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        build()  # type: ignore[operator]
