"""How an error is shown: one message, the traceback only when asked for."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from streamml.errors import StreamMLError

__all__ = ["Debug", "describe", "report"]

Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", show_default="off", rich_help_panel="Display")
]
"""Option of every command that can fail; `main` looks for it, so that it also covers what happens before parsing."""


def report(error: BaseException, *, debug: bool = False) -> None:
    """Print an error on standard error: its class in red, then its message as it is."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    kind, message = describe(error)
    text = Text.assemble((f"{kind}: ", "bold red"), (message, "red"))
    if not isinstance(error, StreamMLError) and not debug:
        text.append("\nNobody foresaw this: an error in the job's code, or in streamml. --debug shows the traceback.")
    console.print(text, soft_wrap=True, highlight=False)


def describe(error: BaseException) -> tuple[str, str]:
    """Return class and message of an error, for one that nobody foresaw also where it was raised.

    >>> describe(ValueError("no"))
    ('ValueError', 'no')
    """
    message = str(error) or "(no message)"
    if isinstance(error, StreamMLError):
        return type(error).__name__, message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return type(error).__name__, message + where
