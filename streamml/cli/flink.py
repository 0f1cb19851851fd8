"""`streamml submit` and `streamml flink`: jobs on a Flink cluster, and a cluster to try them on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from streamml.cli import flink_cluster, flink_jobs
from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.flink_jobs import JobManager, rest_of
from streamml.cli.options import BatchSize, Job, Models, Param, Side, Sink, Source

__all__ = ["app", "register"]

app = typer.Typer(name="flink", help="Jobs on a Flink cluster.", no_args_is_help=True)
flink_jobs.register(app)
flink_cluster.register(app)


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.command(epilog=CODES_HELP, no_args_is_help=True)(submit)
    main.add_typer(app, name="flink")


def submit(
    job: Job,
    source: Source = None,
    sink: Sink = None,
    side: Side = None,
    jobmanager: JobManager = "localhost:8081",
    parallelism: Annotated[int, typer.Option(min=1, help="Subtasks of keyed stages and sources.")] = 1,
    checkpoint_interval: Annotated[
        str, typer.Option(metavar="DURATION", help="Time between checkpoints, which also make output visible.")
    ] = "10s",
    state_backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="hashmap, rocksdb or forst.", show_default="the cluster's")
    ] = None,
    from_savepoint: Annotated[
        str | None, typer.Option(metavar="PATH", help="Savepoint or checkpoint to go on from.", show_default="none")
    ] = None,
    python_archive: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Packed Python environment for workers without one.", show_default="none"),
    ] = None,
    latency: Annotated[str, typer.Option(metavar="DURATION", help="How long a record may wait for others.")] = "50ms",
    batch_size: BatchSize = 1024,
    models: Models = None,
    param: Param = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One of Flink's settings. Repeatable.", show_default="none"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once it is submitted, with its id.")] = False,
    debug: Debug = False,
) -> None:
    """Run a job on a Flink cluster.

    The job's file, the modules beside it and the model bundles are sent along. Files are those that the workers see.
    Without `--detach` the command stays until the job ends and shows its state; Ctrl-C leaves the job running.
    """
    from streamml.cli.flink_submission import Submission

    submission = Submission(
        job=job,
        source=tuple(source or ()),
        sink=sink,
        side=tuple(side or ()),
        parallelism=parallelism,
        checkpoint_interval=checkpoint_interval,
        state_backend=state_backend,
        from_savepoint=from_savepoint,
        python_archive=python_archive,
        latency=latency,
        batch_size=batch_size,
        models=tuple(map(str, models or ())),
        param=tuple(param or ()),
        setting=tuple(setting or ()),
        folder=str(Path.cwd()),
    )
    job_id = submission.send(jobmanager)
    typer.echo(job_id)
    if not detach:
        _follow(rest_of(jobmanager), job_id)


def _follow(rest: Any, job: str) -> None:
    """Say a job's state when it changes, until it ends."""
    from streamml.errors import StreamMLError
    from streamml.flink.rest import ENDED

    last = ""
    while last not in ENDED:
        state = rest.state(job)
        if state != last:
            typer.echo(f"{state.lower()}", err=True)
            last = state
        time.sleep(0.5)
    if last == "FAILED":
        msg = f"job {job} failed: {rest.failure(job)}"
        raise StreamMLError(msg)
