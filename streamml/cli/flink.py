"""`streamml submit` and `streamml flink`: jobs on a Flink cluster, and a cluster to try them on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.options import BatchSize, Job, Models, Param, Side, Sink, Source

__all__ = ["app", "register"]

app = typer.Typer(name="flink", help="Jobs on a Flink cluster.", no_args_is_help=True)
cluster_app = typer.Typer(name="cluster", help="A real cluster on this machine, to try jobs on.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")

_FOLDER = Path(".streamml-flink")

JobManager = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="REST API of the JobManager.", envvar="STREAMML_JOBMANAGER"),
]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, the start of it, or the pipeline's name (the newest one).")
]
Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder of the cluster's settings, logs and state.")]
Patience = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")]


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
    from streamml.cli.loading import load_job
    from streamml.cli.wiring import named, side_uris, source_uris
    from streamml.errors import PlanError
    from streamml.flink.submit import SubmitOptions
    from streamml.flink.submit import submit as send
    from streamml.times import to_millis

    loaded = load_job(job)
    folders = loaded.models(models or ())
    pipeline = loaded.pipeline(named("--param", param or (), "name=value"), folders)
    target = sink or pipeline.sink_uri
    if target is None:
        msg = "--sink: a submitted job has no terminal; pass --sink kafka://HOST:PORT/TOPIC or --sink file:FOLDER"
        raise PlanError(msg)
    options = SubmitOptions(
        jobmanager=jobmanager,
        parallelism=parallelism,
        checkpoint_interval=to_millis(checkpoint_interval, where="--checkpoint-interval"),
        state_backend=state_backend,
        from_savepoint=from_savepoint,
        python_archive=python_archive,
        latency=to_millis(latency, where="--latency"),
        batch_size=batch_size,
        settings=named("--set", setting or (), "name=value"),
    )
    sides = side_uris(pipeline, target, named("--side", side or (), "name=URI"))
    job_id = send(
        pipeline, source_uris(pipeline, source or ()), target, sides, options, module=loaded.module, models=folders
    )
    typer.echo(job_id)
    if not detach:
        _follow(_rest(jobmanager), job_id)


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


@app.command(epilog=CODES_HELP)
def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job; by default all.")] = None,
    jobmanager: JobManager = "localhost:8081",
    debug: Debug = False,
) -> None:
    """Show the cluster's jobs, or one with its operators, checkpoints and last failure."""
    rest = _rest(jobmanager)
    if job is None:
        overview = rest.overview()
        typer.echo(
            f"{overview['taskmanagers']} task managers, {overview['slots-available']} of "
            f"{overview['slots-total']} slots free"
        )
        for each in rest.jobs():
            typer.echo(f"{each['jid']}  {each['state'].lower():<10} {each['name']}")
        return
    job_id = rest.find(job)
    found = rest.job(job_id)
    typer.echo(f"{job_id}  {found['state'].lower()}  {found['name']}")
    for vertex in found["vertices"]:
        figures = vertex["metrics"]
        typer.echo(
            f"  {vertex['status'].lower():<10} x{vertex['parallelism']}  in {figures['read-records']}  "
            f"out {figures['write-records']}  {vertex['name']}"
        )
    counts = rest.checkpoints(job_id)["counts"]
    typer.echo(
        f"  checkpoints: {counts['completed']} completed, {counts['failed']} failed, {counts['restored']} restored"
    )
    if failure := rest.failure(job_id):
        typer.echo(f"  last failure: {failure}")


@app.command(epilog=CODES_HELP)
def savepoint(
    job: JobId,
    to: Annotated[str | None, typer.Option(metavar="DIR", show_default="the cluster's")] = None,
    jobmanager: JobManager = "localhost:8081",
    patience: Patience = 120.0,
    debug: Debug = False,
) -> None:
    """Take a savepoint of a running job and print where it is."""
    rest = _rest(jobmanager)
    typer.echo(rest.savepoint(rest.find(job), to, stop=False, patience=patience))


@app.command(epilog=CODES_HELP)
def stop(
    job: JobId,
    to: Annotated[str | None, typer.Option(metavar="DIR", show_default="the cluster's")] = None,
    jobmanager: JobManager = "localhost:8081",
    patience: Patience = 120.0,
    debug: Debug = False,
) -> None:
    """Stop a job with a savepoint and print where that is; `streamml submit --from-savepoint` goes on from it."""
    rest = _rest(jobmanager)
    typer.echo(rest.savepoint(rest.find(job), to, stop=True, patience=patience))


@app.command(epilog=CODES_HELP)
def cancel(
    job: JobId, jobmanager: JobManager = "localhost:8081", patience: Patience = 60.0, debug: Debug = False
) -> None:
    """End a job at once, without a savepoint."""
    rest = _rest(jobmanager)
    job_id = rest.find(job)
    rest.cancel(job_id)
    typer.echo(rest.wait(job_id, patience=patience).lower())


@app.command(epilog=CODES_HELP)
def logs(job: JobId, jobmanager: JobManager = "localhost:8081", debug: Debug = False) -> None:
    """Print why a job failed last."""
    rest = _rest(jobmanager)
    typer.echo(rest.failure(rest.find(job)) or "it has not failed")


@app.command(epilog=CODES_HELP)
def jars(debug: Debug = False) -> None:
    """Print the jars that a job takes along; fetches the Kafka connector the first time."""
    from streamml.flink.jars import jar, kafka_connector, python_jar

    for path in (jar(), python_jar(), kafka_connector()):
        typer.echo(path)


@cluster_app.command("start", epilog=CODES_HELP)
def start_cluster(
    folder: Folder = _FOLDER,
    port: Annotated[int, typer.Option(help="Port of the REST API and web page, on loopback.")] = 8081,
    task_managers: Annotated[int, typer.Option(min=1)] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each TaskManager.")] = 2,
    heap: Annotated[int, typer.Option(min=64, metavar="MIB", help="Heap for tasks of each TaskManager.")] = 384,
    patience: Patience = 60.0,
    debug: Debug = False,
) -> None:
    """Start a JobManager and TaskManagers on this machine, out of the pip package."""
    from streamml.flink.cluster import TrialCluster

    cluster = TrialCluster(folder, port=port, task_managers=task_managers, slots=slots, heap=heap)
    cluster.start(patience)
    typer.echo(f"http://127.0.0.1:{port}  {task_managers * slots} slots; logs in {folder / 'log'}")


@cluster_app.command("stop", epilog=CODES_HELP)
def stop_cluster(folder: Folder = _FOLDER, debug: Debug = False) -> None:
    """Stop the cluster that was started in a folder."""
    from streamml.flink.cluster import TrialCluster

    TrialCluster.open(folder).stop()


def _rest(jobmanager: str) -> Any:
    from streamml.flink.rest import FlinkRest

    return FlinkRest(jobmanager)
