"""With a latency target the engine asks for as many records as the target allows, and never waits for more."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.memory import MemorySource
from streamml.errors import PlanError
from streamml.local import LocalOptions
from streamml.records import Batch


class Costs(sml.Operator):
    """Costs so many seconds a batch and so many a row, on a clock that stands still otherwise."""

    fixed: float = 0.002
    per_row: float = 0.0004

    def on_batch(self, batch: Batch, ctx: Any) -> Batch:
        CLOCK.now += self.fixed + self.per_row * len(batch)
        return batch


class Clock:
    """Stands in for the module `time` in the engine's loop."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamml.local.engine.time", CLOCK)


class Asked(MemorySource):
    """Keeps how many records it was asked for, and gives at most so many."""

    lag_unit = "bytes"  # so that the engine knows of no backlog

    def __init__(self, items: Any, most: int = 10**6) -> None:
        super().__init__(items)
        self.asked: list[int] = []
        self.most = most

    def poll(self, limit: int, timeout: float) -> Any:
        self.asked.append(limit)
        return super().poll(min(limit, self.most), timeout)


class Row(sml.Event, id="n", time="ts"):
    n: int
    ts: int


def costing(**cost: float) -> sml.Pipeline:
    return sml.Pipeline("costs", schema=Row).then(Costs(**cost))


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n, "ts": n} for n in range(count)]


def test_the_size_settles_where_a_batch_costs_half_the_target(run: Callable[..., Any]) -> None:
    """10 ms less 2 ms are 20 rows of 0.4 ms."""
    source = Asked(rows(1500))
    found = run(costing(), source, latency_target="20ms")
    assert [row["n"] for row in found.main] == list(range(1500))
    assert source.asked[0] == 1
    assert set(source.asked[12:]) <= {19, 20}
    assert max(source.asked) <= 20, "not even at the start"


def test_the_size_never_exceeds_the_batch_size(run: Callable[..., Any]) -> None:
    source = Asked(rows(5000))
    found = run(costing(fixed=0.0, per_row=0.0), source, latency_target="1s", batch_size=64)
    assert len(found.main) == 5000
    assert max(source.asked) == 64


def test_records_that_come_one_by_one_are_scored_one_by_one(run: Callable[..., Any]) -> None:
    source = Asked(rows(100), most=1)
    assert len(run(costing(fixed=0.0, per_row=0.0), source, latency_target="20ms").main) == 100
    assert len(source.asked) <= 102, "one poll for each record: it did not wait for a second one"


def test_a_backlog_is_worked_off_in_larger_batches(run: Callable[..., Any]) -> None:
    """8 ms a batch leave 5 rows within the target, but 16 thousand events that wait are late in any case."""
    source = MemorySource(rows(16_000))
    asked: list[int] = []
    poll = source.poll
    source.poll = lambda limit, timeout: asked.append(limit) or poll(limit, timeout)  # type: ignore[method-assign]
    run(costing(fixed=0.004, per_row=0.0002), source, latency_target="10ms")
    assert max(asked) == pytest.approx(400, abs=5), "4 ms are 5 % of 80 ms"


@pytest.mark.parametrize(
    ("target", "said"), [("0s", "latency_target: wanted at least 1ms"), ("soon", "latency_target")]
)
def test_a_target_that_is_none_is_refused(target: str, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        LocalOptions(latency_target=target)
