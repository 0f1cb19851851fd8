"""The scores of a micro-batch while they are being made: every row ends with one score, or with one error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streamml.contract import Context
from streamml.records import Batch

if TYPE_CHECKING:
    from streamml.models.isolate import Failure
    from streamml.models.scorer import Outcome

__all__ = ["Scores"]


class Scores:
    """Outputs by column, with the version of each row.

    Attributes:
        columns: outputs by field, None where a row has none.
        versions: for each row the version that scored it, or failed on it last.
        failures: for each row without a score, the error.
        degraded: for each row that took a fallback, why.
    """

    def __init__(self, rows: int, fields: Iterable[str]) -> None:
        self._fields = tuple(fields)
        self._rows = rows
        self._whole = ""  # the version of all rows, as long as there was only one
        self.columns: dict[str, list[Any]] = {}
        self.failures: dict[int, Failure] = {}
        self.degraded: dict[int, str] = {}
        self._versions: list[str] = []

    @property
    def versions(self) -> list[str]:
        """For each row the version."""
        if not self._versions:
            self._versions = [self._whole] * self._rows
        return self._versions

    def by_version(self) -> dict[str, list[int]]:
        """Return the rows that a version of the model itself scored, by version."""
        found: dict[str, list[int]] = {}
        for row, version in enumerate(self.versions):
            if row not in self.failures and row not in self.degraded:
                found.setdefault(version, []).append(row)
        return found

    def put(self, version: str, rows: list[int] | None, outcome: Outcome) -> None:
        """Take what a version made of some rows, or of all of them."""
        if rows is None:
            self._whole, self.columns = version, outcome.columns
            self.failures = outcome.failures
            return
        if not self.columns:
            self.columns = {field: [None] * self._rows for field in self._fields}
        versions = self.versions
        for place, row in enumerate(rows):
            versions[row] = version
            failure = outcome.failures.get(place)
            if failure is None:
                self.failures.pop(row, None)
            else:
                self.failures[row] = failure
        for field, column in outcome.columns.items():
            target = self.columns[field]
            for row, value in zip(rows, column, strict=True):
                target[row] = value

    def replace(self, row: int, version: str, values: Iterable[Any]) -> None:
        """Give a row that one version failed on the score of another."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column[row] = value
        self.versions[row] = version
        self.failures.pop(row, None)

    def set(self, row: int, version: str, values: Iterable[Any], reason: str) -> None:
        """Give a row that failed the values of a fallback."""
        self.replace(row, version, values)
        self.degraded[row] = reason

    def finish(self, batch: Batch, ctx: Context, *, degraded: bool) -> Batch:
        """Return the rows that have a score, with the outputs; send the others to `rejected`."""
        columns: dict[str, list[Any]] = {**self.columns, "model_version": self.versions}
        if degraded:
            reasons = self.degraded
            columns["degraded"] = [reasons.get(row) for row in range(self._rows)] if reasons else [None] * self._rows
        made = batch.with_fields(columns)
        if self._whole and not self.failures and not self.degraded:
            suffix = "/" + self._whole
            made.ids = [id + suffix for id in batch.ids]
        else:
            made.ids = [f"{id}/{version}" for id, version in zip(batch.ids, self.versions, strict=True)]
        if not self.failures:
            return made
        for row in sorted(self.failures):
            ctx.reject(batch.record(row), self.failures[row].error, model_version=self.versions[row])
        return made.take([row for row in range(self._rows) if row not in self.failures])
