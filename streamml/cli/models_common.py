"""What the commands of `streamml models` share: their options, how they read them, how they print."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamml.errors import ModelError, PlanError

if TYPE_CHECKING:
    from rich.table import Table

    from streamml.models import Registry, Rollout

__all__ = [
    "Alias",
    "Backdate",
    "From",
    "Json",
    "Place",
    "Who",
    "Why",
    "exact",
    "known_names",
    "open_registry",
    "others",
    "parse_when",
    "print_json",
    "print_pairs",
    "print_table",
    "shown_time",
    "split_ref",
    "table",
    "version_of",
]

Place = Annotated[
    str,
    typer.Option(
        "--models",
        metavar="DIR|URL",
        help="The registry: a folder, or an address such as s3://bucket/models.",
        envvar="STREAMML_MODELS",
    ),
]
Alias = Annotated[str, typer.Option(metavar="NAME", help="The alias.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="TIME",
        help="Event time from which it holds: 2026-11-25T12:00Z, or +10m for ten minutes from now.",
        show_default="+10s, in which running jobs load it",
    ),
]
Backdate = Annotated[
    bool,
    typer.Option("--backdate", help="Allow a time in the past, which changes what a replay gives.", show_default="no"),
]
Who = Annotated[str | None, typer.Option(metavar="TEXT", help="Who does it.", show_default="user@host")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Why, for the history.", show_default="none")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default="off")]


def open_registry(place: str) -> Registry:
    """Open the registry that `--models` names."""
    from streamml.models import Registry

    return Registry(place)


def split_ref(ref: str) -> tuple[str, str | None, int | None]:
    """Return name, alias and version of `name`, `name@alias` or `name:7`.

    >>> split_ref("fraud:7"), split_ref("fraud@prod")
    (('fraud', None, 7), ('fraud', 'prod', None))
    """
    from streamml.models.reference import parse_reference

    parsed = parse_reference(ref)
    if parsed is None:
        msg = f"{ref!r}: wanted NAME, NAME:VERSION or NAME@ALIAS, such as fraud:7"
        raise PlanError(msg)
    return parsed.name, parsed.alias, parsed.version


def version_of(registry: Registry, ref: str) -> tuple[str, int]:
    """Return name and version that a reference means now.

    Raises:
        ModelError: there is no such model, version or alias.
    """
    name, alias, version = split_ref(ref)
    if version is None:
        return name, registry.champion(name, alias or "prod")
    registry.path(name, version)
    return name, version


def exact(ref: str, command: str) -> tuple[str, int]:
    """Return name and version of `name:7`; a command that changes what runs takes nothing else."""
    name, _, version = split_ref(ref)
    if version is None:
        msg = f"{ref!r}: wanted NAME:VERSION, such as `streamml models {command} {name}:7`"
        raise PlanError(msg)
    return name, version


def parse_when(text: str | None) -> int | None:
    """Return the event time in milliseconds that `--from` means.

    >>> parse_when("2026-11-25T12:00Z")
    1795608000000
    """
    from streamml.models.registry import now
    from streamml.times import to_millis

    if text is None:
        return None
    try:
        if text.startswith("+"):
            return now() + to_millis(text[1:], where="--from")
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            msg = "it has no time zone; add Z for UTC"
            raise ValueError(msg)
    except ValueError as exc:
        msg = f"--from {text}: wanted a time such as 2026-11-25T12:00Z, or +10m for ten minutes from now ({exc})"
        raise PlanError(msg) from exc
    return round(found.timestamp() * 1000)


def shown_time(millis: int) -> str:
    """Write a time; the one before all events is `always`."""
    from streamml.observability.figures import format_time
    from streamml.times import MIN_TIME

    return "always" if millis <= MIN_TIME else format_time(millis)


def others(rollout: Rollout) -> str:
    """Write what runs beside the champion.

    >>> from streamml.models import Rollout, Split
    >>> fields = dict(number=1, alias="prod", action="canary", effective=0, champion=1)
    >>> others(Rollout(**fields, splits=(Split(2, 5.0),), shadows=(3,)))
    'canary 2 at 5 %, shadow 3'
    """
    parts = [f"{split.role} {split.version} at {split.percent:g} %" for split in rollout.splits]
    return ", ".join([*parts, *(f"shadow {version}" for version in rollout.shadows)])


def known_names(registry: Registry, name: str | None) -> list[str]:
    """Return the models to show: one, which must be there, or all.

    Raises:
        ModelError: there is no such model.
    """
    if name is None:
        return registry.names()
    if not registry.versions(name):
        from streamml.errors import suggest

        msg = f"model {name}: {registry.place} has no model {name!r}. {suggest(name, registry.names())}"
        raise ModelError(msg)
    return [name]


def print_json(value: Any) -> None:
    """Print one JSON value."""
    import msgspec

    typer.echo(msgspec.json.encode(value, enc_hook=str))


def table(*columns: str) -> Table:
    """Return an empty table."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_table(made: Table) -> None:
    """Print a table."""
    from rich.console import Console

    Console(highlight=False, markup=False).print(made)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print lines of name and text, the texts below each other."""
    for name, text in pairs:
        typer.echo(f"  {name:<10} {text}")
