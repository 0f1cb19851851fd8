"""`streamml jobs`: the jobs that come with streamml."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamml.cli.errors import Debug

__all__ = ["jobs", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(jobs)


def jobs(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.", show_default="off")] = False,
    debug: Debug = False,
) -> None:
    """List the ready jobs with their sources and operators."""
    from streamml.cli.loading import load_job, ready_jobs

    found = [_described(load_job(name)) for name in ready_jobs()]
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(found))
        return
    for entry in found:
        typer.secho(entry["name"], bold=True)
        typer.echo(f"  {entry['about']}")
        if "problem" in entry:
            typer.echo(f"  can't be built here: {entry['problem']}")
            continue
        typer.echo(f"  sources    {', '.join(entry['sources'])}")
        typer.echo(f"  operators  {' > '.join(entry['operators'])}")
    if not found:
        typer.echo("This installation has no ready jobs.")
    typer.echo(
        "\nRun one: streamml run NAME --source file:EVENTS.jsonl --sink file:OUT.jsonl. Your own: streamml run FILE.py"
    )


def _described(job: Any) -> dict[str, Any]:
    from streamml.errors import StreamMLError

    about = (job.module.__doc__ or "").strip().partition("\n")[0]
    entry: dict[str, Any] = {
        "name": job.name,
        "about": about,
        "file": str(job.path),
        "demo": job.demo_path.is_file(),
    }
    try:
        pipeline = job.pipeline({}, job.models())
    except StreamMLError as exc:
        return {**entry, "problem": str(exc)}
    return {
        **entry,
        "sources": [f"{spec.tag}: {spec.schema.__name__}" for spec in pipeline.sources],
        "operators": [operator.name for operator in pipeline.operators],
        "sides": list(pipeline.sides),
    }
