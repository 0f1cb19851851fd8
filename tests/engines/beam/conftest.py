"""Tests that run Beam pipelines: skipped where Beam is missing. Workers run in this process: outputs are kept."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "conformance")]  # `beam_streams`, `conformance_cases`

# What Beam says of its own code and leaves to the garbage collector, at any time.
QUIET = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("apache_beam") is None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.beam)
            item.add_marker(pytest.mark.slow)
            for warning in QUIET:
                item.add_marker(pytest.mark.filterwarnings(warning))
            if missing:
                item.add_marker(pytest.mark.skip(reason="Beam is not installed: pip install 'streamml[beam]'"))


@pytest.fixture(scope="session")
def runner() -> str:
    """`prism`, where there is one for the installed Beam, else `direct`."""
    from streamml.testing.beam import BeamDriver

    with BeamDriver() as driver:
        assert driver.runner is not None
        return driver.runner


@pytest.fixture
def play(runner: str) -> Callable[..., dict[str, list[Any]]]:
    """Run what a function builds on a pipeline (PCollections by name), and return the elements of each."""

    def run(
        build: Callable[[Any], dict[str, Any]], *, streaming: bool = False, on: str = runner
    ) -> dict[str, list[Any]]:
        import apache_beam as beam

        from streamml.beam.collect import Collect, collecting
        from streamml.beam.script_job import pipeline_options

        with collecting() as (token, kept):
            with beam.Pipeline(options=pipeline_options(on, streaming=streaming)) as pipeline:
                names = build(pipeline)
                for name, pcoll in names.items():
                    _ = pcoll | f"keep {name}" >> beam.ParDo(Collect(token, name))
            return {name: [element for output, element in kept if output == name] for name in names}

    return run
