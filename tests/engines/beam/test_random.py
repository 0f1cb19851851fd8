"""Random scripts: what Beam gives is what the embedded engine gives."""

from __future__ import annotations

import random
from typing import Any

import pytest

from streamml.operators import Dedupe, Features, Map, Session, Window, count, last, since_last, sliding, total, trailing
from streamml.testing import Case, RunOptions, advance, event, run
from streamml.testing.beam import BeamDriver
from streamml.testing.compare import compare, expected_of
from streamml.testing.probes import Alarm, BatchAlarm, Remember
from streamml.testing.script import Step

FEW = {"rows": count(), "sum": total("x"), "idle": since_last(), "newest": last("x")}


def tenth(e: Any) -> dict[str, float]:
    return {"tenth": 10 / e.n}


CHAINS: dict[str, list[Any]] = {
    "dedupe": [Dedupe("n", ttl="3s")],
    "states of each kind": [Remember(ttl="4s")],
    "timers": [Alarm(delay="2s", name="one"), BatchAlarm(delay="3s", name="two")],
    "features": [Features(trailing("3s", tile="500ms"), FEW, allowed_lateness="1s")],
    "session": [Session(gap="2s", fields=FEW, allowed_lateness="2s")],
    "windows with corrections": [Window(sliding("4s", slide="1s"), FEW, allowed_lateness="3s", early="1500ms")],
    "a chain": [Map(tenth), Dedupe("n", ttl="2s"), Features(trailing("3s", tile="1s"), FEW), Alarm(delay="1s")],
}


def script(seed: int, steps: int = 14) -> list[Step]:
    draw = random.Random(seed)
    found: list[Step] = []
    watermark = 0
    for _ in range(steps):
        if draw.random() < 0.3:
            watermark += draw.randrange(6) * 500
            found.append(advance(watermark))
        else:
            odd: dict[str, Any] = draw.choice([{}, {}, {}, {}, {"poison": True}, {"cancel": True}, {"x": None}])
            fields = {"n": draw.randrange(4), "x": draw.choice([-1.5, 0, 1, 2.25]), **odd}
            found.append(event(draw.choice(["a", "b", ("c", 1)]), t=draw.randrange(25) * 500, **fields))
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("chain", CHAINS)
def test_random_scripts_give_what_the_embedded_engine_gives(chain: str, runner: str) -> None:
    with BeamDriver(runner) as driver:
        for seed in range(3 if runner == "prism" else 1):
            steps = script(seed * 100 + len(chain))
            case = Case(f"{chain}, seed {seed}", CHAINS[chain], steps)
            expected = expected_of(run(CHAINS[chain], steps))
            found = compare(driver.run(case, RunOptions(batch_size=2)), expected)
            assert found == [], "\n".join([*found, str(case)])
