"""The controller of the batch size against simulated costs, and batches against a simulated memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.errors import ModelError, ModelMemoryError
from streamml.models.batching import BatchSize, Chunks

Cost = Callable[[int, int], float]


def run(
    cost: Cost, batch: BatchSize, cycles: int, noise: float = 0.0, seed: int = 0, rows: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Feed batches of the size asked for, or of the rows that there are; return sizes and seconds."""
    rng = np.random.default_rng(seed)
    sizes, seconds = [], []
    for cycle in range(cycles):
        taken = min(batch.size, rows)
        took = cost(taken, cycle) * float(np.exp(rng.normal(0, noise)))
        sizes.append(batch.size)
        seconds.append(took)
        batch.done(taken, took)
    return np.array(sizes), np.array(seconds)


def largest(cost: Cost, budget: float, high: int = 4096) -> int:
    """The largest size within the budget, found by trying all."""
    return max((n for n in range(1, high + 1) if cost(n, 0) <= budget), default=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    fixed=st.floats(1e-6, 4e-3),
    per_row=st.floats(1e-6, 2e-3),
    target=st.floats(10, 200),
    start=st.integers(1, 4096),
)
def test_the_best_size_is_reached_from_any_start(fixed: float, per_row: float, target: float, start: int) -> None:
    batch = BatchSize(target, start=start)
    best = largest(lambda n, _: fixed + per_row * n, target / 2000)
    sizes, _ = run(lambda n, _: fixed + per_row * n, batch, 60)
    assert best * 0.88 - 1 <= sizes[-1] <= best * 1.12 + 1
    assert len(set(sizes[20:].tolist())) <= 3, "no oscillation"


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.29])
@pytest.mark.parametrize("start", [1, 4096])
def test_with_noise_99_of_100_batches_keep_the_target_and_the_size_is_near_the_best(noise: float, start: int) -> None:
    def cost(n: int, _: int) -> float:
        return 0.002 + 0.0001 * n

    batch = BatchSize(20, start=start)
    sizes, seconds = run(cost, batch, 6000, noise)
    late = seconds[1000:]
    assert np.quantile(late, 0.98) < 0.010 < 1.25 * np.quantile(late, 0.995)
    best = largest(cost, 0.010 / np.exp(2.326 * noise))
    assert 0.75 * best - 1 <= np.median(sizes[1000:]) <= 1.25 * best + 1
    changes = np.count_nonzero(np.diff(sizes[1000:]))
    assert changes <= 50, "the size stays for 100 batches and more"


def test_convex_cost_is_followed_to_where_it_meets_the_target() -> None:
    def cost(n: int, _: int) -> float:
        return 0.001 + 2e-5 * n + 1e-6 * n * n

    sizes, seconds = run(cost, BatchSize(20), 2000, 0.1)
    best = largest(cost, 0.010 / np.exp(2.326 * 0.1))
    assert 0.85 * best <= sizes[-1] <= 1.15 * best
    assert np.mean(seconds[200:] > 0.010) < 0.02


@pytest.mark.parametrize(("factor", "within"), [(5.0, 150), (0.2, 700)])
def test_cost_that_changes_is_followed(factor: float, within: int) -> None:
    """Cost that rises is followed soon; one that falls is believed once the dear batches are forgotten."""

    def cost(n: int, cycle: int) -> float:
        return (0.001 + 0.0001 * n) * (factor if cycle >= 500 else 1.0)

    sizes, _ = run(cost, BatchSize(20), 500 + within, 0.05)
    best = largest(lambda n, _: factor * (0.001 + 0.0001 * n), 0.010 / np.exp(2.326 * 0.05))
    assert 0.75 * best <= sizes[-1] <= 1.25 * best


def test_slow_drift_is_followed_without_late_batches() -> None:
    def cost(n: int, cycle: int) -> float:
        return (0.001 + 0.0001 * n) * (1 + cycle / 2000)

    _, seconds = run(cost, BatchSize(20), 4000, 0.1)
    assert np.mean(seconds[100:] > 0.010) < 0.03
    assert np.mean(seconds[100:]) > 0.006, "and the batches are not needlessly small"


def test_one_pause_does_not_shrink_the_batches() -> None:
    batch = BatchSize(20)
    run(lambda n, _: 0.002 + 0.0001 * n, batch, 300, 0.02)
    before = batch.size
    batch.done(batch.size, 1.0)
    run(lambda n, _: 0.002 + 0.0001 * n, batch, 100, 0.02)
    assert batch.size > 0.8 * before


