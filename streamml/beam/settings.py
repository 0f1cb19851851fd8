"""How a stage runs on Beam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from streamml.errors import PlanError
from streamml.times import to_millis

__all__ = ["BLOCKS", "FORMS", "ORDERS", "StageSettings"]

FORMS = ("dict", "json", "row")
"""Forms of output records."""
BLOCKS = ("lines", "batch")
"""Forms of the main output for the sinks of a whole job: an element is a batch, as JSON lines or as it is."""
ORDERS = ("arrival", "event_time")
"""In which order rows of a key are handled."""


@dataclass(frozen=True)
class StageSettings:
    """How a stage runs.

    Attributes:
        order: `arrival` or `event_time`; None: by event time in a bounded pipeline, else in order of arrival.
        batch_size: most rows that are handed on at once.
        watermark_step: how finely the watermark is followed, ms.
        models: folders that are searched for model bundles, as the workers see them.
        cache_bytes: bound of the decoded state that a worker process keeps between bundles.
        form: what output records are.
        types: types of derived fields, for rows.
        points: look at the watermark at these event times in place of every step, in all key groups from the start; for
            tests, where it makes a stage know the watermark exactly.
        scripted: what comes in was pickled by the test kit; what goes out is rows.
    """

    order: str | None = None
    batch_size: int = 1024
    watermark_step: int = 1_000
    models: tuple[str, ...] = ()
    cache_bytes: int = 256 << 20
    form: str = "dict"
    types: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[int, ...] = ()
    scripted: bool = False

    def __post_init__(self) -> None:
        if self.form not in (*FORMS, *BLOCKS):
            where = "KeyedStage, form="
            raise PlanError.unknown(where, "form of output records", self.form, FORMS)
        if self.order is not None and self.order not in ORDERS:
            where = "KeyedStage, order="
            raise PlanError.unknown(where, "order", self.order, ORDERS)
        if self.batch_size < 1 or self.watermark_step < 1:
            msg = (
                "KeyedStage: batch_size= and watermark_step= want at least 1 (ms), "
                f"got {self.batch_size} and {self.watermark_step}"
            )
            raise PlanError(msg)

    def formed(self, form: str) -> Self:
        """Return the same with another form."""
        return replace(self, form=form)

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Build them from what a user writes.

        Raises:
            PlanError: an option is unknown, or its value makes no sense.

        >>> StageSettings.of(watermark_step="250ms").watermark_step
        250
        """
        known = [each.name for each in fields(cls) if each.name not in ("points", "scripted")]
        if odd := sorted(set(options) - set(known)):
            where = "KeyedStage"
            raise PlanError.unknown(where, "option", odd[0], known)
        if "watermark_step" in options:
            try:
                options["watermark_step"] = to_millis(options["watermark_step"], where="KeyedStage(watermark_step=)")
            except ValueError as exc:
                raise PlanError(str(exc)) from exc
        return cls(**{**options, "models": tuple(map(str, options.get("models", ())))})
