"""Counts the readings of each device, whose name is only in the key of the records; `front=1` maps before the key."""

from __future__ import annotations

from typing import Any

import streamml as sml
from streamml.keying import record_key
from streamml.operators import Map


class Reading(sml.Event, id="n", time="ts"):
    n: str
    ts: int


class Running(sml.KeyedOperator):
    """How many readings of the device there were."""

    seen = sml.ValueState(int, default=0)

    def adds(self) -> list[str]:
        return ["nth"]

    def on_event(self, event: Any, ctx: Any) -> None:
        nth = self.seen.get() + 1
        self.seen.set(nth)
        ctx.emit(event.with_fields(nth=nth))


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    front = cfg.param("front", "")
    made = sml.Pipeline("bykey-front" if front else "bykey", schema=Reading, out_of_orderness="1h")
    if front:
        made = made.then(Map(lambda event: {"front": True}))
    return made.key_by(record_key).then(Running()).select("n", "key", "nth")
