"""`Filter`: keep the events for which a function is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamml.contract import Context, Operator
from streamml.records import Record

__all__ = ["Filter"]


class Filter(Operator):
    """Keep the events for which a function is true.

    >>> from streamml.testing import event, run
    >>> [e.x for e in run([Filter(lambda e: e.x > 1)], [event("k", t="1s", x=1), event("k", t="2s", x=2)]).main]
    [2]
    """

    function: Callable[[Record], Any]

    def on_event(self, event: Record, ctx: Context) -> None:
        """Emit the event or not."""
        if self.function(event):
            ctx.emit(event)
