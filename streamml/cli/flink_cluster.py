"""`streamml flink cluster` and `streamml flink jars`: a cluster to try jobs on, and what jobs take along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP

__all__ = ["register"]

cluster_app = typer.Typer(name="cluster", help="A real cluster on this machine, to try jobs on.", no_args_is_help=True)

_FOLDER = Path(".streamml-flink")

Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder of the cluster's settings, logs and state.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=CODES_HELP)(jars)
    app.add_typer(cluster_app)


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
    patience: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")] = 60.0,
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
