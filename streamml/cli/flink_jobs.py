"""`streamml flink status`, `stop`, `rescale` and so on: jobs that run on a Flink cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP

__all__ = ["JobManager", "register", "rest_of"]

JobManager = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="REST API of the JobManager.", envvar="STREAMML_JOBMANAGER"),
]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, the start of it, or the pipeline's name (the newest one).")
]
Patience = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")]
SavepointDir = Annotated[
    str | None, typer.Option("--to", metavar="DIR", help="Where to write it.", show_default="the cluster's")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, metrics, logs, savepoint, stop, rescale, cancel):
        app.command(epilog=CODES_HELP)(command)


def rest_of(jobmanager: str) -> Any:
    """Return the REST API at an address."""
    from streamml.flink.rest import FlinkRest

    return FlinkRest(jobmanager)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job; by default all.")] = None,
    jobmanager: JobManager = "localhost:8081",
    debug: Debug = False,
) -> None:
    """Show the cluster's jobs, or one with its operators, checkpoints and last failure."""
    rest = rest_of(jobmanager)
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


def savepoint(
    job: JobId,
    to: SavepointDir = None,
    jobmanager: JobManager = "localhost:8081",
    patience: Patience = 120.0,
    debug: Debug = False,
) -> None:
    """Take a savepoint of a running job and print where it is."""
    rest = rest_of(jobmanager)
    typer.echo(rest.savepoint(rest.find(job), to, stop=False, patience=patience))


def stop(
    job: JobId,
    to: SavepointDir = None,
    jobmanager: JobManager = "localhost:8081",
    patience: Patience = 120.0,
    debug: Debug = False,
) -> None:
    """Stop a job with a savepoint and print where that is; `streamml submit --from-savepoint` goes on from it."""
    rest = rest_of(jobmanager)
    typer.echo(rest.savepoint(rest.find(job), to, stop=True, patience=patience))


def cancel(
    job: JobId, jobmanager: JobManager = "localhost:8081", patience: Patience = 60.0, debug: Debug = False
) -> None:
    """End a job at once, without a savepoint."""
    rest = rest_of(jobmanager)
    job_id = rest.find(job)
    rest.cancel(job_id)
    typer.echo(rest.wait(job_id, patience=patience).lower())


def metrics(
    job: JobId,
    jobmanager: JobManager = "localhost:8081",
    as_json: Annotated[bool, typer.Option("--json", help="As a list of JSON objects.")] = False,
    debug: Debug = False,
) -> None:
    """Show the library's metrics of a running job, summed over subtasks; of percentiles and gauges the largest."""
    import msgspec

    from streamml.flink.reports import figures

    rest = rest_of(jobmanager)
    found = figures(rest, rest.find(job))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    operator = ""
    for figure in found:
        if figure.operator != operator:
            operator = figure.operator
            typer.echo(operator)
        counted = figure.name.partition("{")[0].endswith(("_total", "_count", "_sum"))
        typer.echo(f"  {figure.sum if counted else figure.high:>14,.6g}  {figure.name}")


def logs(
    job: JobId,
    jobmanager: JobManager = "localhost:8081",
    failures: Annotated[int, typer.Option(min=1, help="Most failures to show.")] = 10,
    lines: Annotated[int, typer.Option(min=0, help="Last lines of the log; 0 for none.")] = 50,
    debug: Debug = False,
) -> None:
    """Print why a job failed, each time with when and where, and the end of the log that tells most of it.

    That is the log of the TaskManager on which it failed last, or on which it runs.
    """
    from streamml.flink import reports

    rest = rest_of(jobmanager)
    job_id = rest.find(job)
    found = reports.failures(rest, job_id, failures)
    for failure in found:
        where = f"{failure.task or 'the job'} on {failure.task_manager or 'no task manager'}"
        typer.echo(f"{failure.time}  {where}")
        for cause in failure.causes:
            typer.echo(f"  {cause}")
    if not found:
        typer.echo("it has not failed")
    if lines:
        whose, tail = reports.log_tail(rest, job_id, lines)
        typer.echo(f"\nlog of {whose}:")
        for line in tail:
            typer.echo(line)


def rescale(
    job: JobId,
    parallelism: Annotated[int, typer.Option(min=1, help="Subtasks of keyed stages and sources.")],
    to: SavepointDir = None,
    jobmanager: JobManager = "localhost:8081",
    patience: Patience = 120.0,
    debug: Debug = False,
) -> None:
    """Run a job on another number of subtasks: stop it with a savepoint, and submit it again from there.

    It is submitted with the arguments that `streamml submit` was given, in the folder where that was called, and its
    file as it is now. What could keep it from starting is looked at before it is stopped.
    """
    import msgspec

    from streamml.cli.flink_submission import Submission
    from streamml.errors import StreamMLError

    rest = rest_of(jobmanager)
    job_id = rest.find(job)
    submission = msgspec.structs.replace(Submission.of(rest, job_id), parallelism=parallelism)
    held = max(vertex["parallelism"] for vertex in rest.job(job_id)["vertices"])
    submission.check(rest, freed=held)
    place = rest.savepoint(job_id, to, stop=True, patience=patience)
    typer.echo(f"stopped, savepoint {place}", err=True)
    try:
        rest.wait(job_id, patience=patience)
        new = msgspec.structs.replace(submission, from_savepoint=place).send(jobmanager)
        typer.echo(new)
        rest.wait_for_tasks(new, patience)
    except Exception as exc:
        msg = (
            f"job {job_id}: it is stopped, and could not be started again: {exc}. "
            f"Submit it with --from-savepoint {place}"
        )
        raise StreamMLError(msg) from exc
    typer.echo(f"running with parallelism {parallelism}", err=True)
