"""`streamml models parity`: the features that a job scored, computed again from logged events."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.models_common import Json, print_json, print_table, table
from streamml.cli.options import Job, Models, Param
from streamml.errors import ModelError, PlanError

if TYPE_CHECKING:
    from streamml.models.parity import Parity
    from streamml.pipeline import Pipeline

__all__ = ["parity", "recompute", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=CODES_HELP, no_args_is_help=True)(parity)


def parity(
    job: Job,
    log: Annotated[
        list[Path], typer.Option(metavar="FILE", help="The side output `features`. Repeatable.", show_default=False)
    ],
    events: Annotated[
        list[str],
        typer.Option(
            metavar="[TAG=]URI", help="The logged events, such as file:events.jsonl. Repeatable.", show_default=False
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of numbers that still agree, relative or absolute.")
    ] = 0.0,
    models: Models = None,
    param: Param = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove that a job scored what its code computes: run it again on logged events, compare feature by feature.

    The job must log its features: Infer(..., log_features=True). The run keeps its state in memory and writes nothing,
    in registries neither. Ends with exit code 5 when a row differs or is not computed.
    """
    from streamml.cli.loading import load_job
    from streamml.cli.wiring import named, source_uris
    from streamml.models.parity import Parity, read_feature_log

    loaded = load_job(job)
    folders = loaded.models(models or ())
    pipeline = loaded.pipeline(named("--param", param or (), "name=value"), folders)
    if not any(getattr(operator, "log_features", False) for operator in pipeline.operators):
        msg = f"job {loaded.name!r}: no operator logs features; build it with Infer(..., log_features=True)"
        raise PlanError(msg)
    found = Parity(read_feature_log(log), tolerance)
    recompute(pipeline, source_uris(pipeline, events), folders, found)
    if json:
        print_json(_body(found))
    else:
        _show(found)
    if not found.holds:
        lacks = "logged rows were not computed" if found.equal else "no logged row was computed"
        msg = f"parity of job {loaded.name!r}: {'features differ' if found.different else lacks}"
        raise ModelError(msg)


def recompute(pipeline: Pipeline, sources: Mapping[str, str], models: Sequence[str], parity: Parity) -> None:
    """Run a pipeline to the end of its sources on the embedded engine, and give its feature rows to a comparison.

    Args:
        pipeline: the pipeline; an operator of it logs features.
        sources: address of each source.
        models: registries to search. The run gets copies of their histories, so that a guard in it changes nothing.
        parity: what compares.
    """
    from streamml.connectors import NullSink, open_source
    from streamml.local import LocalEngine
    from streamml.models import Registry

    class Compared(NullSink):
        def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
            for record in records:
                parity.add(record)

    with tempfile.TemporaryDirectory(prefix="streamml-parity-") as scratch:
        places = []
        for number, place in enumerate(models):
            registry, folder = Registry(place), Path(scratch) / str(number)
            for name in _named_models(pipeline) & set(registry.names()):
                registry.mirror(name, folder)
            places.append(str(folder))
        opened = {tag: open_source(uri) for tag, uri in sources.items()}
        LocalEngine(pipeline, opened, NullSink(), {"features": Compared()}, models=tuple(places)).run()


def _named_models(pipeline: Pipeline) -> set[str]:
    """Return the names of models that operators may mean: what of their options reads like a reference."""
    from streamml.models.reference import parse_reference

    def texts(value: Any) -> Iterable[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                yield from texts(part)

    found = (parse_reference(text) for operator in pipeline.operators for text in texts([*vars(operator).values()]))
    return {reference.name for reference in found if reference is not None}


def _body(parity: Parity) -> dict[str, Any]:
    return {
        "holds": parity.holds,
        "equal": parity.equal,
        "different": parity.different,
        "missing": len(parity.missing),
        "missing_ids": parity.missing[:10],
        "unlogged": parity.unlogged,
        "features": {
            name: {"rows": gap.rows, "largest": gap.largest, "example": gap.example}
            for name, gap in parity.gaps.items()
        },
    }


def _show(parity: Parity) -> None:
    typer.echo(f"equal      {parity.equal:,}")
    typer.echo(f"different  {parity.different:,}")
    missing = parity.missing
    typer.echo(f"missing    {len(missing):,}{f', such as {missing[0]}' if missing else ''}")
    typer.echo(f"unlogged   {parity.unlogged:,}")
    if parity.gaps:
        made = table("feature", "rows", "largest difference", "in", "logged", "computed")
        for name, gap in parity.gaps.items():
            id, then, now = gap.example
            made.add_row(name, f"{gap.rows:,}", f"{gap.largest:.6g}", id, repr(then), repr(now))
        print_table(made)
