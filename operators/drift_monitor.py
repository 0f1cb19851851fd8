"""`DriftMonitor`: compare what streams by with a model's reference profile, window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamml.contract import Context, KeyedOperator, Opening, Timer
from streamml.drift import Profile, ProfileError, Verdict, compare
from streamml.drift.psi import MIN_SAMPLE
from streamml.errors import ModelError, PlanError, RecordError
from streamml.operators.drift_windows import Counts, Tally, Windows, bin_names, layout_of
from streamml.operators.windows import positive_millis
from streamml.records import Batch, Record
from streamml.state import ObjectState
from streamml.times import Duration

__all__ = ["MAX_OPEN_WINDOWS", "DriftMonitor"]

MAX_OPEN_WINDOWS = 1024
"""Most windows that one monitor keeps open; events that would open more are passed on and not counted."""


class DriftMonitor(KeyedOperator):
    """Pass every event on unchanged, and report to the side output `drift` when a feature has left its reference.

    The values of all keys that this worker sees are counted into the bins of the reference, per tumbling window of
    event time. When the watermark reaches a window's end, each feature is compared by PSI. The limit follows from the
    sample sizes, so that a window without drift gives any alarm at all with probability `false_alarm_rate` (hourly
    windows at 0.01: one in about four days). Only alarms are sent: one record per feature, with the counts per bin and
    the share that the reference expects there. What the other windows said is in the metrics
    `streamml_drift_checks_total`, `streamml_drift_too_few_total` and `streamml_drift_psi_ratio`.

    A missing field, None, NaN, and what is no number where the reference has numbers, count as missing, which is a bin
    of its own. An event that comes after its window was judged is not counted (`streamml_drift_uncounted_total`).

    The rate holds for independent values. Values of one key often are not: a burst of one card, or a running mean, says
    about the same thing many times. If every value comes twice, 28 % of the windows without drift alarm; five times,
    90 %. Say so with `design_effect`. The cautious choice is the sum over the keys of their squared numbers of events
    in a typical window, divided by all its events (5 if each card sends 5). It costs power, as fewer events would.

    Args:
        reference: a bundle, by folder or by name in the job's model folders (`fraud@prod`), a `profile.json`, or a
            `Profile`.
        features: fields to watch; each is a feature of the reference.
        every: length of a window.
        false_alarm_rate: share of the windows without drift that may alarm, all features together (Bonferroni).
        min_events: fewest events of a window for a verdict.
        design_effect: by what the number of events is divided, since they hang together.

    >>> from streamml.testing import advance, event, run
    >>> reference = Profile.fit({"amount": range(1000)}, bins=4)
    >>> script = [event(f"card-{i}", t=i * 100, amount=i * 37 % 1000) for i in range(400)]
    >>> script += [event(f"card-{i}", t=60_000 + i * 100, amount=i * 37 % 1500) for i in range(400)]
    >>> result = run([DriftMonitor(reference, features=["amount"], every="1m")], [*script, advance("2m")])
    >>> [(d["window_start"], round(d["psi"], 2), d["counts"]) for d in result.side("drift")]
    [(60000, 0.26, [67, 69, 67, 197, 0])]
    """

    sides = ("drift",)
    rejects_rows = True

    reference: str | Path | Profile
    features: Sequence[str]
    every: Duration = "1h"
    false_alarm_rate: float = 0.01
    min_events: int = MIN_SAMPLE
    design_effect: float = 1.0

    windows = ObjectState[Windows](
        new=lambda op: Windows,
        to_wire=lambda op: Windows.to_wire,
        from_wire=lambda op: Windows.from_wire,
        signature=lambda op: "drift windows",
        scope="stage",
    )

    def validate(self) -> None:
        """Refuse options that can't work."""
        where = f"DriftMonitor(name={self.name!r})"
        if not isinstance(self.reference, str | Path | Profile):
            wanted = "a bundle such as 'fraud@prod', a profile.json or a Profile"
            msg = f"{where}: reference: wanted {wanted}, got {self.reference!r}"
            raise PlanError(msg)
        if isinstance(self.features, str) or not self.features or len(set(self.features)) < len(self.features):
            wanted = "a list of different fields such as ['amount', 'score']"
            msg = f"{where}: features: wanted {wanted}, got {self.features!r}"
            raise PlanError(msg)
        object.__setattr__(self, "size", positive_millis(self.every, f"{where}: every"))
        rate, effect = self.false_alarm_rate, self.design_effect
        if not (0.0 < rate < 1.0 and self.min_events >= MIN_SAMPLE and effect >= 1.0):
            msg = (
                f"{where}: wanted a false_alarm_rate between 0 and 1, min_events of at least {MIN_SAMPLE} (fewer don't "
                f"hold the rate) and a design_effect of at least 1; got {rate}, {self.min_events} and {effect}"
            )
            raise PlanError(msg)

    def reads(self) -> Sequence[str]:
        """Return the features."""
        return self.features

    def open(self, opening: Opening) -> None:
        """Find the reference."""
        where = f"DriftMonitor(name={self.name!r})"
        profile, title = _find(self.reference, opening, where)
        for feature in self.features:
            if feature not in profile:
                at = f"{where}: reference {title}"
                raise PlanError.unknown(at, "feature", feature, profile.features)
            if profile[feature].n < MIN_SAMPLE:
                msg = (
                    f"{where}: reference {title}: feature {feature!r} has {profile[feature].n} values, and with fewer "
                    f"than {MIN_SAMPLE} there is never a verdict; fit the profile from more data"
                )
                raise PlanError(msg)
        self._set("_profile", profile)
        self._set("_title", title)
        self._set("_pipeline", opening.pipeline)
        self._set("_worker", opening.worker)
        self._set("_tallies", [Tally(profile[feature]) for feature in self.features])
        self._set("_layout", layout_of(self.size, {feature: profile[feature] for feature in self.features}))
        metrics = opening.metrics
        verdicts: dict[str, tuple[Any, Any, Any]] = {}
        for feature in self.features if metrics else ():
            labels = {"operator": self.name, "feature": feature}
            verdicts[feature] = (
                metrics.counter("streamml_drift_checks_total", **labels),
                metrics.counter("streamml_drift_too_few_total", **labels),
                metrics.gauge("streamml_drift_psi_ratio", **labels),
            )
        self._set("_verdicts", verdicts)
        reasons = ("late", "too_many_windows", "reference_changed") if metrics else ()
        name = "streamml_drift_uncounted_total"
        self._set("_uncounted", {r: metrics.counter(name, operator=self.name, reason=r) for r in reasons})

    def earliest_timer(self, watermark: int, earliest: int) -> int:
        """Return the end of the earliest window that is still to be judged."""
        return self._start(max(watermark, earliest)) + self.size

    def on_event(self, event: Record, ctx: Context) -> None:
        """Count the event and emit it."""
        counts = [tally.one(_value(event, f)) for tally, f in zip(self._tallies, self.features, strict=True)]
        ctx.emit(event)
        start = self._start(event.timestamp)
        if start + self.size <= ctx.watermark:
            self._pass_over("late", 1)
        else:
            self._add(ctx, start, 1, counts)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Do the same by columns."""
        columns = [_values(batch, feature) for feature in self.features]
        groups = self._groups(batch)
        counted: list[tuple[int, int, list[Counts]]] = []
        for start, rows in groups.items():
            parts = columns if len(rows) == len(batch) else [[column[row] for row in rows] for column in columns]
            counts = [tally.many(part) for tally, part in zip(self._tallies, parts, strict=True)]
            counted.append((start, len(rows), counts))
        self._pass_over("late", len(batch) - sum(n for _, n, _ in counted))
        for start, n, counts in counted:
            self._add(ctx, start, n, counts)
        return batch

    def on_timer(self, timer: Timer, ctx: Context) -> None:
        """Judge a window and forget it."""
        windows = self._current()
        window = windows.counts.pop(timer.time - self.size, None)
        if not windows.counts:
            self.windows.clear()
        for feature, counts in zip(self.features, window or (), strict=window is not None):
            self._judge(feature, counts, timer.time, ctx)

    def _judge(self, feature: str, counts: Counts, end: int, ctx: Context) -> None:
        n = int(counts.sum())
        independent = counts / self.design_effect
        result = compare(self._profile, feature, independent, self.false_alarm_rate, comparisons=len(self.features))
        too_few = n < self.min_events or result.verdict is Verdict.TOO_FEW
        if feature in self._verdicts:
            checks, without, ratio = self._verdicts[feature]
            checks.inc()
            if too_few:
                without.inc()
            elif result.threshold > 0.0:  # 0.0: all of the reference lies in one bin
                ratio.set(result.psi / result.threshold)
        if too_few or result.verdict is not Verdict.DRIFT:
            return
        bins = self._profile[feature]
        start = end - self.size
        ctx.side(
            "drift",
            id=f"{self._pipeline}/{self.name}/{feature}/{start}{self._worker}",
            key=None,
            feature=feature,
            verdict=result.verdict.value,
            psi=result.psi,
            threshold=result.threshold,
            n=n,
            n_reference=bins.n,
            reference=self._title,
            window_start=start,
            window_end=end,
            false_alarm_rate=self.false_alarm_rate,
            design_effect=self.design_effect,
            bins=bin_names(bins),
            counts=counts.tolist(),
            expected=[count / bins.n for count in bins.counts],
        )

    def _start(self, time: int) -> int:
        return time - time % self.size

    def _groups(self, batch: Batch) -> dict[int, Sequence[int]]:
        """Return the rows of each window that is not judged yet, in the order in which the windows come up."""
        every, times, watermarks = self.size, batch.times, batch.watermarks
        start = self._start(min(times))
        if max(times) < start + every > watermarks[-1]:
            return {start: range(len(times))}
        groups: dict[int, list[int]] = {}
        for row, (time, watermark) in enumerate(zip(times, watermarks, strict=True)):
            start = time - time % every
            if start + every > watermark:
                groups.setdefault(start, []).append(row)
        return dict(groups)

    def _add(self, ctx: Context, start: int, n: int, counts: list[Counts]) -> None:
        windows = self._current()
        window = windows.counts.get(start)
        if window is not None:
            for total, more in zip(window, counts, strict=True):
                total += more
        elif len(windows.counts) < MAX_OPEN_WINDOWS:
            windows.counts[start] = counts
            ctx.set_timer(start + self.size, entry=ctx.stage_entry)
        else:
            self._pass_over("too_many_windows", n)

    def _current(self) -> Windows:
        """Return the open windows; those that were counted into other bins before a restart are given up."""
        windows: Windows = self.windows.get()
        if windows.layout != self._layout:
            self._pass_over("reference_changed", sum(int(counts[0].sum()) for counts in windows.counts.values()))
            windows.counts.clear()
            windows.layout = self._layout
        return windows

    def _pass_over(self, reason: str, n: int) -> None:
        if n and reason in self._uncounted:
            self._uncounted[reason].inc(n)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:
        size: int = 0
        _profile: Profile = Profile({})
        _title: str = ""
        _pipeline: str = ""
        _worker: str = ""
        _tallies: Sequence[Tally] = ()
        _layout: str = ""
        _verdicts: Mapping[str, tuple[Any, Any, Any]] = {}
        _uncounted: Mapping[str, Any] = {}


def _value(event: Record, feature: str) -> Any:
    """Return a field of an event, None if it is not there."""
    if feature in event.fields:
        return event.fields[feature]
    value = event.value
    return value.get(feature) if isinstance(value, dict) else getattr(value, feature, None)


def _values(batch: Batch, feature: str) -> list[Any]:
    try:
        return batch.column(feature)
    except RecordError:  # some rows lack it
        return [_value(batch.record(row), feature) for row in range(len(batch))]


def _find(reference: str | Path | Profile, opening: Opening, where: str) -> tuple[Profile, str]:
    """Return the profile that a reference means, and what to call it."""
    if isinstance(reference, Profile):
        return reference, "profile"
    if Path(reference).suffix == ".json":
        try:
            return Profile.from_json(Path(reference).read_bytes()), str(reference)
        except (OSError, ProfileError) as exc:
            todo = "write it with Profile.fit(...).to_json()"
            msg = f"{where}: reference {str(reference)!r} can't be read ({exc}); {todo}"
            raise PlanError(msg) from exc
    from streamml.models import Bundle, resolve

    path = resolve(str(reference), opening.models)
    if path.is_dir():
        bundle = Bundle.load(path)
        if bundle.profile is not None:
            return bundle.profile, f"{bundle.manifest.name}:{bundle.manifest.version}"
    there = ", ".join(sorted(p.name for p in path.iterdir())) if path.is_dir() else "a bare model file"
    msg = (
        f"{where}: reference {str(reference)!r} ({path}) has no drift profile, it has: {there}. Write the bundle with "
        "profile=Profile.fit({feature: training values, ...}), or pass a profile.json or a Profile"
    )
    raise ModelError(msg)
