"""A plain Beam pipeline with two operators of streamml and one of its own: cards that pay too often.

    python examples/beam_custom_pipeline.py payments.jsonl [Beam's own options, such as --runner=...]

Everything that is not the stage is Beam's: the source, the runner, what happens to the output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import streamml as sml
from streamml.beam import KeyedStage
from streamml.operators import Dedupe, Features, count, total, trailing
from streamml.state import ListState


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    ts: int


class VelocityRule(sml.KeyedOperator):
    """Flags a card that pays more than `limit` times within `period`."""

    limit: int = 3
    period: sml.Duration = "1m"
    seen = ListState(int, ttl=lambda op: op.period)

    def adds(self) -> list[str]:
        return ["burst"]

    def on_event(self, event: Any, ctx: Any) -> None:
        self.seen.append(event.timestamp)
        recent = [time for time in self.seen if time > event.timestamp - self.period]
        ctx.emit(event.with_fields(burst=len(recent) > self.limit))


def main(path: str, arguments: list[str]) -> None:
    spent = Features(trailing("10m", tile="10s"), {"n_10m": count(), "spent_10m": total("amount")})
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        payments = pipeline | beam.io.ReadFromText(path)
        stage = payments | KeyedStage([Dedupe(ttl="1h"), spent, VelocityRule(limit=3)], schema=Payment)

        bursts = stage.main | beam.Filter(lambda record: record["burst"])
        _ = bursts | "show bursts" >> beam.Map(lambda record: print("burst>", json.dumps(record)))
        _ = stage.side("duplicates") | "show duplicates" >> beam.Map(lambda record: print("duplicate>", record["id"]))
        _ = stage.rejected | "show rejected" >> beam.Map(lambda record: print("rejected>", record["reason"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
