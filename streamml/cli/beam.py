"""`streamml run --engine beam`: a job on a Beam runner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from streamml.cli.wiring import named, side_uris, source_uris
from streamml.errors import PlanError, UnsupportedError

if TYPE_CHECKING:
    from streamml.pipeline import Pipeline

__all__ = ["execute_beam"]


def execute_beam(
    pipeline: Pipeline,
    runner: str,
    arguments: Sequence[str],
    *,
    models: tuple[str, ...],
    batch_size: int,
    sources: Iterable[str],
    sink: str | None,
    sides: Iterable[str],
    overwrite: bool,
    local: Mapping[str, Any],
) -> None:
    """Run a pipeline on a Beam runner until its input ends.

    Args:
        pipeline: what to run.
        runner: its name.
        arguments: the runner's own options.
        models: folders of bundles, as the workers see them.
        batch_size: most records that are handed on at once.
        sources: what was typed, as for the next two.
        sink: of the main output.
        sides: of side outputs.
        overwrite: replace output that is there.
        local: options that only the embedded engine has, with what was given.

    Raises:
        UnsupportedError: Beam is missing, or an option of the embedded engine was given.
        StreamMLError: the job failed.
    """
    if given := [name for name, value in local.items() if value]:
        msg = f"{given[0]}: the embedded engine has it; with --engine beam state, workers and figures are the runner's"
        raise PlanError(msg)
    try:
        from streamml.beam.job import BeamPlaces, run_job, runner_options
        from streamml.beam.settings import StageSettings
        from streamml.beam.sinks import shard_glob
        from streamml.beam.splits import scheme_of
    except ModuleNotFoundError as exc:
        if exc.name is None or not exc.name.startswith("apache_beam"):
            raise
        msg = "--engine beam needs Apache Beam: pip install 'streamml[beam]'"
        raise UnsupportedError(msg) from exc
    target = sink or pipeline.sink_uri or "-"
    places = BeamPlaces(
        source_uris(pipeline, sources),
        target,
        side_uris(pipeline, target, named("--side", sides, "name=URI")),
        overwrite,
    )
    options = runner_options(runner, arguments)
    state = run_job(pipeline, places, StageSettings(batch_size=batch_size, models=models), options)
    shown = shard_glob(target) if target != "-" and scheme_of(target) == "file" else target
    typer.echo(f"{pipeline.name}: {state.lower()} on {runner}, output in {shown}", err=True)
