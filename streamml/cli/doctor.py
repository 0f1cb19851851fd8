"""`streamml doctor`: what is there, and how to get what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["doctor", "register"]

_MARKS = {
    "ok": ("ok", "green"),
    "missing": ("missing", "yellow"),
    "old": ("too old", "red"),
    "broken": ("broken", "red"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="Kafka broker to look for.")] = "localhost:9092",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.", show_default="off")] = False,
) -> None:
    """Say which extras and tools are there, and how to get what is missing."""
    from streamml.cli.checks import all_checks

    found = all_checks(broker)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(found))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    group = ""
    for check in found:
        if check.group != group:
            group = check.group
            console.print(Text(f"{group}", style="bold"))
        mark, style = _MARKS[check.status]
        line = Text.assemble(f"  {check.name:<30} ", (f"{mark:<8}", style), f" {check.found}")
        console.print(line, soft_wrap=True)
        if check.get:
            console.print(Text(f"{'':42} {check.get}", style="dim"), soft_wrap=True)
    console.print("\nThe embedded engine needs none of the extras but the ones that a job uses.", soft_wrap=True)
