"""What runs behind `Infer`: rows to versions, versions to scores, failures to fallbacks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from streamml.contract import Context, Opening
from streamml.models.breaker import BreakerState
from streamml.models.deadline import Deadlines
from streamml.models.loaded import LoadedModel
from streamml.models.rollout import Rollout, sticky
from streamml.models.scorer import Outcome, Scorer
from streamml.models.serve import serve
from streamml.models.serving import Serving
from streamml.operators.explaining import Explaining, log_features
from streamml.operators.fallback import LastValue
from streamml.operators.rivals import Rivals
from streamml.operators.scores import Scores
from streamml.records import Batch

if TYPE_CHECKING:
    from streamml.operators.infer import Infer

__all__ = ["Scoring"]


class Scoring:
    """A running `Infer`.

    Args:
        infer: its options.
        opening: what it gets from the engine.
    """

    def __init__(self, infer: Infer, opening: Opening) -> None:
        self._infer = infer
        self._metrics = opening.metrics
        named = () if isinstance(infer.inputs, Mapping) else infer.inputs
        names = [name if isinstance(name, str) else None for name in named]
        self._deadline = inf if infer.deadline is None else int(infer.deadline) / 1000
        self._deadlines = None if infer.deadline is None else Deadlines()
        who = f"{opening.pipeline}/{infer.name}"
        self._serving = serve(infer.model, opening.models, names, who=who, metrics=opening.metrics, check=self._checked)
        try:
            self._others = {
                step: serve(step, opening.models, who=who, metrics=opening.metrics)
                for step in infer.chain
                if isinstance(step, str)
            }
        except BaseException:
            self._serving.close()
            raise
        self._scorers: dict[tuple[str, int], Scorer] = {}
        self._explaining = Explaining()
        self._rivals = Rivals(self._serving, opening.metrics)
        if infer.explain:
            self._explaining.attribution(self._scorer(self._serving, self._serving.current.version))

    @property
    def versions(self) -> tuple[str, ...]:
        """The champion as `name:version`."""
        current = self._serving.current
        return (f"{current.name}:{current.version}",)

    def close(self) -> None:
        """Release all models."""
        if self._deadlines is not None:
            self._deadlines.close()
        for serving in (self._serving, *self._others.values()):
            serving.close()

    def run(self, batch: Batch, ctx: Context, last: Any) -> Batch:
        """Return the scored rows; the others are in the side outputs."""
        infer, serving, until = self._infer, self._serving, time.perf_counter() + self._deadline
        scores = Scores(len(batch), infer.wanted)
        newest = max(batch.times)
        for rollout, rows in self._rollouts(batch, newest):
            parts = self._parts(rollout, batch, rows)
            outcomes = {
                version: self._score(serving, version, batch, part, scores, ctx, until)
                for version, part in parts.items()
            }
            if len(parts) > 1 or rollout.canary in parts:
                self._beside(rollout, parts, outcomes, batch, scores, ctx)
            for version in rollout.shadows:
                everything = list(range(len(batch))) if rows is None else rows
                scorer = self._scorer(serving, version)
                self._rivals.report(
                    scorer.version, self._ask(scorer, batch, everything, ctx, until), batch, everything, scores, ctx
                )
        if scores.failures and infer.chain:
            self._fall_back(batch, scores, ctx, last)
        elif last is not None:
            _remember(batch, scores, ctx, last)
        made = scores.finish(batch, ctx, degraded=bool(infer.chain))
        if infer.log_features:
            scorer = self._scorer(serving, serving.current.version)
            log_features(scorer, self._columns(scorer, batch, None), batch, scores, ctx)
        if infer.explain:
            for name, part in scores.by_version().items():
                scorer = self._scorer(serving, int(name.rpartition(":")[2]))
                self._explaining.write(scorer, self._columns(scorer, batch, part), batch, part, ctx)
        for news in serving.news():
            ctx.side("rollout", news)
        serving.settle(newest, batch.watermarks[-1])
        return made

    def _rollouts(self, batch: Batch, newest: int) -> list[tuple[Rollout, list[int] | None]]:
        """Return what is in force at the rows' times, with the rows; None means all of them."""
        serving = self._serving
        history = serving.history
        first, last = serving.rollout(history, min(batch.times)), serving.rollout(history, newest)
        if first is last:
            return [(first, None)]
        found: dict[int, tuple[Rollout, list[int]]] = {}
        for row, at in enumerate(batch.times):
            rollout = serving.rollout(serving.history, at)
            found.setdefault(rollout.number, (rollout, []))[1].append(row)
        return list(found.values())

    def _parts(self, rollout: Rollout, batch: Batch, rows: list[int] | None) -> dict[int, list[int] | None]:
        """Deal rows to champion, canary and variants."""
        if not rollout.splits:
            return {rollout.champion: rows}
        name, parts = self._serving.name, dict[int, list[int] | None]()
        by = batch.column(self._infer.split_by) if self._infer.split_by else batch.keys
        for row in range(len(batch)) if rows is None else rows:
            key = by[row] if by[row] is not None else batch.ids[row]
            part = parts.setdefault(rollout.choose(sticky(name, key)), [])
            assert part is not None
            part.append(row)
        return parts

    def _ask(self, scorer: Scorer, batch: Batch, rows: list[int] | None, ctx: Context, until: float) -> Outcome:
        columns = self._columns(scorer, batch, rows)
        return scorer.score(columns, len(batch) if rows is None else len(rows), ctx.now, until)

    def _score(
        self,
        serving: Serving,
        version: int,
        batch: Batch,
        rows: list[int] | None,
        scores: Scores,
        ctx: Context,
        until: float,
    ) -> Outcome:
        scorer = self._scorer(serving, version)
        outcome = self._ask(scorer, batch, rows, ctx, until)
        scores.put(scorer.version, rows, outcome)
        return outcome

    def _beside(
        self,
        rollout: Rollout,
        parts: dict[int, list[int] | None],
        outcomes: dict[int, Outcome],
        batch: Batch,
        scores: Scores,
        ctx: Context,
    ) -> None:
        """Let the champion score what another version failed on, and the canary's guard see both."""
        canary, champion = rollout.canary, self._scorer(self._serving, rollout.champion)
        watched = canary is not None and rollout.guard is not None
        for version, rows in parts.items():
            if version == rollout.champion or not rows:
                continue
            failed = [place for place, failure in outcomes[version].failures.items() if failure.reason != "input"]
            if not failed and not (watched and version == canary):
                continue
            asked = list(range(len(rows))) if watched and version == canary else failed
            again = self._ask(champion, batch, [rows[place] for place in asked], ctx, inf)
            for place, at in enumerate(asked):
                if at in failed and place not in again.failures:
                    values = [column[place] for column in again.columns.values()]
                    scores.replace(rows[at], champion.version, values)
            if watched and version == canary:
                own = outcomes.get(rollout.champion)
                total = len(parts.get(rollout.champion) or ())
                self._rivals.watch(rollout, (_failed(own), total), outcomes[version], again)

    def _fall_back(self, batch: Batch, scores: Scores, ctx: Context, last: Any) -> None:
        """Go through the fallbacks until every row that the model failed on has a score."""
        for step in self._infer.chain:
            rows = [row for row, failure in scores.failures.items() if failure.reason != "input"]
            if isinstance(step, LastValue):
                _remember(batch, scores, ctx, last)
            elif isinstance(step, dict):
                for row in rows:
                    scores.set(row, "constant", step.values(), scores.failures[row].reason)
            elif rows:
                self._other(self._others[step], batch, rows, scores, ctx)
        if self._metrics:
            for reason, count in Counter(scores.degraded.values()).items():
                self._fallbacks(reason).inc(count)

    def _other(self, serving: Serving, batch: Batch, rows: list[int], scores: Scores, ctx: Context) -> None:
        """Let another model score rows that failed."""
        history = serving.history
        by_version: dict[int, list[int]] = {}
        for row in rows:
            by_version.setdefault(serving.rollout(history, batch.times[row]).champion, []).append(row)
        for version, part in by_version.items():
            scorer = self._scorer(serving, version)
            outcome = self._ask(scorer, batch, part, ctx, inf)
            for place, row in enumerate(part):
                if place not in outcome.failures:
                    values = [column[place] for column in outcome.columns.values()]
                    scores.set(row, scorer.version, values, scores.failures[row].reason)
        serving.settle(max(batch.times), batch.watermarks[-1])

    def _fallbacks(self, reason: str) -> Any:
        return self._metrics.counter("streamml_model_fallbacks_total", model=self._serving.name, reason=reason)

    def _scorer(self, serving: Serving, version: int) -> Scorer:
        model = serving.model(version)
        found = self._scorers.get((serving.name, version))
        if found is None or found.model is not model:
            found = self._made(model) if serving is self._serving else self._small(model)
            self._scorers[serving.name, version] = found
        return found

    def _made(self, model: LoadedModel) -> Scorer:
        infer = self._infer
        return Scorer(
            model,
            infer.inputs,
            infer.wanted,
            missing=infer.missing,
            deadlines=self._deadlines,
            breaker=BreakerState(infer.breaker) if infer.breaker is not None else None,
            metrics=self._metrics,
            price=infer.price / 3600,
            buckets=infer.buckets,
            lengths=infer.lengths,
        )

    def _small(self, model: LoadedModel) -> Scorer:
        """Return the scorer of a fallback, whose inputs its bundle names, and whose first outputs are taken."""
        infer = self._infer
        outputs = {field: place for place, field in enumerate(infer.wanted)}
        return Scorer(model, (), outputs, missing=infer.missing, metrics=self._metrics, price=infer.price / 3600)

    def _checked(self, model: LoadedModel) -> None:
        """Refuse a version that lacks an input or output which is named here."""
        Scorer(model, self._infer.inputs, self._infer.wanted, buckets=self._infer.buckets, lengths=self._infer.lengths)

    @staticmethod
    def _columns(scorer: Scorer, batch: Batch, rows: list[int] | None) -> list[Any]:
        columns: list[Any] = []
        for name in scorer.inputs:
            if not isinstance(name, str):
                columns.append(_constant(name, len(batch) if rows is None else len(rows)))
            else:
                column = batch.column(name)
                columns.append(column if rows is None else [column[row] for row in rows])
        return columns


def _constant(value: float, rows: int) -> Any:
    import numpy as np

    return np.full(rows, value)


def _failed(outcome: Outcome | None) -> int:
    return 0 if outcome is None else sum(failure.reason != "input" for failure in outcome.failures.values())


def _remember(batch: Batch, scores: Scores, ctx: Context, last: Any) -> None:
    """Go through the rows in order: keep what the model gave a key, and give it where the model failed."""
    for row, entry in enumerate(batch.entries or ()):
        ctx.at(entry, None, batch.keys[row], batch.times[row], batch.watermarks[row])
        failure = scores.failures.get(row)
        if failure is None and row not in scores.degraded:
            last.set([scores.versions[row], *(column[row] for column in scores.columns.values())])
        elif failure is not None and failure.reason != "input" and (kept := last.get()) is not None:
            scores.set(row, kept[0], kept[1:], failure.reason)
