"""The figures of several workers as those of one job, and their plain form between processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from streamml.observability.figures import RunFigures

__all__ = ["from_plain", "of_segments", "to_plain", "together"]

_SECONDS = ("p50", "p95", "p99", "checkpoint_seconds")
_SUMS = (
    "events_in",
    "events_out",
    "events_per_s",
    "late",
    "rejected",
    "duplicates",
    "drift_alarms",
    "checkpoint_bytes",
)


def to_plain(figures: RunFigures) -> dict[str, Any]:
    """Return figures as JSON can hold them: what is not known is None."""
    plain = dataclasses.asdict(figures)
    return plain | {name: None if math.isnan(plain[name]) else plain[name] for name in _SECONDS}


def from_plain(plain: dict[str, Any]) -> RunFigures:
    """Return the figures that `to_plain` gave.

    >>> from_plain(to_plain(RunFigures(events_in=3))).p50
    nan
    """
    lists = {name: tuple(plain[name]) for name in ("recent_drift", "models")}
    return RunFigures(
        **{**plain, **lists, **{name: math.nan if plain[name] is None else plain[name] for name in _SECONDS}}
    )


def together(workers: Sequence[RunFigures], before: Sequence[RunFigures] = ()) -> RunFigures:
    """Return the figures of a job.

    What is counted is summed. Of latencies, lags, and durations of checkpoints it is the greatest, of the watermark,
    the progress and the number of the checkpoint the least: that of the worker that is behind.

    Args:
        workers: of the workers that run now.
        before: of those that have died, up to their last checkpoint; only what is counted.

    >>> both = together([RunFigures(events_in=3, checkpoint=7), RunFigures(events_in=4, checkpoint=6)])
    >>> both.events_in, both.checkpoint
    (7, 6)
    """
    everyone = [*workers, *before]
    sums: dict[str, Any] = {name: sum(getattr(figures, name) for figures in everyone) for name in _SUMS}
    sums["events_per_s"] = sum(figures.events_per_s for figures in workers)
    sums["checkpoint_bytes"] = sum(figures.checkpoint_bytes for figures in workers)
    greatest: dict[str, Any] = {name: _greatest(getattr(figures, name) for figures in workers) for name in _SECONDS}
    cpu = sum((figures.cpu_us_per_event or 0.0) * figures.events_in for figures in everyone)
    return RunFigures(
        **sums,
        **greatest,
        lag_events=max((f.lag_events for f in workers if f.lag_events is not None), default=None),
        lag_seconds=max((f.lag_seconds for f in workers if f.lag_seconds is not None), default=None),
        watermark_ms=_least(figures.watermark_ms for figures in workers),
        checkpoint=_least(figures.checkpoint for figures in workers),
        progress=_least(figures.progress for figures in workers),
        recent_drift=tuple(text for figures in workers for text in figures.recent_drift)[-3:],
        models=tuple(dict.fromkeys(model for figures in workers for model in figures.models)),
        cpu_us_per_event=cpu / sums["events_in"] if sums["events_in"] else None,
        elapsed=max((figures.elapsed for figures in workers), default=0.0),
    )


def of_segments(segments: Sequence[RunFigures]) -> RunFigures:
    """Return the figures of a job from those of its segments: in is what the first one read, out what the last wrote.

    >>> first, last = RunFigures(events_in=9, events_out=5, late=1), RunFigures(events_in=5, events_out=2, late=1)
    >>> both = of_segments([first, last])
    >>> both.events_in, both.events_out, both.late
    (9, 2, 2)
    """
    first, last = segments[0], segments[-1]
    if len(segments) == 1:
        return first
    whole = together(segments)
    cpu = (whole.cpu_us_per_event or 0.0) * whole.events_in
    return dataclasses.replace(
        whole,
        events_in=first.events_in,
        events_out=last.events_out,
        events_per_s=first.events_per_s,
        progress=first.progress,
        lag_events=first.lag_events,
        lag_seconds=first.lag_seconds,
        cpu_us_per_event=cpu / first.events_in if first.events_in else None,
    )


def _greatest(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _least(values: Iterable[Any]) -> Any:
    """Return the least value; None where one worker has none."""
    found = list(values)
    return None if None in found else min(found, default=None)
