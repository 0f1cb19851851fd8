"""Versions beside the champion: the canary's guard, and what the shadows say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamml.contract import Context
from streamml.models.guards import Watch
from streamml.models.rollout import Rollout
from streamml.models.serving import Serving
from streamml.operators.scores import Scores
from streamml.records import Batch

if TYPE_CHECKING:
    from streamml.models.scorer import Outcome

__all__ = ["Rivals"]

_TOLERANCE = 0.1
"""Difference of two scores that still agree, where no guard says another."""


class Rivals:
    """Compares other versions with the champion.

    Args:
        serving: where a canary is rolled back.
        metrics: the job's metrics.
    """

    def __init__(self, serving: Serving, metrics: Any) -> None:
        self._serving = serving
        self._metrics = metrics
        self._watches: dict[int, Watch] = {}

    def watch(self, rollout: Rollout, champion: tuple[int, int], canary: Outcome, again: Outcome) -> None:
        """Feed the guard of a canary, and roll the canary back once it crosses a limit.

        Args:
            rollout: what is in force.
            champion: how many rows of its own the champion failed on, and how many it had.
            canary: what the canary made of its rows.
            again: what the champion made of the same rows, in a call of the same size.
        """
        guard = rollout.guard
        if guard is None or rollout.canary is None:
            return
        watch = self._watches.get(rollout.number)
        if watch is None:
            self._watches = {rollout.number: (watch := Watch(guard))}
        rows = len(next(iter(canary.columns.values())))
        failed, failed_again = (sum(f.reason != "input" for f in o.failures.values()) for o in (canary, again))
        watch.errors(champion[0] + failed_again, champion[1] + rows, failed, rows)
        watch.times([again.seconds / rows], [canary.seconds / rows])
        pairs = [(mine, theirs) for mine, theirs in _pairs(canary, again) if mine is not None and theirs is not None]
        differing = sum(_differ(mine, theirs, guard.tolerance) for mine, theirs in pairs)
        watch.agreements(differing, len(pairs))
        if pairs and isinstance(pairs[0][0], int | float):
            watch.scores([theirs for _, theirs in pairs], [mine for mine, _ in pairs])
        self._disagree(f"{self._serving.name}:{rollout.canary}", differing)
        if (why := watch.verdict()) is not None:
            self._serving.roll_back(rollout, why)

    def report(
        self, version: str, outcome: Outcome, batch: Batch, rows: list[int], scores: Scores, ctx: Context
    ) -> None:
        """Write what a shadow says of some rows to the side output `shadow`."""
        fields = list(scores.columns)
        first = scores.columns[fields[0]]
        differing = 0
        for place, row in enumerate(rows):
            failure = outcome.failures.get(place)
            said: dict[str, Any] = {field: outcome.columns[field][place] for field in fields}
            differs = failure is not None or _differ(said[fields[0]], first[row], _TOLERANCE)
            differing += differs
            ctx.side(
                "shadow",
                batch.record(row),
                model_version=version,
                scores=said,
                champion_version=scores.versions[row],
                champion_scores={field: scores.columns[field][row] for field in fields},
                differs=differs,
                **({} if failure is None else {"error": str(failure.error)}),
            )
        self._disagree(version, differing)

    def _disagree(self, version: str, differing: int) -> None:
        if self._metrics and differing:
            self._metrics.counter("streamml_model_disagreement_total", model=version).inc(differing)


def _pairs(mine: Outcome, theirs: Outcome) -> list[tuple[Any, Any]]:
    return list(zip(next(iter(mine.columns.values())), next(iter(theirs.columns.values())), strict=True))


def _differ(mine: Any, theirs: Any, tolerance: float) -> bool:
    """Return whether two outputs disagree: numbers by more than the tolerance, lists in any place."""
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) != len(theirs) or any(_differ(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))
    if isinstance(mine, int | float) and isinstance(theirs, int | float):
        return abs(mine - theirs) > tolerance
    return bool(mine != theirs)
