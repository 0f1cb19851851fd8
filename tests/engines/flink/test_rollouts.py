"""The same history of rollouts gives the same versions and scores on Flink as on the embedded engine."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.contract import Context, KeyedOperator
from streamml.models import Bundle, Registry, Split
from streamml.operators import Infer, LastValue
from streamml.records import Record
from streamml.testing import event, run

pytestmark = [pytest.mark.flink, pytest.mark.slow, pytest.mark.timeout(300)]


class Same(KeyedOperator):
    """Gives the stage a key."""

    def on_event(self, event: Record, ctx: Context) -> None:
        ctx.emit(event)


def write_times(*args: Any, **options: Any) -> Path:
    path = Path(__file__).parents[2] / "unit" / "operators" / "conftest.py"
    spec = importlib.util.spec_from_file_location("operators_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.write_times(*args, **options)
    return made


def registry_with_a_history(folder: Path) -> Registry:
    registry = Registry(folder / "models")
    for version in (1, 2, 3):
        model = write_times(folder / f"v{version}.onnx", 10.0**version, fragile=version == 3)
        golden = {"x": np.arange(5, dtype=np.float32).reshape(-1, 1)}
        Bundle.write(
            folder / "models" / "times" / str(version),
            model,
            name="times",
            version=version,
            features=["x"],
            golden=golden,
        )

    def roll(action: str, effective: int, champion: int, **more: Any) -> None:
        registry.append("times", "prod", action, effective=effective, champion=champion, who="", why="", at=0, **more)

    roll("promote", 0, 1)
    roll("promote", 4_000, 2)
    roll("canary", 7_000, 2, splits=(Split(3, 40),))
    roll("promote", 9_000, 3)
    return registry


@pytest.mark.parametrize("parallelism", [1, 2])
def test_versions_and_scores_are_those_of_the_embedded_engine(flink: None, tmp_path: Path, parallelism: int) -> None:
    registry = registry_with_a_history(tmp_path)
    rnd = random.Random(3)
    script = []
    for number in range(600):
        x = 500.0 if rnd.random() < 0.02 else float(number % 50)  # version 3 fails on 500
        script.append(event(f"k{rnd.randrange(60)}", t=f"{rnd.randrange(12_000)}ms", x=x))
    operators = [Same(), Infer("times@prod", inputs=["x"], outputs={"y": 0}, fallback=LastValue("1h"))]
    places = (registry.place,)

    def outcome(result: Any) -> dict[str, Any]:
        main: dict[str, list[Any]] = {}
        for row in result.main:
            main.setdefault(row.key, []).append((row.timestamp, row.x, row.y, row.model_version, row.degraded))
        return {"main": main, "rejected": sorted(r["id"] for r in result.side("rejected"))}

    wanted = outcome(run(operators, script, models=places))
    assert {row[3] for rows in wanted["main"].values() for row in rows} == {"times:1", "times:2", "times:3"}
    assert any(row[4] == "error" for rows in wanted["main"].values() for row in rows)
    assert outcome(run(operators, script, engine="flink", workers=parallelism, models=places)) == wanted
