"""`Annotator`: what operators have in common that add aggregates to each event."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from streamml.contract import Context, KeyedOperator
from streamml.errors import RecordError
from streamml.operators.aggregation import Aggregation
from streamml.records import Record

__all__ = ["Annotator"]


class Annotator(KeyedOperator):
    """Base of `Features` and `Session`; a subclass has the options `fields` and `allowed_lateness`."""

    sides = ("late",)
    rejects_rows = True

    def reads(self) -> tuple[str, ...]:
        """Return the inputs of the aggregates."""
        return self.aggregation.inputs

    def adds(self) -> tuple[str, ...]:
        """Return the names of the results."""
        return self.aggregation.names

    def _lose(self, event: Record, watermark: int, lateness: int, error: RecordError | None, ctx: Context) -> None:
        """Send an event that is not counted to the side output where it belongs."""
        if error is None or event.timestamp < watermark - lateness:
            ctx.late(event, watermark, lateness)
        else:
            ctx.reject(event, error)

    if TYPE_CHECKING:
        aggregation: ClassVar[Aggregation]
