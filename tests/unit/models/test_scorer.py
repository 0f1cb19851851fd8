"""`Scorer` and what it is made of: poison rows, deadlines, the breaker."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamml.errors import ModelError, PlanError
from streamml.models.breaker import Breaker, BreakerState
from streamml.models.deadline import DeadlineError, Deadlines
from streamml.models.isolate import Failure, isolate
from streamml.models.loaded import LoadedModel
from streamml.models.scorer import Scorer
from streamml.models.signature import Array, TensorSpec


class Fragile:
    """Doubles `x`; raises when a row is among `bad`, which it is told by value."""

    def __init__(self, bad: Sequence[float] = (), answer: Callable[[Array], Array] = lambda x: 2 * x) -> None:
        self.inputs = (TensorSpec("x", "float64", (None, 1)),)
        self.outputs = (TensorSpec("y", "float64", (None, 1)),)
        self.bad, self.answer, self.calls = set(bad), answer, 0

    def load(self) -> None: ...

    def warm_up(self, rows: Sequence[int] = ()) -> None: ...

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        if self.bad & set(inputs["x"].ravel().tolist()):
            msg = "a bad row"
            raise ModelError(msg)
        return {"y": self.answer(inputs["x"])}

    def close(self) -> None: ...


def scorer(runtime: Any, **options: Any) -> Scorer:
    return Scorer(LoadedModel(runtime, name="m", version=3, features=["x"]), (), {"y": 0}, **options)


@given(st.integers(1, 60), st.sets(st.integers(0, 59), min_size=1, max_size=5))
def test_only_the_bad_rows_are_found_and_one_costs_a_logarithm_of_calls(rows: int, bad: set[int]) -> None:
    bad = {row % rows for row in bad}
    calls = 0

    def attempt(part: list[int]) -> None:
        nonlocal calls
        calls += 1
        if bad & set(part):
            raise ValueError

    failures: dict[int, Failure] = {}
    assert isolate(list(range(rows)), ValueError(), attempt, failures) == [r for r in range(rows) if r not in bad]
    assert set(failures) == bad
    if len(bad) == 1:
        assert calls <= math.ceil(math.log2(rows)) + 2


def test_a_failure_that_does_not_come_again_blames_no_row() -> None:
    failures: dict[int, Failure] = {}
    assert isolate(list(range(9)), ValueError(), lambda part: None, failures) == list(range(9))
    assert not failures


def test_a_model_that_fails_on_everything_is_not_called_for_every_row() -> None:
    calls: list[int] = []

    def attempt(part: list[int]) -> None:
        calls.append(len(part))
        raise ValueError

    failures: dict[int, Failure] = {}
    assert isolate(list(range(10_000)), ValueError(), attempt, failures) == []
    assert len(failures) == 10_000
    assert len(calls) < 150


def test_bad_rows_have_their_error_and_the_others_their_score() -> None:
    outcome = scorer(Fragile(bad=[2.0, 5.0])).score([[1.0, 2.0, None, "x", 5.0, 6.0]], 6, 0, inf)
    assert outcome.columns == {"y": [2.0, None, None, None, None, 12.0]}
    assert {row: failure.reason for row, failure in outcome.failures.items()} == {
        1: "error",
        2: "input",
        3: "input",
        4: "error",
    }
    assert "input x is missing" in str(outcome.failures[2].error)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_a_failure_of_its_row(odd: float) -> None:
    outcome = scorer(Fragile(answer=lambda x: np.where(x == 2, odd, x))).score([[1.0, 2.0, 3.0]], 3, 0, inf)
    assert outcome.columns == {"y": [1.0, None, 3.0]}
    assert str(outcome.failures[1].error) == f"m:3: output 'y' is {odd}"


def test_an_answer_of_the_wrong_shape_fails_and_is_not_spread_over_other_rows() -> None:
    outcome = scorer(Fragile(answer=lambda x: x[:-1])).score([[1.0, 2.0, 3.0]], 3, 0, inf)
    assert outcome.columns == {"y": [None] * 3}
    assert "wanted" in str(outcome.failures[0].error)


def test_a_model_that_hangs_is_left_behind_at_the_deadline_and_frees_its_thread_later() -> None:
    gate = threading.Event()

    def wait(x: Array) -> Array:
        gate.wait()
        return x

    deadlines = Deadlines(limit=2)
    slow = scorer(Fragile(answer=wait), deadlines=deadlines)
    for _ in range(3):  # the third is not even tried: two are stuck
        outcome = slow.score([[1.0, 2.0]], 2, 0, time.perf_counter() + 0.02)
        assert {failure.reason for failure in outcome.failures.values()} == {"deadline"}
    gate.set()
    while not all(worker.idle for worker in deadlines._stuck):
        time.sleep(0.001)
    outcome = slow.score([[1.0, 2.0]], 2, 0, time.perf_counter() + 60)
    assert outcome.columns == {"y": [1.0, 2.0]}
    deadlines.close()


def test_what_a_model_raises_under_a_deadline_is_what_it_raised() -> None:
    deadlines = Deadlines()
    with pytest.raises(ZeroDivisionError):
        deadlines.call(lambda: 1 // 0, 60)
    with pytest.raises(DeadlineError, match="no time was left"):
        deadlines.call(lambda: 1, 0)
    deadlines.close()


def test_the_breaker_opens_by_share_and_closes_by_a_probe() -> None:
    runtime = Fragile(answer=lambda x: x[:0])
    shy = scorer(runtime, breaker=BreakerState(Breaker(share=0.5, count=4, pause="1s", probes=2)))
    assert {f.reason for f in shy.score([[1.0] * 5], 5, 0, inf).failures.values()} == {"error"}
    calls = runtime.calls
    assert {f.reason for f in shy.score([[1.0] * 5], 5, 999, inf).failures.values()} == {"breaker"}
    assert runtime.calls == calls
    outcome = shy.score([[1.0] * 5], 5, 1000, inf)  # the probe fails: two rows are tried, three are not
    assert [outcome.failures[row].reason for row in range(5)] == ["error", "error", "breaker", "breaker", "breaker"]
    runtime.answer = lambda x: x
    assert not scorer(runtime).score([[1.0]], 1, 0, inf).failures
    assert shy.score([[1.0, 2.0, 3.0]], 3, 2000, inf).columns == {"y": [1.0, 2.0, 3.0]}
    assert shy.breaker is not None
    assert not shy.breaker.is_open


def test_few_failures_do_not_open_the_breaker() -> None:
    state = BreakerState(Breaker(share=0.5, count=10, window="10s"))
    state.note(9, 9, now=0)
    assert not state.is_open
    state.note(1000, 0, now=9_000)
    state.note(400, 400, now=12_000)  # of the last ten seconds, 1400 rows, 400 failed
    assert not state.is_open
    state.note(400, 400, now=30_000)
    assert state.is_open


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.1}, {"count": 0}, {"pause": "soon"}, {"probes": 0}])
def test_a_breaker_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="Breaker"):
        Breaker(**options)
