"""`FlatMap`: make any number of events of each one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamml.contract import Context, Operator
from streamml.records import Record

__all__ = ["FlatMap"]


class FlatMap(Operator):
    """Make any number of events of each one; the ids of the parts are the event's id, the operator's name and a number.

    Args:
        function: from the event to an iterable of mappings (derived fields to add) or other values, which take the
            event's place.

    >>> from streamml.testing import event, run
    >>> result = run([FlatMap(lambda e: e.words.split())], [event("k", t="1s", words="a b")])
    >>> [(e.value, e.id.split("/", 1)[1]) for e in result.main]
    [('a', 'e0/flat_map/0'), ('b', 'e0/flat_map/1')]
    """

    function: Callable[[Record], Iterable[Any]]

    def fields_after(self, known: frozenset[str] | None) -> frozenset[str] | None:
        """Nothing is known of the fields after it."""
        return None

    def on_event(self, event: Record, ctx: Context) -> None:
        """Emit the parts."""
        for number, made in enumerate(self.function(event)):
            part = event.with_fields(**made) if isinstance(made, Mapping) else event.with_value(made)
            part.id = f"{event.id}/{self.name}/{number}"
            ctx.emit(part)
