"""The figures of a run, and their plain forms: one line of text, or JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

__all__ = [
    "RunFigures",
    "as_json",
    "clean",
    "format_bytes",
    "format_count",
    "format_elapsed",
    "format_seconds",
    "format_time",
    "plain_line",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What a run did so far; made by the engine, shown by the panel.

    Attributes:
        events_in: Events read.
        events_out: Records emitted.
        events_per_s: Events read per second, now.
        p50: Median latency in seconds; NaN if unknown, like the next two.
        p95: 95th percentile of the latency in seconds.
        p99: 99th percentile of the latency in seconds.
        lag_events: Events in the source that are not read yet; None if the source cannot tell.
        lag_seconds: Age of the last record read where more wait, by the transport's clock; None if unknown.
        watermark_ms: Watermark in milliseconds since the epoch; None before the first event.
        late: Late events.
        rejected: Rejected records.
        duplicates: Duplicates.
        drift_alarms: Drift alarms.
        recent_drift: The last few drift alarms as text, newest last.
        models: Model versions in use, such as "fraud@prod v7".
        checkpoint: Number of the last checkpoint; None before the first.
        checkpoint_seconds: How long it took in seconds.
        checkpoint_bytes: Its size in bytes.
        cpu_us_per_event: Processor time per event in microseconds; None if unknown.
        elapsed: Seconds since the start.
        progress: Share of the work that is done, from 0 to 1; None for an endless run.
    """

    events_in: int = 0
    events_out: int = 0
    events_per_s: float = 0.0
    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan
    lag_events: int | None = None
    lag_seconds: float | None = None
    watermark_ms: int | None = None
    late: int = 0
    rejected: int = 0
    duplicates: int = 0
    drift_alarms: int = 0
    recent_drift: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    checkpoint: int | None = None
    checkpoint_seconds: float = math.nan
    checkpoint_bytes: int = 0
    cpu_us_per_event: float | None = None
    elapsed: float = 0.0
    progress: float | None = None


def plain_line(figures: RunFigures) -> str:
    """Return the figures as one line of ASCII, for logs and pipes.

    >>> plain_line(RunFigures(events_in=1200, events_out=3, events_per_s=600, p50=0.001, p95=0.002, elapsed=2))
    '0:00:02 in=1,200 out=3 rate=600/s p50=1.0ms p95=2.0ms p99=- late=0 rejected=0 duplicates=0 drift=0'
    """
    f = figures
    parts = [format_elapsed(f.elapsed)]
    if f.progress is not None:
        parts.append(f"done={f.progress:.0%}")
    parts += [f"in={f.events_in:,}", f"out={f.events_out:,}", f"rate={format_count(f.events_per_s)}/s"]
    parts += [f"{name}={format_seconds(getattr(f, name))}".replace(" ", "") for name in ("p50", "p95", "p99")]
    if f.lag_events is not None:
        parts.append(f"lag={f.lag_events:,}")
    if f.lag_seconds is not None:
        parts.append(f"behind={format_seconds(f.lag_seconds)}".replace(" ", ""))
    if f.watermark_ms is not None:
        parts.append(f"watermark={format_time(f.watermark_ms).replace(' ', 'T')}")
    parts += [f"late={f.late:,}", f"rejected={f.rejected:,}", f"duplicates={f.duplicates:,}"]
    parts.append(f"drift={f.drift_alarms:,}")
    if f.checkpoint is not None:
        parts.append(f"checkpoint={f.checkpoint}")
    return " ".join(parts)


def as_json(figures: RunFigures) -> bytes:
    """Return the figures as one JSON object on one line; NaN becomes null.

    >>> as_json(RunFigures(events_in=5))[:31]
    b'{"events_in":5,"events_out":0,"'
    """
    return msgspec.json.encode(figures)


def clean(text: str) -> str:
    r"""Return text from outside without control codes, so that it cannot steer the terminal.

    >>> clean("amount\x1b[31m\n")
    'amount [31m '
    """
    return "".join(c if c.isprintable() else " " for c in text)


def format_count(value: float) -> str:
    """Return a number with thousands separators, a small one with a decimal.

    >>> format_count(52310.4), format_count(3.25), format_count(0)
    ('52,310', '3.2', '0')
    """
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def format_seconds(value: float) -> str:
    """Return a duration in the fitting unit, ASCII only.

    >>> [format_seconds(value) for value in (0.000042, 0.0123, 3.0, 7200.0, float("nan"))]
    ['42 us', '12.3 ms', '3.00 s', '2:00:00', '-']
    """
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    if size < 0.9995e-3:
        return f"{value * 1e6:.0f} us"
    if size < 0.9995:
        return f"{value * 1e3:.1f} ms" if size < 0.09995 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if size < 120 else format_elapsed(value)


def format_elapsed(value: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> format_elapsed(3725.9)
    '1:02:05'
    """
    if not math.isfinite(value):
        return "-"
    minutes, seconds = divmod(int(abs(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{'-' if value < 0 else ''}{hours}:{minutes:02}:{seconds:02}"


def format_bytes(value: float) -> str:
    """Return a size in the fitting unit.

    >>> format_bytes(512), format_bytes(1_234_567)
    ('512 B', '1.2 MB')
    """
    if abs(value) < 999.5:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} TB"


def format_time(milliseconds: int) -> str:
    """Return a time in UTC, or "-" for one that no calendar has (the watermark of an empty stream).

    >>> format_time(1_700_000_000_123), format_time(-(2**63))
    ('2023-11-14 22:13:20Z', '-')
    """
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "-"
