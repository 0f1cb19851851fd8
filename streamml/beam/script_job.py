"""Plays a script of the test kit as one Beam pipeline with a `TestStream`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue

from streamml.beam.collect import Collect, collecting
from streamml.beam.graph import Stages
from streamml.beam.prism import find_prism, prism_options
from streamml.beam.settings import StageSettings
from streamml.beam.watermark import to_beam
from streamml.pipeline import Pipeline

__all__ = ["END", "MAIN", "pipeline_options", "play"]

END, MAIN = "\0end", "\0main"
"""Names of what is no side output: the end of the script, and the main output."""
_FIRST_WATERMARK = -9_000_000_000_000
"""Seconds; before every event."""
_END_MARK = END.encode()

Steps = Sequence[int | tuple[int, bytes]]


def pipeline_options(runner: str, *, streaming: bool = True) -> PipelineOptions:
    """Return Beam's options for a runner: `prism`, or `direct` for BundleBased."""
    arguments = prism_options(find_prism()) if runner == "prism" else ["--runner=BundleBasedDirectRunner"]
    options = PipelineOptions(arguments)
    options.view_as(StandardOptions).streaming = streaming
    return options


def play(
    pipeline: Pipeline, steps: Steps, settings: StageSettings, runner: str, *, end: bool = True
) -> list[tuple[str, Any]]:
    """Play steps and return what came out, in order, as (output, element); `END` stands where the script was over.

    Args:
        pipeline: what to run.
        steps: watermarks, and records with their times.
        settings: how stages run; they look at the watermark at the script's own ones.
        runner: see `pipeline_options`.
        end: what comes after the script counts, too: the end of the input.
    """
    points = sorted({step for step in steps if isinstance(step, int)})
    stream: Any = TestStream(coder=beam.coders.BytesCoder())
    watermark: int | None = None
    for step in steps:
        if not isinstance(step, int):
            stream = stream.add_elements([TimestampedValue(step[1], to_beam(step[0]))])
        elif step != watermark:  # a `TestStream` refuses a watermark that stands still
            watermark = step
            stream = stream.advance_watermark_to(to_beam(step))
    if not end:  # Prism hands rows to a stage only when the watermark moves
        stream = stream.advance_watermark_to(_FIRST_WATERMARK if watermark is None else to_beam(watermark + 1))
    stream = stream.add_elements([_END_MARK]).advance_watermark_to_infinity()
    scripted = dataclasses.replace(settings, order="arrival", points=tuple(points), scripted=True)
    with collecting() as (token, collected):
        with beam.Pipeline(options=pipeline_options(runner)) as job:
            played = job | stream
            _ = played | "ends" >> beam.Filter(_is_end) | "end" >> beam.ParDo(Collect(token, END))
            records = played | "records" >> beam.Filter(_is_record).with_output_types(bytes)
            graph = records | "stages" >> Stages(pipeline, scripted, pipeline.name)
            _ = graph.main | "main" >> beam.ParDo(Collect(token, MAIN))
            for name, parts in graph.parts.items():
                for place, part in enumerate(parts):
                    _ = part | f"side {name} {place}" >> beam.ParDo(Collect(token, name))
        return collected


def _is_end(record: bytes) -> bool:
    return record == _END_MARK


def _is_record(record: bytes) -> bool:
    return record != _END_MARK
