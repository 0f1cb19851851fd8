"""Random scripts on Flink, all as one job: each key has the rows that it has on the embedded engine."""

from __future__ import annotations

import dataclasses
import os
import random
from typing import Any

import msgspec
import pytest
from test_random import CHAINS  # the chains of the conformance suite

from streamml.connectors.encode import Encoder
from streamml.testing import Case, Expected, RunOptions, advance, event
from streamml.testing.compare import compare, expected_of
from streamml.testing.flink import FlinkDriver
from streamml.testing.local import LocalDriver
from streamml.testing.script import Step

pytestmark = [
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SEED = int(os.environ.get("STREAMML_SEED", "7"))
SCRIPTS = int(os.environ.get("STREAMML_SCRIPTS", "30"))
STEPS = 60
KEYS = ["a", "b", ("c", 1), 7, "ä"]
ODD: list[dict[str, Any]] = [
    {"poison": True},
    {"fatal": True},
    {"cancel": True},
    {"clear": True},
    {"alarm": "b"},
    {"x": None},
    {"x": float("nan")},
]
HERE = [name for name in CHAINS if name != "wall clock"]  # Flink's goes on by itself


def script(rnd: random.Random) -> list[Step]:
    """Return events around a watermark that moves on: in time, late, and far too late."""
    steps: list[Step] = []
    watermark = 0
    for _ in range(STEPS):
        if rnd.random() < 0.15:
            watermark += rnd.randrange(7) * 500
            steps.append(advance(watermark))
            continue
        fields: dict[str, Any] = {"n": rnd.randrange(4), "x": rnd.choice([-1.5, 0, 1, 2.25, 1e6])}
        if rnd.random() < 0.08:
            fields |= rnd.choice(ODD)
        time = max(0, watermark + rnd.randrange(-8, 12) * 500)
        steps.append(event(rnd.choice(KEYS), t=time, **fields))
    return steps


def as_written(expected: Expected) -> Expected:
    """Return side outputs as they are in JSON, where NaN is null; Flink's are read from there."""
    lines = {name: Encoder().encode_records(records).splitlines() for name, records in expected.sides.items()}
    return dataclasses.replace(expected, sides={name: list(map(msgspec.json.decode, lines[name])) for name in lines})


def test_random_scripts_give_what_the_embedded_engine_gives(flink: None) -> None:
    cases = []
    for number in range(SCRIPTS):
        rnd = random.Random(f"{SEED}/{number}")
        chain = HERE[number % len(HERE)]
        cases.append(Case(f"{number}: {chain}", CHAINS[chain], script(rnd), end=rnd.random() < 0.7))
    wanted = [as_written(expected_of(LocalDriver().run(case, RunOptions(batch_size=7)))) for case in cases]
    assert sum(len(each.main) for each in wanted) > SCRIPTS * STEPS / 4
    assert sum(len(side) for each in wanted for side in each.sides.values()) > SCRIPTS
    wrong: list[str] = []
    for case, expected, result in zip(cases, wanted, FlinkDriver().run_many(cases), strict=True):
        if found := compare(result, expected):
            wrong += [f"{case.name} (STREAMML_SEED={SEED}):", *found, str(case)]
    assert wrong == [], "\n".join(wrong)
