"""The `streamml` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from streamml.cli import doctor, flink, generate, jobs, kafka, models, run, state
from streamml.cli.errors import report
from streamml.cli.exits import CODES_HELP, ExitCode, exit_code, reader_has_gone

__all__ = ["app", "main"]

app = typer.Typer(
    name="streamml",
    help="Stateful stream processing with models inside: run a job, look at its state, make a stream to try it on.",
    epilog=CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
jobs.register(app)
flink.register(app)
app.add_typer(generate.app, name="generate")
app.add_typer(state.app, name="state")
app.add_typer(models.app, name="models")
app.add_typer(kafka.app, name="kafka")
doctor.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    import streamml

    typer.echo(streamml.__version__)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with a code of `ExitCode`."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    try:
        app(arguments, prog_name="streamml")
    except (Exception, KeyboardInterrupt) as exc:
        code = exit_code(exc)
        if reader_has_gone(exc):
            _forget_stdout()
        elif code is not ExitCode.INTERRUPTED:
            report(exc, debug=debug)
        sys.exit(code)
    sys.exit(ExitCode.DONE)


def _forget_stdout() -> None:
    """Keep the interpreter from flushing into the closed pipe when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
