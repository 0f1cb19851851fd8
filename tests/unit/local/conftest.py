"""A small pipeline run to its end, with everything in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.memory import MemorySink, MemorySource
from streamml.local import LocalEngine, LocalOptions, RunResult

NOW = 1_800_000_000_000


class Ran:
    """What a run gave."""

    def __init__(self, result: RunResult, main: list[dict[str, Any]], sides: dict[str, list[dict[str, Any]]]) -> None:
        self.result = result
        self.main = main
        self.sides = sides

    def reasons(self) -> list[str]:
        return [record["reason"] for record in self.sides["rejected"]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    def run(
        pipeline: sml.Pipeline, items: Any, *, now: int = NOW, sink: Any = None, sides: Any = None, **options: Any
    ) -> Ran:
        source = items if hasattr(items, "poll") else MemorySource(items)
        main = sink or MemorySink()
        made = sides or {name: MemorySink() for name in pipeline.sides}
        engine = LocalEngine(
            pipeline,
            {spec.tag: source for spec in pipeline.sources},
            main,
            made,
            options=LocalOptions(fsync=False, poll=0, **options),
            clock=lambda: now,
        )
        result = engine.run()
        return Ran(
            result,
            getattr(main, "rows", []),
            {n: s.rows for n, s in made.items() if isinstance(s, MemorySink)},
        )

    return run
