"""`streamml run`: a job on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.options import (
    BatchSize,
    CacheMb,
    CheckpointInterval,
    Demo,
    DemoEvents,
    Engine,
    EngineChoice,
    Explain,
    ExplainChoice,
    Job,
    Json,
    LatencyTarget,
    MetricsPort,
    Models,
    Overwrite,
    Param,
    Plain,
    Runner,
    Side,
    Sink,
    Source,
    StateDir,
    Workers,
)

__all__ = ["register", "run"]

_AFTER = "streamml.runner_options"


class RunCommand(TyperCommand):
    """Lets `--explain` stand alone, for a tree, and keeps what stands after `--` for a Beam runner."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out the value of a bare `--explain`, and put the options of a runner aside."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_AFTER] = args[:at], args[at + 1 :]
        filled: list[str] = []
        for i, arg in enumerate(args):
            bare = arg == "--explain" and args[i + 1 : i + 2] not in ([e.value] for e in Explain)
            filled += ["--explain", Explain.TREE] if bare else [arg]
        return super().parse_args(ctx, filled)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=RunCommand, epilog=CODES_HELP, no_args_is_help=True)(run)


def run(
    context: typer.Context,
    job: Job,
    source: Source = None,
    sink: Sink = None,
    side: Side = None,
    overwrite: Overwrite = False,
    state_dir: StateDir = None,
    checkpoint_interval: CheckpointInterval = "5s",
    cache_mb: CacheMb = 512,
    batch_size: BatchSize = 1024,
    latency_target: LatencyTarget = None,
    workers: Workers = None,
    engine: EngineChoice = Engine.LOCAL,
    runner: Runner = None,
    models: Models = None,
    param: Param = None,
    explain: ExplainChoice = None,
    plain: Plain = False,
    json: Json = False,
    metrics_port: MetricsPort = None,
    demo: Demo = False,
    demo_events: DemoEvents = 200_000,
    debug: Debug = False,
) -> None:
    """Run a job on this machine, or on a Beam runner.

    SIGTERM or Ctrl-C stops it cleanly, with a checkpoint and exit code 0. The same command then goes on from there.
    """
    from streamml.cli.demo import prepare, report
    from streamml.cli.loading import load_job
    from streamml.cli.running import Places, execute
    from streamml.cli.view import View
    from streamml.cli.wiring import named, side_uris, source_uris
    from streamml.cli.workers import execute_workers, wants_workers
    from streamml.errors import PlanError, UnsupportedError

    runner_options: list[str] = context.meta.get(_AFTER, [])
    loaded = load_job(job)
    folders = loaded.models(models or ())
    params = named("--param", param or (), "name=value")
    pipeline = loaded.pipeline(params, folders)
    if explain is not None:
        typer.echo(pipeline.tree() if explain is Explain.TREE else pipeline.mermaid())
        return
    pipeline.check()
    if engine is Engine.BEAM:
        from streamml.cli.beam import execute_beam

        local = {
            "--state-dir": state_dir, "--workers": workers, "--latency-target": latency_target,
            "--metrics-port": metrics_port, "--demo": demo, "--json": json,
        }  # fmt: skip
        execute_beam(
            pipeline, runner or "direct", runner_options, models=folders, batch_size=batch_size,
            sources=source or (), sink=sink, sides=side or (), overwrite=overwrite, local=local,
        )  # fmt: skip
        return
    if engine is Engine.FLINK:
        msg = f"--engine {engine}: `streamml submit {job}` runs a job on a Flink cluster"
        raise UnsupportedError(msg)
    if runner is not None or runner_options:
        what = f"--runner {runner}" if runner is not None else " ".join(runner_options)
        msg = f"{what}: only --engine beam takes a runner and options of it"
        raise PlanError(msg)
    if demo and (source or sink or side or state_dir or workers):
        msg = "--demo brings its own stream, output and state; leave --source, --sink, --side and the like out"
        raise PlanError(msg)

    shown = None
    view = View(loaded.name, plain=plain, json=json)
    if demo:
        shown = prepare(loaded, demo_events, view)
        source, sink, state_dir, overwrite = list(shown.sources), f"file:{shown.output}", shown.state_dir, True
    sink = sink or pipeline.sink_uri or "-"
    places = Places(
        source_uris(pipeline, source or ()), sink, side_uris(pipeline, sink, named("--side", side or (), "name=URI"))
    )
    if json and _is_stdout(sink, places.sides.values()):
        msg = "--json: standard output is for the figures, and the job's output goes there too; pass --sink URI"
        raise PlanError(msg)
    if _is_stream(sink):
        view = View(loaded.name, plain=plain, json=json, piped=True)

    from streamml.local import LocalOptions

    options = LocalOptions(
        state_dir=state_dir,
        checkpoint_interval=checkpoint_interval,
        batch_size=batch_size,
        latency_target=latency_target,
        cache_mb=cache_mb,
        overwrite=overwrite,
    )
    if wants_workers(workers, state_dir):
        outcome = execute_workers(
            pipeline, places, options, view,
            count=workers, job=job, params=params, models=folders, metrics=metrics_port, debug=debug,
        )  # fmt: skip
    else:
        outcome = execute(pipeline, places, options, view, models=folders, metrics=metrics_port)
    then = "the same command"
    if shown is not None:
        then = _command(job, shown.sources, sink, state_dir)
    view.outcome(outcome, then, state_dir)
    lines: dict[str, str] = {}
    if shown is not None and outcome.result.finished:
        lines = report(loaded, shown)
        view.rows("How good it is", lines)
        view.rows("Try next", _next(job, shown.folder))
    if json:
        import msgspec

        body = {"job": loaded.name, "pipeline": pipeline.name, "engine": engine.value, **outcome.as_dict()}
        if shown is not None:
            body |= {"folder": str(shown.folder), "report": lines}
        typer.echo(msgspec.json.encode(body))


def _is_stdout(sink: str, sides: Any) -> bool:
    return any(uri == "-" or uri.lower().startswith("stdout:") for uri in (sink, *sides))


def _is_stream(uri: str) -> bool:
    return uri == "-" or uri.lower().startswith(("stdout:", "stderr:"))


def _command(job: str, sources: tuple[str, ...], sink: str, state_dir: Path | None) -> str:
    words = ["streamml", "run", job]
    for source in sources:
        words += ["--source", source]
    return shlex.join([*words, "--sink", sink, "--state-dir", str(state_dir)])


def _next(job: str, folder: Path) -> dict[str, str]:
    return {
        f"streamml run {job} --explain": "the plan as a tree",
        f"head -3 {folder}/*.jsonl": "what went in and what came out",
        f"streamml state sizes {folder}/state": "what the job remembers",
        f"streamml run {job} --source file:IN.jsonl --sink file:OUT.jsonl": "your own stream",
    }
