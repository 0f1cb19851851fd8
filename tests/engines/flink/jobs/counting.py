"""Counts the clicks of each user; `wider=1` adds a stateless step before the key and a side output behind it."""

from __future__ import annotations

import os
from typing import Any

from limits import LIMIT

import streamml as sml
from streamml.operators import Dedupe, Map


class Click(sml.Event, id="n", key="user", time="ts"):
    n: str
    user: str
    ts: int


class Running(sml.KeyedOperator):
    """How many clicks of the user there were, and what Python this is."""

    seen = sml.ValueState(int, default=0)

    def adds(self) -> list[str]:
        return ["nth", "python", "limit"]

    def on_event(self, event: Any, ctx: Any) -> None:
        nth = self.seen.get() + 1
        self.seen.set(nth)
        ctx.emit(event.with_fields(nth=nth, python=os.environ.get("STREAMML_ARCHIVE", ""), limit=LIMIT))


class Tell(sml.KeyedOperator):
    sides = ("tenth",)

    def on_event(self, event: Any, ctx: Any) -> None:
        if event.nth % 10 == 0:
            ctx.side("tenth", event)
        ctx.emit(event)


class Broken(sml.KeyedOperator):
    def open(self, opening: Any) -> None:
        msg = "the licence server is closed"
        raise RuntimeError(msg)

    def on_event(self, event: Any, ctx: Any) -> None:
        ctx.emit(event)


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    wider = cfg.param("wider", "")
    made = sml.Pipeline("broken" if cfg.param("broken", "") else "counting", schema=Click, out_of_orderness="1s")
    if wider:
        made = made.then(Map(lambda event: {"wide": True}, name="widen"))
    made = made.key_by("user").then(Dedupe(ttl="1h")).then(Running())
    if wider:
        made = made.then(Tell())
    return made.then(Broken()) if cfg.param("broken", "") else made
