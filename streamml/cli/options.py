"""The options of `streamml run`, in groups; their defaults stand in the signature of the command."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "CacheMb",
    "CheckpointInterval",
    "Demo",
    "DemoEvents",
    "Engine",
    "EngineChoice",
    "Explain",
    "ExplainChoice",
    "Job",
    "Json",
    "LatencyTarget",
    "MetricsPort",
    "Models",
    "Overwrite",
    "Param",
    "Plain",
    "Runner",
    "Side",
    "Sink",
    "Source",
    "StateDir",
    "Workers",
]

_IO, _STATE, _JOB, _SHOW, _DEMO = "Input and output", "State", "Job", "Display", "Demonstration"


class Engine(enum.StrEnum):
    """Engines by name."""

    LOCAL = "local"
    FLINK = "flink"
    BEAM = "beam"


class Explain(enum.StrEnum):
    """Ways to print a plan."""

    TREE = "tree"
    MERMAID = "mermaid"


Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="A ready job (`streamml jobs`) or a Python file with pipeline(cfg).", show_default=False
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[TAG=]URI",
        help="Where to read: file:PATH (a file, folder or quoted glob), - (standard input), kafka://HOST:PORT/TOPIC.",
        show_default="the job's own",
        rich_help_panel=_IO,
    ),
]
Sink = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Where to write: a file (file:scores.jsonl), - for standard output, null:, kafka://HOST:PORT/TOPIC.",
        show_default="the job's own, or -",
        rich_help_panel=_IO,
    ),
]
Side = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=URI",
        help="Where a side output (late, rejected, ...) goes. Repeatable.",
        show_default="beside the sink",
        rich_help_panel=_IO,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="A fresh run may replace output that is there.", show_default="no", rich_help_panel=_IO
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of state and checkpoints; the same command then goes on after a stop or crash.",
        show_default="none: state in memory, gone with the process",
        rich_help_panel=_STATE,
    ),
]
CheckpointInterval = Annotated[
    str,
    typer.Option(
        metavar="DURATION", help="Time between checkpoints, which also make output visible.", rich_help_panel=_STATE
    ),
]
CacheMb = Annotated[
    int, typer.Option(min=1, help="Bound of the state that is held decoded in memory, in MiB.", rich_help_panel=_STATE)
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Most records in a micro-batch. Results do not depend on it.", rich_help_panel=_JOB)
]
LatencyTarget = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Latency that 99 % of events should keep; micro-batches adapt, up to --batch-size.",
        show_default="none: micro-batches as large as they come",
        rich_help_panel=_JOB,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that share the keys; another number than before deals out the state anew. Needs --state-dir.",
        show_default="as many as the state has, or 1",
        rich_help_panel=_JOB,
    ),
]
EngineChoice = Annotated[
    Engine, typer.Option(help="Where it runs: local, or beam; `streamml submit` is for flink.", rich_help_panel=_JOB)
]
Runner = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Runner of --engine beam: direct, prism, flink, dataflow, ...; its own options come after `--`.",
        show_default="direct",
        rich_help_panel=_JOB,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="Folder of model bundles, searched before those that come with streamml. Repeatable.",
        show_default="models/ beside the job",
        rich_help_panel=_JOB,
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A setting of the job's own. Repeatable.",
        show_default="the job's own",
        rich_help_panel=_JOB,
    ),
]
ExplainChoice = Annotated[
    Explain | None,
    typer.Option(help="Print the plan and stop; alone as a tree.", show_default="off", rich_help_panel=_JOB),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="A line a second, without colours.",
        show_default="only where there is no terminal",
        rich_help_panel=_SHOW,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON object with the run's figures on standard output at the end, nothing else.",
        show_default="off",
        rich_help_panel=_SHOW,
    ),
]
MetricsPort = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus.",
        show_default="off; host 127.0.0.1",
        rich_help_panel=_SHOW,
    ),
]
Demo = Annotated[
    bool,
    typer.Option(
        "--demo",
        help="Run on a generated stream, file to file in build/demo/JOB, which is replaced.",
        show_default="off",
        rich_help_panel=_DEMO,
    ),
]
DemoEvents = Annotated[int, typer.Option(min=1, help="Length of that stream.", rich_help_panel=_DEMO)]
