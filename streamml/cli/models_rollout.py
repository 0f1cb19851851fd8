"""The commands of `streamml models` that change what is rolled out, and the history that they write."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.models_common import (
    Alias,
    Backdate,
    From,
    Json,
    Place,
    Who,
    Why,
    exact,
    known_names,
    open_registry,
    others,
    parse_when,
    print_json,
    print_table,
    shown_time,
    split_ref,
    table,
)
from streamml.errors import PlanError

if TYPE_CHECKING:
    from streamml.models import Guard, Registry, Rollout
    from streamml.models.rolling import How

__all__ = ["canary", "history", "promote", "refuse", "register", "retire", "rollback", "shadow", "variants"]

Version = Annotated[str, typer.Argument(metavar="NAME:VERSION", show_default=False)]
Versions = Annotated[list[str], typer.Argument(metavar="NAME:VERSION...", show_default=False)]
Model = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (promote, canary, variants, shadow, rollback, refuse, retire, history):
        app.command(epilog=CODES_HELP, no_args_is_help=True)(command)


def promote(
    ref: Version,
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a version the champion. It is checked first; a canary and variants end, shadows go on."""
    from streamml.models import rolling

    registry, (name, version) = open_registry(models), exact(ref, "promote")
    made = rolling.promote(registry, name, version, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def canary(
    ref: Version,
    percent: Annotated[float, typer.Option(help="Share of the keys that it scores.", show_default=False)],
    guard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT=NUMBER",
            help="Roll it back when it crosses this: errors, slowdown, disagreement (with tolerance), drift; "
            "false_alarms; off does not watch. Repeatable.",
            show_default="errors=0.001 slowdown=3, or as before",
        ),
    ] = None,
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a version score a share of the keys; a guard rolls it back by itself. Again with more percent: it grows."""
    from streamml.models import rolling

    registry, (name, version) = open_registry(models), exact(ref, "canary")
    limits = _guard(guard) if guard else None
    made = rolling.canary(registry, name, version, percent, limits, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def variants(
    shares: Annotated[
        list[str], typer.Argument(metavar="NAME:VERSION=PERCENT...", help="Such as fraud:7=30.", show_default=False)
    ],
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an A/B test: versions score a share of the keys each, the champion the rest."""
    from streamml.models import rolling

    found: dict[int, float] = {}
    names: set[str] = set()
    for text in shares:
        ref, _, share = text.partition("=")
        name, version = exact(ref, "variants")
        try:
            found[version] = float(share)
        except ValueError as exc:
            msg = f"{text}: wanted NAME:VERSION=PERCENT, such as {name}:{version}=30"
            raise PlanError(msg) from exc
        names.add(name)
    name = _one(names)
    registry = open_registry(models)
    made = rolling.variants(registry, name, found, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def shadow(
    refs: Versions,
    end: Annotated[bool, typer.Option("--end", help="End these shadows.", show_default="no")] = False,
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let versions score everything as well, without effect, to compare them with the champion."""
    from streamml.models import rolling

    pairs = [exact(ref, "shadow") for ref in refs]
    registry, name = open_registry(models), _one({name for name, _ in pairs})
    how = _how(alias, when, backdate, why, who)
    made = rolling.shadow(registry, name, [version for _, version in pairs], end=end, **how)
    _tell(registry, name, made, json)


def rollback(
    name: Model,
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """End the canary or the variants; when there are none, go back to the champion before the last promotion."""
    from streamml.models import rolling

    name, registry = _bare(name), open_registry(models)
    made = rolling.rollback(registry, name, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def refuse(
    ref: Version,
    alias: Alias = "prod",
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a version out of all that holds or is planned; a planned one then never scores."""
    from streamml.models import rolling

    registry, (name, version) = open_registry(models), exact(ref, "refuse")
    made = rolling.refuse(registry, name, version, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def retire(
    name: Model,
    alias: Annotated[str, typer.Option(metavar="NAME", help="The alias.", show_default=False)],
    when: From = None,
    backdate: Backdate = False,
    why: Why = "",
    who: Who = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take an alias out of use. Jobs that run with it go on; a promotion brings it back."""
    from streamml.models import rolling

    name, registry = _bare(name), open_registry(models)
    made = rolling.retire(registry, name, **_how(alias, when, backdate, why, who))
    _tell(registry, name, made, json)


def history(
    name: Model,
    alias: Annotated[str | None, typer.Option(metavar="NAME", help="One alias.", show_default="all")] = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show who changed what, when, why, and from which event time on; the chain of records is checked."""
    registry = open_registry(models)
    name, given, _ = split_ref(name)
    alias = alias or given
    known_names(registry, name)
    records = [record for record in registry.records(name) if alias in (None, record.alias)]
    if json:
        print_json(records)
        return
    if not records:
        typer.echo(f"{name}{f'@{alias}' if alias else ''}: nothing was rolled out")
        return
    void = {record.refused: record.number for record in records if record.refused}
    made = table("", "from", "alias", "what", "written")
    made.columns[1].no_wrap = made.columns[4].no_wrap = True
    for record in records:
        what = f"{record.action}: champion {record.champion}"
        if record.refused:
            what = f"refuse: record {record.refused} is void"
        beside = "" if record.refused else others(record)
        taken = f"void: refused by record {void[record.number]}" if record.number in void else ""
        made.add_row(
            str(record.number),
            shown_time(record.effective),
            record.alias,
            "\n".join(filter(None, (what, beside, record.why, taken))),
            f"{shown_time(record.at)}\n{record.who}",
        )
    print_table(made)


def _how(alias: str, when: str | None, backdate: bool, why: str, who: str | None) -> How:
    return {"alias": alias, "effective": parse_when(when), "backdate": backdate, "why": why, "who": who}


def _guard(limits: list[str]) -> Guard:
    from streamml.cli.wiring import named
    from streamml.models import Guard

    fields: dict[str, Any] = {}
    for name, text in named("--guard", limits, "limit=number").items():
        if name not in Guard.__struct_fields__:
            where = f"--guard {name}={text}"
            raise PlanError.unknown(where, "limit", name, Guard.__struct_fields__)
        value = None
        with contextlib.suppress(ValueError):
            value = float(text)
        if text != "off" and (value is None or not value > 0):
            msg = f"--guard {name}={text}: wanted a number above 0, or off"
            raise PlanError(msg)
        if text == "off" and name in ("tolerance", "false_alarms"):
            msg = f"--guard {name}=off: it is no limit; wanted a number above 0"
            raise PlanError(msg)
        fields[name] = value
    return Guard(**fields)


def _one(names: set[str]) -> str:
    if len(names) > 1:
        msg = f"wanted versions of one model, got {', '.join(sorted(names))}"
        raise PlanError(msg)
    return names.pop()


def _bare(ref: str) -> str:
    name, alias, version = split_ref(ref)
    if alias is not None or version is not None:
        msg = f"{ref!r}: wanted the name alone, {name}; the alias is given by --alias"
        raise PlanError(msg)
    return name


def _tell(registry: Registry, name: str, made: Rollout, json: bool) -> None:
    """Say what was written, and what it takes back."""
    from streamml.models.registry import now
    from streamml.models.rolling import taken_back

    gone = taken_back(registry.records(name), made)
    if json:
        print_json({"name": name, "record": made, "takes_back": gone})
        return
    beside = others(made)
    ahead = (made.effective - now()) / 1000
    when = f", in {ahead:.0f} s" if ahead > 0 else ""
    typer.echo(
        f"{name}@{made.alias}: {made.action}: version {made.champion}{f' with {beside}' if beside else ''} "
        f"from {shown_time(made.effective)}{when} (record {made.number})"
    )
    for each in gone:
        typer.echo(f"takes back: {each.action} of version {each.champion} from {shown_time(each.effective)} "
                   f"(record {each.number})")  # fmt: skip
