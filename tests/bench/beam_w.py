"""One program of `test_beam.py`: W in a Beam pipeline, by `KeyedStage` or by hand.

`python tests/bench/beam_w.py ours|idiomatic INPUT MODEL` prints the CPU seconds, and what came
out.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.coders import FastPrimitivesCoder, StrUtf8Coder
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from workload_w import GAP, PADDING, TTL, WINDOW, Payment, pipeline

KEPT: dict[str, float] = {}


class Decode(beam.DoFn):
    """JSON to (card, event); what is broken would go to a side output."""

    def process(self, line: str) -> Iterator[Any]:
        try:
            event = json.loads(line)
            yield event["card_id"], event
        except (ValueError, KeyError):
            yield beam.pvalue.TaggedOutput("rejected", line)


class DedupeById(beam.DoFn):
    """Lets each transaction through once; a timer forgets it."""

    SEEN = ReadModifyWriteStateSpec("seen", FastPrimitivesCoder())
    FORGET = TimerSpec("forget", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[str, Any],
        at: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(SEEN),  # noqa: B008
        forget: Any = beam.DoFn.TimerParam(FORGET),  # noqa: B008
    ) -> Iterator[Any]:
        if seen.read() is None:
            seen.write(True)
            forget.set(at + TTL / 1000)
            yield element[1]["card_id"], element[1]

    @on_timer(FORGET)
    def forgotten(self, seen: Any = beam.DoFn.StateParam(SEEN)) -> None:  # noqa: B008
        seen.clear()


class Enrich(beam.DoFn):
    """Aggregates of the card's current window, and its session."""

    WINDOW = ReadModifyWriteStateSpec("window", FastPrimitivesCoder())
    SESSION = ReadModifyWriteStateSpec("session", FastPrimitivesCoder())

    def process(
        self,
        element: tuple[str, Any],
        window: Any = beam.DoFn.StateParam(WINDOW),  # noqa: B008
        session: Any = beam.DoFn.StateParam(SESSION),  # noqa: B008
    ) -> Iterator[Any]:
        _, event = element
        amount, ts = event["amount"], event["ts"]
        windows = window.read() or {}
        n, total, most = windows.get(ts // WINDOW, (0, 0.0, amount))
        n, total, most = windows[ts // WINDOW] = (n + 1, total + amount, max(most, amount))
        window.write({start: found for start, found in windows.items() if start >= ts // WINDOW - 2})
        length, last = session.read() or (0, None)
        idle = -1.0 if last is None or ts - last >= GAP else float(max(0, ts - last))
        length = 1 if idle < 0 else length + 1
        session.write((length, ts if last is None else max(last, ts)))
        yield event["tx_id"], np.array([amount, n, total, total / n, most, length, idle, *[0.0] * PADDING], np.float32)


def score_of(result: tuple[str, PredictionResult]) -> tuple[str, float]:
    return result[0], float(result[1].inference[0])


def keep(record: Any) -> None:
    if isinstance(record, tuple):
        KEPT[record[0]] = record[1]
    else:
        KEPT[record["tx_id"]] = record["score"]


def idiomatic(lines: Any, model: str) -> Any:
    from apache_beam.ml.inference.base import KeyedModelHandler

    handler = KeyedModelHandler(OnnxModelHandlerNumpy(model, min_batch_size=64, max_batch_size=1024))
    decoded = lines | beam.ParDo(Decode()).with_outputs("rejected", main="main")
    by_id = decoded.main | beam.Map(lambda pair: (pair[1]["tx_id"], pair[1])).with_output_types(tuple[str, Any])
    once = by_id | beam.ParDo(DedupeById()).with_output_types(tuple[str, Any])
    rows = once | beam.ParDo(Enrich()).with_output_types(tuple[str, np.ndarray])
    return rows | RunInference(handler) | beam.Map(score_of)


def ours(lines: Any, model: str) -> Any:
    from streamml.beam import KeyedStage

    job = pipeline(model)
    return (lines | KeyedStage(job.operators, schema=Payment, select=["tx_id", "score"])).main


def main() -> None:
    which, source, model = sys.argv[1:]
    arguments = ["--runner=BundleBasedDirectRunner"]
    began = time.time()
    with beam.Pipeline(options=PipelineOptions(arguments)) as job:
        lines = job | beam.io.ReadFromText(source, coder=StrUtf8Coder())
        made = {"ours": ours, "idiomatic": idiomatic}[which](lines, model)
        import beam_w  # by its name, so that Beam does not pickle a copy of the dict

        _ = made | beam.Map(beam_w.keep)
    used = resource.getrusage(resource.RUSAGE_SELF)
    import beam_w as kept

    print(
        json.dumps(
            {
                "cpu": used.ru_utime + used.ru_stime,
                "seconds": time.time() - began,
                "out": len(kept.KEPT),
                "total": sum(kept.KEPT.values()),
            }
        )
    )


if __name__ == "__main__":
    main()
