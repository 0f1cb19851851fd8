"""`streamml models sync`: MLflow's registry mirrored into one of streamml's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.models_common import Json, Place, open_registry, print_json, shown_time
from streamml.errors import ModelError, PlanError

if TYPE_CHECKING:
    from streamml.models.mlflow_registry import Step

__all__ = ["register", "sync"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=CODES_HELP, no_args_is_help=True)(sync)


def sync(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="mlflow://host:port, or mlflow+https://host/path.", show_default=False),
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="The models.", show_default="all")
    ] = None,
    every: Annotated[
        str | None, typer.Option("--watch", metavar="TIME", help="Go on, so often.", show_default="one pass")
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="NAME=ROLE[@ALIAS]",
            help="What an alias (with * for any text) or stage:NAME means: champion, canary, shadow, ignore. "
            "Goes before the others. Repeatable.",
            show_default="champion=champion prod=champion stage:Production=champion canary=canary shadow*=shadow",
        ),
    ] = None,
    lead: Annotated[str, typer.Option(metavar="TIME", help="From its discovery until a change holds.")] = "10s",
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundles with this private key.", show_default="no")
    ] = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Mirror MLflow's models: versions as bundles with the same numbers, aliases and stages as rollouts.

    Run it again, or stop it anywhere: nothing is done twice. Ends with exit code 5 when something that an alias asks
    for can't be done, 3 when MLflow is gone. With --watch it waits until it is back.
    """
    from streamml.cli.stopping import stop_on_signals
    from streamml.models.mlflow_registry import MlflowMirror, watch
    from streamml.models.mlflow_rollout import RULES, rule_of
    from streamml.models.mlflow_server import MlflowServer

    mirror = MlflowMirror(
        MlflowServer(address),
        open_registry(models),
        names or (),
        rules=(*map(rule_of, rules or ()), *RULES),
        lead=_millis("--lead", lead),
        sign=sign,
    )
    if every is None:
        steps = mirror.sync()
        for step in steps:
            _tell(step, json)
        if not steps and not json:
            typer.echo("nothing new")
        if blocked := [step for step in steps if step.what == "blocked"]:
            msg = f"{len(blocked)} of the things that MLflow asks for can't be done: see the lines that say blocked"
            raise ModelError(msg)
        return
    pause = _millis("--watch", every)
    if not pause:
        msg = f"--watch {every}: wanted a time above 0, such as 10s"
        raise PlanError(msg)
    stop = threading.Event()
    with stop_on_signals(stop.set):
        watch(mirror, pause / 1000, stop, lambda s: _tell(s, json), lambda text: typer.echo(text, err=True))


def _millis(option: str, text: str) -> int:
    from streamml.times import to_millis

    try:
        return to_millis(text, where=option)
    except ValueError as exc:
        raise PlanError(str(exc)) from exc


def _tell(step: Step, json: bool) -> None:
    if json:
        print_json(step)
    elif step.record is not None:
        made = step.record
        what = f"{step.model}@{made.alias}: {made.action}: version {made.champion}"
        typer.echo(f"{what} from {shown_time(made.effective)} (record {made.number}): {step.text}")
    else:
        ref = step.model if step.version is None else f"{step.model}:{step.version}"
        typer.echo(f"{ref}  {step.what}: {step.text}")
