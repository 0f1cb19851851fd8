"""A whole job on a Beam runner: its sources, stages and sinks from their addresses."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from streamml.beam.graph import Stages
from streamml.beam.prism import find_prism, prism_options
from streamml.beam.reading import BoundedReadFn
from streamml.beam.settings import StageSettings
from streamml.beam.sinks import attach_sink, check_sink, main_form
from streamml.beam.splits import Split, find_files, find_splits, scheme_of
from streamml.errors import PlanError, StreamMLError, UnsupportedError
from streamml.pipeline import Pipeline

__all__ = ["BeamPlaces", "build", "run_job", "runner_options"]

_RUNNERS = {
    "direct": "DirectRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
    "portable": "PortableRunner",
}
_NO_STREAMS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner")


@dataclass(frozen=True)
class BeamPlaces:
    """Where a job reads and writes, as addresses.

    Attributes:
        sources: by tag.
        sink: of the main output.
        sides: by name.
        overwrite: replace shards that are there.
    """

    sources: Mapping[str, str]
    sink: str
    sides: Mapping[str, str]
    overwrite: bool = False


def runner_options(runner: str, arguments: Sequence[str]) -> PipelineOptions:
    """Return Beam's options: of a runner, and what was given after `--`.

    Raises:
        UnsupportedError: Prism is wanted and not here.
        PlanError: Beam does not know an argument.

    >>> runner_options("direct", ["--streaming"]).get_all_options()["runner"]
    'DirectRunner'
    """
    chosen = prism_options(find_prism()) if runner == "prism" else [f"--runner={_RUNNERS.get(runner, runner)}"]
    try:
        return PipelineOptions([*chosen, *arguments])
    except SystemExit as exc:  # argparse ends the process
        msg = f"--runner {runner} -- {' '.join(arguments)}: Beam refuses these options, see above"
        raise PlanError(msg) from exc


def run_job(pipeline: Pipeline, places: BeamPlaces, settings: StageSettings, options: PipelineOptions) -> str:
    """Run a pipeline until its input ends; returns the state in which Beam left it.

    Raises:
        StreamMLError: the plan does not work on the runner, or a step failed.
    """
    job = build(pipeline, places, settings, options)
    # The steps' own log says it at length; the message of the error is what counts.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        running: Any = job.run()
        try:
            return str(running.wait_until_finish())
        except KeyboardInterrupt:
            running.cancel()
            raise
    except StreamMLError:
        raise
    except Exception as exc:
        msg = f"pipeline {pipeline.name!r} failed on Beam: {_gist(str(exc))}"
        raise StreamMLError(msg) from exc


def build(pipeline: Pipeline, places: BeamPlaces, settings: StageSettings, options: PipelineOptions) -> beam.Pipeline:
    """Return a Beam pipeline with the job in it, not started."""
    standard = options.view_as(StandardOptions)
    standard.streaming = streams = bool(standard.streaming) or any(map(_is_endless, places.sources.values()))
    if streams and str(standard.runner) in _NO_STREAMS:
        msg = (
            f"runner {standard.runner}: it reads bounded input only, files and topics with until= without --streaming; "
            "take --runner prism"
        )
        raise UnsupportedError(msg)
    splits = {tag: find_splits(uri) for tag, uri in places.sources.items()} if streams else {}
    for uri in (places.sink, *places.sides.values()):
        check_sink(uri, overwrite=places.overwrite)
    settings = settings.formed(main_form(places.sink))
    job = beam.Pipeline(options=options)
    if streams:
        alone = sum(map(len, splits.values())) == 1
        inputs = {tag: _stream(job, tag, found, alone=alone) for tag, found in splits.items()}
    else:
        inputs = {tag: _bounded(job, tag, uri) for tag, uri in places.sources.items()}
    graph = inputs | pipeline.name >> Stages(pipeline, settings, f"pipeline {pipeline.name!r}")
    attach_sink(graph.main, places.sink, pipeline, "main", form=settings.form)
    for name, uri in places.sides.items():
        attach_sink(graph.side(name), uri, pipeline, name, form="dict")
    return job


def _stream(job: Any, tag: str, found: list[Split], *, alone: bool) -> Any:
    splits = [replace(each, alone=alone) for each in found]
    return job | f"splits of {tag}" >> beam.Create(splits, reshuffle=False).with_output_types(Split)


def _bounded(job: Any, tag: str, uri: str) -> Any:
    if scheme_of(uri) == "file":
        addresses = [f"file:{path}" for path in find_files(uri).values()]
    elif scheme_of(uri) == "kafka":
        addresses = [uri]
    else:
        find_splits(uri)  # says what a Beam job reads
        raise AssertionError(uri)
    made = job | f"files of {tag}" >> beam.Create(addresses)
    return made | f"read {tag}" >> beam.ParDo(BoundedReadFn()).with_output_types(bytes | dict[str, Any])


def _is_endless(uri: str) -> bool:
    if scheme_of(uri) != "kafka":
        return False
    from streamml.connectors.kafka_address import parse_address

    return "until" not in parse_address("source", uri, {}).options


def _gist(text: str) -> str:
    r"""Return of a traceback that a worker sent the line that names the error.

    >>> _gist("Traceback ...\n  File ...\nValueError: no [while running 'x']\nmore")
    "ValueError: no [while running 'x']"
    """
    named = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception): .*)$", text, re.MULTILINE)
    return str((named or text.strip().splitlines() or ["(no message)"])[-1])
