"""What a run shows: the live panel or plain lines while it runs, its figures and where things are at the end."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

    from streamml.cli.running import Outcome
    from streamml.observability.figures import RunFigures
    from streamml.observability.panel import Panel

__all__ = ["View"]

_MOST_KINDS = 8


class View:
    """Shows one run. Use it as a context manager around the run; `finish` is the last thing inside.

    Args:
        title: name of the job.
        plain: a line a second, no colours and no control codes, also on a terminal.
        json: nothing on standard output; progress on standard error if that is a terminal or `plain` asks for it.
        piped: output of the run itself goes to standard output or standard error, so messages go to standard error and
            are not redrawn.
    """

    def __init__(self, title: str, *, plain: bool = False, json: bool = False, piped: bool = False) -> None:
        self.title = title
        self._plain = plain or piped
        self._stderr = json or piped
        self._quiet = json and not plain and not sys.stderr.isatty()
        self.console = _console(stderr=self._stderr, plain=plain)
        self._panel: Panel | None = None
        self._announced = False

    def __enter__(self) -> Self:
        if not self._quiet:
            from streamml.observability.panel import Panel

            self._panel = Panel(self.console, self.title, live=False if self._plain else None)
            self._panel.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._panel is not None:
            self._panel.close()

    def progress(self, figures: RunFigures) -> None:
        """Show the figures so far."""
        if self._panel is not None:
            self._panel.update(figures)

    def finish(self, figures: RunFigures) -> None:
        """Take the panel away and show the figures of the whole run."""
        if self._panel is not None:
            self._panel.finish(figures)

    def say(self, text: str) -> None:
        """Print a message."""
        if not self._quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stopping(self, signal: str) -> None:
        """Say once that the run is about to stop."""
        if not self._announced:
            self._announced = True
            self.say(f"{signal}: stopping after a checkpoint; Ctrl-C breaks off at once")

    def busy(self, text: str) -> Any:
        """Return a context manager that says what is going on, where that is seen only on a terminal it can redraw."""
        from contextlib import nullcontext

        if self.console.is_terminal and not self._plain and not self._quiet:
            return self.console.status(text)
        self.say(text)
        return nullcontext()

    def outcome(self, outcome: Outcome, then: str, state_dir: object) -> None:
        """Show where things are, and how the run can be continued.

        Args:
            outcome: how the run ended.
            then: the command that goes on after a stop.
            state_dir: where the state is, None if it was in memory.
        """
        if self._quiet:
            return
        for problem in outcome.result.problems:
            self.say(f"damaged, put aside: {problem}")
        self._places(outcome)
        if not outcome.result.finished:
            if state_dir is None:
                self.say("Stopped. State was in memory (no --state-dir), so the next run starts over.")
            else:
                number = outcome.result.figures.checkpoint or outcome.resumed
                where = "before its first checkpoint" if number is None else f"at checkpoint {number}"
                self.say(f"Stopped {where}. To go on: {then}")
        elif outcome.resumed is not None and outcome.result.figures.events_in == 0:
            self.say(
                f"Nothing new: this input was read to its end before checkpoint {outcome.resumed}. "
                "For a run from the start name another --state-dir and --sink."
            )

    def rows(self, title: str, rows: dict[str, str]) -> None:
        """Print named lines under a title."""
        if self._quiet or not rows:
            return
        from rich.text import Text

        width = max(map(len, rows))
        self.console.print(Text(f"\n{title}", style="bold"))
        for name, text in rows.items():
            line = Text.assemble((f"{name:<{width}}  ", "dim"), text)
            self.console.print(line, highlight=False, soft_wrap=True)

    def _places(self, outcome: Outcome) -> None:
        rows = {"main": f"{outcome.result.figures.events_out:>9,}  {outcome.places.sink}"}
        for name, uri in outcome.places.sides.items():
            if not (count := outcome.result.sides.get(name, 0)):
                continue
            rows[name] = f"{count:>9,}  {uri}"
            kinds = sorted(outcome.kinds.get(name, {}).items(), key=lambda item: -item[1])
            if len(kinds) > 1 or name in ("rejected", "drift"):
                lines = [f"{n:>9,}  {kind}" for kind, n in kinds[:_MOST_KINDS]]
                lines += [f"{len(kinds) - _MOST_KINDS:>9,}  kinds more"] if len(kinds) > _MOST_KINDS else []
                indent = max(map(len, outcome.places.sides)) + 4
                rows[name] += "".join(f"\n{' ' * indent}{line}" for line in lines)
        width = max(map(len, outcome.places.sides))
        self.rows("Output", {f"{name:<{width}}": text for name, text in rows.items()})


def _console(*, stderr: bool, plain: bool) -> Console:
    from rich.console import Console

    if plain:
        return Console(stderr=stderr, color_system=None, force_terminal=False, highlight=False)
    return Console(stderr=stderr)
