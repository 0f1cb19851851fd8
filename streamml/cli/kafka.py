"""`streamml kafka`: a broker for trials on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamml.cli.errors import Debug

__all__ = ["app"]

app = typer.Typer(
    help="A Kafka broker for trials: one node on loopback, not for production. It needs Java 17 and Maven.",
    no_args_is_help=True,
)

Port = Annotated[int, typer.Option(min=1, max=65535, help="Where clients connect, on 127.0.0.1 only.")]
Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of its data and log; a broker started there again has its topics.",
                 show_default="in this user's cache folder, one for each port"),
]  # fmt: skip


@app.command()
def start(port: Port = 9092, directory: Dir = None, debug: Debug = False) -> None:
    """Start it and wait until it answers; the first start fetches 54 MB."""
    from streamml.connectors.broker import TrialBroker

    broker = TrialBroker(_folder(directory, port), port)
    if broker.pid is not None:
        typer.echo(f"runs already at {broker.address}, process {broker.pid}")
        return
    broker.start()
    typer.echo(f"runs at {broker.address}, process {broker.pid}; its data and log are in {broker.folder}")
    typer.echo(f"try: streamml run payments --source 'kafka://{broker.address}/payments?create=true' "
               f"--sink 'kafka://{broker.address}/scores?create=true'")  # fmt: skip


@app.command()
def stop(port: Port = 9092, directory: Dir = None, debug: Debug = False) -> None:
    """Stop it; its topics are kept."""
    from streamml.connectors.broker import TrialBroker

    broker = TrialBroker(_folder(directory, port), port)
    typer.echo(f"stopped at {broker.address}" if broker.stop() else f"none runs in {broker.folder}")


@app.command()
def status(port: Port = 9092, directory: Dir = None, debug: Debug = False) -> None:
    """Say whether it runs; the exit code is 0 if it answers, else 3."""
    from streamml.cli.exits import ExitCode
    from streamml.connectors.broker import TrialBroker

    broker = TrialBroker(_folder(directory, port), port)
    pid = broker.pid
    if pid is None:
        typer.echo(f"none runs in {broker.folder}")
        raise typer.Exit(ExitCode.CONNECTOR)
    answers = broker.ready()
    typer.echo(f"runs at {broker.address}, process {pid}{'' if answers else ', but does not answer'}")
    if not answers:
        raise typer.Exit(ExitCode.CONNECTOR)


def _folder(directory: Path | None, port: int) -> Path:
    from streamml.connectors.broker_jars import cache_folder

    return directory if directory is not None else cache_folder() / f"broker-{port}"
