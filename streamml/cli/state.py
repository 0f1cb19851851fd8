"""`streamml state`: look at the state of a job, stopped or running, without its code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamml.cli.errors import Debug

if TYPE_CHECKING:
    from rich.table import Table

    from streamml.state.inspect_job import JobSnapshot

__all__ = ["app"]

app = typer.Typer(
    help="Look at the state of a job, stopped or running; nothing is changed and the job's code is not needed.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The job's --state-dir.", show_default=False)]
Number = Annotated[int | None, typer.Option(help="Number of the checkpoint.", show_default="newest whole one")]
Stage = Annotated[str | None, typer.Option(help="Name of the stage.", show_default="all")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default="off")]


@app.command("list")
def list_(directory: Folder, json: Json = False, debug: Debug = False) -> None:
    """List the checkpoints: number, time, size, and whether each is whole."""
    from streamml.observability.figures import format_bytes, format_time
    from streamml.state.inspect import checkpoints_of
    from streamml.state.workers import read_workers

    workers = read_workers(directory)
    bodies = []
    for number, folder in enumerate(workers.all_folders()):
        checkpoints = checkpoints_of(folder)
        found = checkpoints.list()
        aside = checkpoints.aside()
        bodies.append({"checkpoints": found, "put_aside": aside})
        if json:
            continue
        if workers.generation:
            typer.echo(f"worker {number}")
        table = _table("checkpoint", "taken", "size", "")
        for info in found:
            taken = "-" if info.created_ms is None else format_time(info.created_ms)
            table.add_row(str(info.number), taken, format_bytes(info.bytes), info.problem or "whole")
        for name, what in aside.items():
            table.add_row(name, "-", "-", what)
        _print(table)
    if json:
        _json({"workers": bodies} if workers.generation else bodies[0])


@app.command()
def show(directory: Folder, checkpoint: Number = None, json: Json = False, debug: Debug = False) -> None:
    """Show what a checkpoint holds beside the rows: pipeline, source positions, watermarks, states of each stage."""
    from streamml.observability.figures import format_time

    with _snapshot(directory, checkpoint) as job:
        bodies = []
        for worker, snapshot in job.workers.items():
            loaded, stages = snapshot.loaded, snapshot.stages
            bodies.append({"number": loaded.number, "created_ms": loaded.created_ms, **loaded.data})
            if json:
                continue
            end = "the input was read to its end" if loaded.data.get("finished") else "to be continued"
            of = "" if worker is None else f" of worker {worker}"
            typer.echo(f"checkpoint {loaded.number}{of} of pipeline {loaded.data['pipeline']}")
            typer.echo(f"  taken      {format_time(loaded.created_ms)}, {end}")
            for tag, positions in loaded.data.get("sources", {}).items():
                for partition, position in positions.items():
                    typer.echo(f"  source     {tag}/{partition}: {_text(position)}")
            for name, stage in stages.items():
                typer.echo(f"  stage      {name}: watermark {format_time(stage.watermark)}")
                for state, described in stage.states.items():
                    typer.echo(f"    {state}: {_described(described)}")
        if json:
            _json(bodies[0] if None in job.workers else {"workers": bodies})


@app.command()
def keys(
    directory: Folder,
    stage: Stage = None,
    limit: Annotated[int, typer.Option(min=1, help="Most keys to print.")] = 20,
    checkpoint: Number = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List keys with the size of their state."""
    from itertools import islice

    from streamml.observability.figures import format_bytes

    with _snapshot(directory, checkpoint) as snapshot:
        found = list(islice(snapshot.keys(stage), limit + 1))
    more, found = len(found) > limit, found[:limit]
    if json:
        _json({"keys": found, "more": more})
        return
    table = _table("stage", "key", "rows", "size")
    for size in found:
        table.add_row(size.stage, _text(size.key), str(size.rows), format_bytes(size.bytes))
    _print(table)
    if more:
        typer.echo(f"... and more; --limit {limit * 10} shows more, `streamml state get` looks one up")


@app.command()
def get(
    directory: Folder,
    key: Annotated[str, typer.Option(help='The key; as JSON if it is not text: 17, or ["a", 1].', show_default=False)],
    stage: Stage = None,
    checkpoint: Number = None,
    debug: Debug = False,
) -> None:
    """Print the state of a key as JSON, from the newest whole checkpoint."""
    from streamml.errors import StateError

    with _snapshot(directory, checkpoint) as snapshot:
        found = [state for candidate in _candidates(key) for state in snapshot.get(candidate, stage)]
        number = snapshot.checkpoint
    if not found:
        msg = (
            f"key {key!r}: checkpoint {number} has no state of it{f' in stage {stage!r}' if stage else ''}. "
            f"`streamml state keys {directory}` lists keys."
        )
        raise StateError(msg)
    _json({"checkpoint": number, "found": found}, pretty=True)


@app.command()
def sizes(
    directory: Folder,
    stage: Stage = None,
    checkpoint: Number = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how much state there is: by stage and kind of row, and the largest keys."""
    from streamml.observability.figures import format_bytes

    with _snapshot(directory, checkpoint) as snapshot:
        found = snapshot.sizes(stage)
        number = snapshot.checkpoint
    if json:
        _json({"checkpoint": number, "stages": found})
        return
    table = _table("stage", "what", "rows", "size")
    for total in found:
        if not any(total.rows.values()):
            continue
        table.add_row(total.stage, "keys", f"{total.keys:,}", "")
        for kind, rows in total.rows.items():
            if rows:
                table.add_row("", kind, f"{rows:,}", format_bytes(total.bytes[kind]))
    _print(table)
    largest = sorted((size for total in found for size in total.largest), reverse=True)[:10]
    if largest:
        typer.echo("\nLargest keys")
        table = _table("stage", "key", "rows", "size")
        for size in largest:
            table.add_row(size.stage, _text(size.key), f"{size.rows:,}", format_bytes(size.bytes))
        _print(table)


def _snapshot(directory: Path, number: int | None) -> JobSnapshot:
    from streamml.state.inspect_job import JobSnapshot

    return JobSnapshot(directory, number)


def _candidates(text: str) -> list[Any]:
    """Return the keys that a text may mean: itself, and what it is as JSON."""
    import msgspec

    try:
        other = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return [text]
    return [text, other] if not isinstance(other, str | dict) else [other] if isinstance(other, str) else [text]


def _described(kind: Any) -> str:
    """Write a stored type as text."""
    if isinstance(kind, list):
        return f"{kind[0]} of {' to '.join(_described(part) for part in kind[1:])}"
    if isinstance(kind, dict):
        return "{" + ", ".join(kind["struct"]) + "}"
    return str(kind)


def _text(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _json(value: Any, *, pretty: bool = False) -> None:
    import msgspec

    text = msgspec.json.encode(value, enc_hook=str)
    typer.echo(msgspec.json.format(text, indent=2) if pretty else text)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows", "size") else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False).print(table)
