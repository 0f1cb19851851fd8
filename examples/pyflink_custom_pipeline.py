"""A plain PyFlink program with two operators of streamml and one of its own: cards that pay too often.

    python examples/pyflink_custom_pipeline.py payments.jsonl

Everything that is not the stage is PyFlink's: the source, its watermarks, what happens to the output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pyflink.common import Configuration, Duration, Types, WatermarkStrategy
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSource, StreamFormat

import streamml as sml
from streamml.flink import keyed_stage
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


class PaymentTime(TimestampAssigner):
    def extract_timestamp(self, value: str, record_timestamp: int) -> int:
        try:
            return int(json.loads(value)["ts"])
        except (ValueError, KeyError, TypeError):
            return record_timestamp


def main(path: str) -> None:
    configuration = Configuration()
    configuration.set_string("python.executable", sys.executable)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(1)
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), path).build()
    watermarks = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5))
    payments = env.from_source(source, watermarks.with_timestamp_assigner(PaymentTime()), "payments", Types.STRING())

    spent = Features(trailing("10m", tile="10s"), {"n_10m": count(), "spent_10m": total("amount")})
    stage = keyed_stage(payments, [Dedupe(ttl="1h"), spent, VelocityRule(limit=3)], schema=Payment)

    stage.main.filter(lambda line: json.loads(line)["burst"]).print("burst")
    stage.side("duplicates").print("duplicate")
    stage.side("rejected").print("rejected")
    env.execute("payments")


if __name__ == "__main__":
    main(sys.argv[1])