@pytest.mark.parametrize("start", [1, 4096])
def test_pauses_that_come_whatever_the_size_halve_the_batches_at_most(start: int) -> None:
    """One batch in 30 takes 50 ms more: no size keeps the target, and small batches would only cost throughput."""

    def cost(n: int, cycle: int) -> float:
        return 0.002 + 0.0001 * n + (0.050 if cycle % 30 == 7 else 0.0)

    sizes, _ = run(cost, BatchSize(20, start=start), 1500, 0.05)
    assert min(sizes[200:]) >= 20 and max(sizes[200:]) <= 40, "5 ms instead of 10"


def test_a_long_idle_time_does_not_forget_what_a_row_costs() -> None:
    batch = BatchSize(20)
    run(lambda n, _: 0.002 + 0.0001 * n, batch, 300, 0.1)
    run(lambda n, _: 0.002 + 0.0001 * n, batch, 2000, 0.1, seed=1, rows=1)
    sizes, seconds = run(lambda n, _: 0.002 + 0.0001 * n, batch, 50, 0.1, seed=2)
    assert max(seconds) < 0.020 and max(sizes) > 30


def test_no_size_is_tried_that_is_more_than_twice_the_largest_seen() -> None:
    sizes, _ = run(lambda n, _: 1e-5 + 1e-7 * n, BatchSize(20), 20)
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes.tolist()))
    assert sizes[-1] == 4096


def test_cost_beyond_any_target_gives_neither_the_smallest_nor_the_largest_batch() -> None:
    sizes, _ = run(lambda n, _: 0.050 + 0.001 * n, BatchSize(20), 200)
    assert 10 <= sizes[-1] <= 14, "the rows make up a fifth of the cost"


def test_a_backlog_that_cannot_keep_the_target_is_worked_off_in_larger_batches() -> None:
    batch = BatchSize(20)
    for waiting in [0] * 100 + [10_000] * 100:
        batch.done(batch.size, 0.005 + 0.0001 * batch.size, waiting)
    assert batch.size == pytest.approx(1000, rel=0.1), "5 ms are 5 % of 100 ms"
    batch.done(batch.size, 0.005 + 0.0001 * batch.size, 0)
    assert batch.size == pytest.approx(50, rel=0.1)


def test_empty_batches_tell_nothing() -> None:
    batch = BatchSize(20)
    batch.done(0, 5.0)
    assert batch.size == 1 and batch.cost == (0.0, 0.0)


@pytest.mark.parametrize("options", [{"target_ms": 0}, {"low": 0}, {"low": 9, "high": 8}, {"low": 4, "start": 3}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="BatchSize: wanted a target above 0"):
        BatchSize(**{"target_ms": 20, **options})


class Memory:
    """A model that takes so many rows; counts its calls."""

    def __init__(self, holds: int) -> None:
        self.holds = holds
        self.calls: list[int] = []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls.append(stop - start)
        if stop - start > self.holds:
            raise ModelMemoryError(f"model m: out of memory at {stop - start} rows")
        return list(range(start, stop))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(holds=st.integers(1, 300), batches=st.lists(st.integers(0, 1000), max_size=30), patience=st.integers(1, 20))
def test_every_row_is_scored_once_in_order_whatever_the_memory(holds: int, batches: list[int], patience: int) -> None:
    memory, chunks = Memory(holds), Chunks(patience)
    for rows in batches:
        found = chunks.run(rows, memory)
        assert [row for part in found for row in part] == list(range(rows))


def test_the_size_that_was_too_large_is_remembered() -> None:
    memory, chunks = Memory(100), Chunks()
    chunks.run(512, memory)
    assert memory.calls[:3] == [512, 256, 128] and chunks.limit == 64
    memory.calls.clear()
    chunks.run(512, memory)
    assert memory.calls == [64] * 8


def test_the_size_grows_again_when_memory_is_free() -> None:
    memory, chunks = Memory(100), Chunks(patience=10)
    chunks.run(512, memory)
    memory.holds = 1000
    for _ in range(100):
        chunks.run(512, memory)
    assert chunks.limit is not None and chunks.limit >= 512


def test_trying_a_larger_size_in_vain_becomes_rare() -> None:
    memory, chunks = Memory(100), Chunks(patience=10)
    chunks.run(512, memory)
    memory.calls.clear()
    for _ in range(2000):
        chunks.run(64, memory)
        chunks.run(512, memory)
    failed = sum(size > 100 for size in memory.calls)
    assert 1 <= failed <= 15 and len(memory.calls) > 10_000


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelMemoryError, match="out of memory at 1 rows"):
        Chunks().run(8, Memory(0))


def test_other_errors_pass_and_change_nothing() -> None:
    def call(start: int, stop: int) -> None:
        raise ModelError("model m: failed")

    chunks = Chunks()
    with pytest.raises(ModelError, match="model m: failed"):
        chunks.run(8, call)
    assert chunks.limit is None
