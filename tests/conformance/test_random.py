"""Random scripts against the reference.

A failure prints the shrunk script as a `Case`: paste it into `conformance_cases`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamml.operators import (
    Dedupe,
    Features,
    Filter,
    FlatMap,
    Map,
    Session,
    Window,
    all_time,
    count,
    distinct,
    ewma,
    last,
    maximum,
    mean,
    minimum,
    quantile,
    rate,
    session,
    since_last,
    sliding,
    total,
    trailing,
    tumbling,
    variance,
)
from streamml.testing import Case, Engine, Expected, RunOptions, advance, checkpoint, crash, event, idle, restart
from streamml.testing.compare import compare
from streamml.testing.probes import Alarm, BatchAlarm, Judge, Remember, WallAlarm
from streamml.testing.reference import answer
from streamml.testing.script import Step

# `pytest --hypothesis-profile=ci` tries more, and the same ones each time.
EXAMPLES = 400 if settings.get_current_profile_name() == "ci" else 40

EVERYTHING = {
    "n_": count(),
    "total": total("x"),
    "mean": mean("x"),
    "variance": variance("x"),
    "least": minimum("x"),
    "most": maximum("x"),
    "last": last("x"),
    "since": since_last(),
    "ewma": ewma("x", half_life="3s"),
    "rate": rate(per="2s"),
    "distinct": distinct("n"),
    "median": quantile("x", 0.5),
}
FEW = {"rows": count(), "sum": total("x"), "idle": since_last()}


def tenth(e: Any) -> dict[str, float]:
    return {"tenth": 10 / e.n}


def copies(e: Any) -> list[dict[str, int]]:
    return [{"copy": i} for i in range(e.n)]


CHAINS: dict[str, list[Any]] = {
    "dedupe": [Dedupe("n", ttl="3s")],
    "remember": [Remember(ttl="4s")],
    "remember for ever": [Remember()],
    "alarm": [Alarm(delay="2s")],
    "alarm by batches": [BatchAlarm(delay="2s")],
    "wall clock": [WallAlarm(delay="1s"), Judge()],
    "features of all time": [Features(all_time(), EVERYTHING)],
    "features, tumbling": [Features(tumbling("4s", tile="2s"), EVERYTHING, allowed_lateness="3s")],
    "features, trailing": [Features(trailing("3s", tile="500ms"), EVERYTHING, allowed_lateness="1s")],
    "session": [Session(gap="2s", fields=EVERYTHING, allowed_lateness="2s")],
    "window": [Window(tumbling("2s"), EVERYTHING)],
    "window, sliding, with corrections": [
        Window(sliding("4s", slide="1s"), EVERYTHING, allowed_lateness="3s", early="1500ms")
    ],
    "window, session": [Window(session("2s"), EVERYTHING)],
    "window, session, with corrections": [
        Window(session("1500ms"), EVERYTHING, allowed_lateness="3s", early="1s"),
    ],
    "stateless": [Filter(lambda e: e.n != 2), Map(tenth), FlatMap(copies)],
    "a chain": [
        Map(tenth),
        Dedupe("n", ttl="2s"),
        Features(trailing("3s", tile="1s"), FEW),
        Judge(allowed_lateness="1s"),
        Window(tumbling("3s"), {"windowed": count(), "most": maximum("sum")}, allowed_lateness="2s"),
        Alarm(delay="1s"),
    ],
}

events = st.builds(
    event,
    st.sampled_from(["a", "b", ("c", 1)]),
    t=st.integers(0, 24).map(lambda half: half * 500),
    n=st.integers(0, 3),
    x=st.sampled_from([-1.5, 0, 1, 2.25, 1e6]),
)
odd_events = st.builds(
    lambda plain, odd: event(plain.key, t=plain.t, **{**plain.fields, **odd}),
    events,
    st.sampled_from(
        [
            {"poison": True},
            {"fatal": True},
            {"cancel": True},
            {"clear": True},
            {"alarm": "b"},
            {"x": None},
            {"x": float("nan")},
        ]
    ),
)
faults = st.one_of(st.builds(checkpoint), st.builds(crash), st.builds(restart), st.just(idle("700ms")))
steps = st.lists(
    st.one_of(events, events, odd_events, st.integers(0, 6).map(lambda half: ("advance", half * 500)), faults),
    max_size=14,
)


def legal(drawn: list[Any]) -> list[Step]:
    """Turn drawn steps of the watermark into watermarks."""
    script: list[Step] = []
    watermark = 0
    for step in drawn:
        if isinstance(step, tuple):
            watermark += step[1]
            step = advance(watermark)
        script.append(step)
    return script


@pytest.mark.parametrize("chain", CHAINS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=steps,
    batch_size=st.sampled_from([1, 2, 3, 5, 1000]),
    every=st.sampled_from([0, 1, 3]),
    end=st.booleans(),
)
def test_random_scripts_give_what_the_reference_gives(
    engine: Engine, chain: str, drawn: list[Any], batch_size: int, every: int, end: bool
) -> None:
    case = Case("random", CHAINS[chain], legal(drawn), end=end)
    expected = answer(case)
    found = compare(engine.run(case, RunOptions(batch_size=batch_size, checkpoint_every=every)), expected)
    if found:
        pasteable = Case(f"found in {chain}", case.operators, case.script, Expected(expected.main, expected.sides), end)
        pytest.fail("\n".join([*found, f"with batches of {batch_size}, a checkpoint every {every}", str(pasteable)]))
