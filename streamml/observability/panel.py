"""The terminal panel: a live view of a run, and its summary at the end."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamml.observability.figures import (
    RunFigures,
    as_json,
    clean,
    format_bytes,
    format_count,
    format_elapsed,
    format_seconds,
    format_time,
    plain_line,
)

__all__ = ["Panel", "RunFigures", "as_json", "plain_line", "render", "summary"]

_WIDE = 100  # columns from which on rows stand side by side
_HISTORY = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_SHOWN_ALARMS = 3


class Panel:
    """The live panel on a terminal; one plain line a second where there is none (a pipe, a file, CI).

    It has no clock: `RunFigures.elapsed` says when a second, or a frame, is over. Order of calls: enter, `update` as
    often as you like, `finish` with the last figures, leave.

    Args:
        console: Where to draw.
        title: Name of the job.
        frames_per_s: Most redraws per second of the run.
        live: Whether to redraw in place; by default only where the console's file is a terminal that can.
            (A colour forced by FORCE_COLOR does not make a log file a terminal.)

    >>> from rich.console import Console
    >>> with Panel(Console(width=60), "fraud") as panel:
    ...     panel.update(RunFigures(events_in=10, events_per_s=10, elapsed=1.0))
    0:00:01 in=10 out=0 rate=10/s p50=- p95=- p99=- late=0 rejected=0 duplicates=0 drift=0
    """

    def __init__(self, console: Console, title: str, *, frames_per_s: float = 8.0, live: bool | None = None) -> None:
        self.console = console
        self.title = title
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._live: Live | None = None
        self._interactive = _can_redraw(console) if live is None else live
        self._pause = 1.0 / frames_per_s if self._interactive else 1.0
        self._drawn = float("-inf")
        self._sampled = float("-inf")

    def __enter__(self) -> Self:
        if self._interactive:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, figures: RunFigures) -> None:
        """Show the figures, unless the last ones were shown just now."""
        if figures.elapsed - self._sampled >= 0.95:
            self._rates.append(figures.events_per_s)
            self._sampled = figures.elapsed
        if figures.elapsed - self._drawn < 0.95 * self._pause:  # a caller that ticks once a second is never early
            return
        self._drawn = figures.elapsed
        if self._live is not None:
            sparks = _sparkline(self._rates) if self.console.encoding.startswith("utf") else ""
            self._live.update(render(figures, self.title, self.console.width, sparks), refresh=True)
        elif not self._interactive:
            self.console.print(plain_line(figures), markup=False, highlight=False, soft_wrap=True)

    def finish(self, figures: RunFigures) -> None:
        """Take the panel away and print the summary."""
        self.close()
        self.console.print(summary(figures, self.title))

    def close(self) -> None:
        """Take the panel away and give the cursor back; a second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def render(figures: RunFigures, title: str, width: int, sparks: str = "") -> RenderableType:
    """Return the panel for a width: one column of rows, or two from 100 columns on."""
    f = figures
    flow = _rows()
    flow.add_row("Rate", Text.assemble((format_count(f.events_per_s), "bold cyan"), " events/s  ", (sparks, "cyan")))
    flow.add_row("Events", _figures(("in", f"{f.events_in:,}"), ("out", f"{f.events_out:,}")))
    flow.add_row("Latency", _latency(f))
    if f.lag_events is not None or f.lag_seconds is not None:
        flow.add_row("Lag", _lag(f))
    if f.watermark_ms is not None:
        flow.add_row("Watermark", format_time(f.watermark_ms))
    care = _rows()
    care.add_row("Set aside", _set_aside(f))
    if f.cpu_us_per_event is not None:
        care.add_row("CPU", f"{f.cpu_us_per_event:.1f} us/event")
    care.add_row("Models", Text(clean(", ".join(f.models))) if f.models else Text("none", style="dim"))
    care.add_row("Checkpoint", _checkpoint(f))
    care.add_row("Drift", _drift(f))
    parts: list[RenderableType] = [_side_by_side(flow, care) if width >= _WIDE else Group(flow, care)]
    if f.progress is not None:
        parts.append(_progress(f.progress))
    return Frame(
        Group(*parts),
        title=Text(clean(title), style="bold"),
        title_align="left",
        subtitle=Text(format_elapsed(f.elapsed)),
        subtitle_align="right",
        border_style="cyan",
        box=box.ROUNDED,
        padding=(0, 1),
        width=min(width, 140),
    )


def summary(figures: RunFigures, title: str = "run") -> RenderableType:
    """Return the figures of a finished run, for the end."""
    f = figures
    rows = _rows()
    rate = f.events_in / f.elapsed if f.elapsed > 0 else 0.0
    rows.add_row("Events", _figures(("in", f"{f.events_in:,}"), ("out", f"{f.events_out:,}")))
    rows.add_row("Time", f"{format_elapsed(f.elapsed)}, {format_count(rate)} events/s on average")
    rows.add_row("Latency", _latency(f))
    if f.cpu_us_per_event is not None:
        rows.add_row("CPU", f"{f.cpu_us_per_event:.1f} us/event")
    rows.add_row("Set aside", _set_aside(f))
    rows.add_row("Drift", _drift(f))
    if f.models:
        rows.add_row("Models", Text(clean(", ".join(f.models))))
    if f.checkpoint is not None:
        rows.add_row("Checkpoint", _checkpoint(f))
    return Group(Text(clean(title), style="bold"), rows)


def _can_redraw(console: Console) -> bool:
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def _rows() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=10)
    table.add_column(overflow="fold")
    return table


def _side_by_side(left: Table, right: Table) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(left, right)
    return table


def _figures(*pairs: tuple[str, str]) -> Text:
    return Text("  ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in pairs)


def _latency(f: RunFigures) -> Text:
    return _figures(("p50", format_seconds(f.p50)), ("p95", format_seconds(f.p95)), ("p99", format_seconds(f.p99)))


def _lag(f: RunFigures) -> str:
    parts = [] if f.lag_events is None else [f"{f.lag_events:,} events"]
    return ", ".join(parts if f.lag_seconds is None else [*parts, format_seconds(f.lag_seconds)])


def _set_aside(f: RunFigures) -> Text:
    text = Text()
    for name, n, style in (
        ("late", f.late, "yellow"),
        ("rejected", f.rejected, "red"),
        ("duplicates", f.duplicates, ""),
    ):
        text.append(f"{name} ", style="dim").append(f"{n:,}  ", style=style if n else "")
    text.rstrip()
    return text


def _checkpoint(f: RunFigures) -> Text:
    if f.checkpoint is None:
        return Text("none yet", style="dim")
    return Text(f"#{f.checkpoint}, {format_seconds(f.checkpoint_seconds)}, {format_bytes(f.checkpoint_bytes)}")


def _drift(f: RunFigures) -> Text:
    if not f.drift_alarms:
        return Text("no alarms", style="green")
    text = Text(f"{f.drift_alarms:,} alarm{'s' if f.drift_alarms != 1 else ''}", style="bold red")
    for alarm in f.recent_drift[-_SHOWN_ALARMS:]:
        text.append(f"\n{clean(alarm)}", style="red")
    return text


def _progress(share: float) -> Table:
    share = min(max(share, 0.0), 1.0)
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(ratio=1)
    table.add_column(width=4, justify="right")
    table.add_row(
        ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green"), f"{share:.0%}"
    )
    return table


def _sparkline(rates: deque[float]) -> str:
    top = max(rates, default=0.0)
    return "".join(_SPARKS[int(rate / top * 7.999)] if top > 0 else _SPARKS[0] for rate in rates)
