"""What `Infer` says of its inputs: features logged for parity, and what moved a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamml.contract import Context
from streamml.errors import ModelError
from streamml.models.attribution import Attribution
from streamml.models.parity import feature_hash
from streamml.operators.scores import Scores
from streamml.records import Batch

if TYPE_CHECKING:
    from streamml.models.scorer import Scorer

__all__ = ["Explaining", "log_features"]

_KEPT = 4
"""Versions whose explanation is kept at hand."""


def log_features(scorer: Scorer, columns: Sequence[Any], batch: Batch, scores: Scores, ctx: Context) -> None:
    """Write the inputs of each scored row, with their hash, to the side output `features`."""
    names = [name if isinstance(name, str) else f"constant_{at}" for at, name in enumerate(scorer.inputs)]
    for row in range(len(batch)):
        if row not in scores.failures:
            values = [column[row] for column in columns]
            features = dict(zip(names, values, strict=True))
            version = scores.versions[row]
            ctx.side("features", batch.record(row), model_version=version, features=features, hash=feature_hash(values))


class Explaining:
    """Writes by how much each feature moved each row's score to the side output `attribution`."""

    def __init__(self) -> None:
        self._known: dict[str, Attribution] = {}

    def attribution(self, scorer: Scorer) -> Attribution:
        """Return what explains a version.

        Raises:
            ModelError: the model is of a kind that can't be explained.
        """
        found = self._known.get(scorer.version)
        if found is None:
            self._known = {scorer.version: (found := Attribution(scorer.model)), **self._known}
            while len(self._known) > _KEPT:
                self._known.popitem()
        return found

    def write(self, scorer: Scorer, columns: Sequence[Any], batch: Batch, rows: Sequence[int], ctx: Context) -> None:
        """Explain rows that one version scored."""
        try:
            attribution = self.attribution(scorer)
        except ModelError as exc:  # a later version, of a kind that can't be explained
            ctx.side("attribution", batch.record(rows[0]), model_version=scorer.version, error=str(exc))
            return
        contributions = attribution.contributions(columns)
        for row, moved in zip(rows, contributions, strict=True):
            ctx.side(
                "attribution",
                batch.record(row),
                model_version=scorer.version,
                base=attribution.base,
                contributions=moved,
            )
