"""`Map`: change each event by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamml.contract import Context, Operator
from streamml.records import Record

__all__ = ["Map"]


class Map(Operator):
    """Change each event by a function.

    Args:
        function: from the event to a mapping (derived fields to add), a `Record`, or another value, which takes the
            event's place.
        adding: names of the fields that a mapping adds, so that later steps can be checked; without it they can't.

    >>> from streamml.testing import event, run
    >>> run([Map(lambda e: {"cents": e.amount * 100}, adding=["cents"])], [event("k", t="1s", amount=2)]).main[0].cents
    200
    """

    function: Callable[[Record], Any]
    adding: Iterable[str] | None = None

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str] | None:
        """Return what is known of the fields after it."""
        return None if known is None or self.adding is None else known | frozenset(self.adding)

    def on_event(self, event: Record, ctx: Context) -> None:
        """Emit the changed event."""
        made = self.function(event)
        if isinstance(made, Record):
            ctx.emit(made)
        elif isinstance(made, Mapping):
            ctx.emit(event.with_fields(**made))
        else:
            ctx.emit(event.with_value(made))
