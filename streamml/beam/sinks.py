"""Where the outputs of a whole job go: JSON lines in shards, topics, the terminal."""

from __future__ import annotations

import gzip
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from streamml.beam.envelope import Envelopes
from streamml.beam.settings import BLOCKS
from streamml.beam.splits import scheme_of
from streamml.connectors.encode import Encoder
from streamml.connectors.storage import write_all
from streamml.errors import ConnectorError, UnsupportedError
from streamml.pipeline import Pipeline

__all__ = ["attach_sink", "check_sink", "main_form", "shard_glob"]

_OPTIONS: dict[str, dict[str, Any]] = {"kafka": {"delivery": "at-least-once"}}
_WRITING = threading.Lock()
"""Sinks of one cluster share a producer in a process, and steps run in threads."""
_KINDS = ("file", "kafka", "stdout", "stderr", "null")


def main_form(uri: str) -> str:
    """Return the form in which a sink wants the main output: lines for bytes, batches for what needs keys.

    >>> main_form("file:scores.jsonl"), main_form("kafka://host:9092/scores")
    ('lines', 'batch')
    """
    return BLOCKS[1] if scheme_of(uri) == "kafka" else BLOCKS[0]


def shard_glob(uri: str) -> str:
    """Return a glob that finds the shards of a file address.

    >>> shard_glob("file:out/scores.jsonl"), shard_glob("scores.late.jsonl.gz")
    ('out/scores-*.jsonl', 'scores.late-*.jsonl.gz')
    """
    path, suffix = _parts(uri)
    return f"{path}-*{suffix}"


def check_sink(uri: str, *, overwrite: bool) -> None:
    """Refuse what can't be written, and make room for shards.

    Raises:
        UnsupportedError: there is no such sink for a Beam job.
        ConnectorError: shards of another run are there.
    """
    kind = _kind(uri)
    if kind not in _KINDS:
        msg = f"sink {uri}: a Beam job writes file:PATH.jsonl, kafka://HOST:PORT/TOPIC, - or null:"
        raise UnsupportedError(msg)
    if kind != "file":
        from streamml.connectors import open_sink

        sink = open_sink(uri, **_OPTIONS.get(kind, {}))
        if kind == "kafka":  # brokers, rights and topic: before the job starts
            sink.open(None)
            sink.close()
        return
    path, suffix = _parts(uri)
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.glob(f"{Path(path).name}-*{suffix}"))
    if there and not overwrite:
        msg = f"sink {uri}: {there[0]} is there already. Name another file, or pass --overwrite."
        raise ConnectorError(msg)
    for shard in there:
        shard.unlink()


def attach_sink(pcoll: Any, uri: str, pipeline: Pipeline, label: str, *, form: str) -> None:
    """Write a PCollection: the main output in the form of `main_form`, or a side output's dicts (`form="dict"`)."""
    if _kind(uri) == "null":
        return
    if _kind(uri) != "file":
        _ = pcoll | f"{label} to {_kind(uri)}" >> beam.ParDo(WriteFn(uri, pipeline, form))
        return
    path, suffix = _parts(uri)
    written = pcoll | f"{label} shards" >> beam.ParDo(ShardFn(os.path.abspath(path), suffix)).with_output_types(
        tuple[str, str]
    )
    _ = written | f"{label} done" >> beam.Reshuffle() | f"{label} shown" >> beam.ParDo(ShowFn())


def _kind(uri: str) -> str:
    return "stdout" if uri == "-" else scheme_of(uri)


def _parts(uri: str) -> tuple[str, str]:
    path = (uri.partition(":")[2] if uri.lower().startswith("file:") else uri).removeprefix("//")
    for suffix in (".jsonl.gz", ".ndjson.gz", ".json.gz", ".jsonl", ".ndjson", ".json"):
        if path.lower().endswith(suffix):
            return path[: -len(suffix)], path[-len(suffix) :]
    msg = f"sink {uri}: a Beam job writes JSON lines: wanted a name such as {path.rstrip('/')}.jsonl"
    raise UnsupportedError(msg)


class ShardFn(beam.DoFn):
    """Writes what a bundle brings to a hidden file, and says what it is to be called.

    The file gets its name only when the runner has committed the bundle: one that is done again writes nothing twice.

    Args:
        path, suffix: of the shards' names.
    """

    def __init__(self, path: str, suffix: str) -> None:
        self._path, self._suffix = path, suffix
        self._file: Any = None
        self._names = ("", "")

    def start_bundle(self) -> None:
        """See `beam.DoFn.start_bundle`."""
        self._encoder, self._file = Encoder(), None

    def process(self, element: Any) -> None:
        """Write lines, or a dict."""
        if self._file is None:
            shown = f"{self._path}-{uuid.uuid4().hex[:16]}{self._suffix}"
            folder, name = os.path.split(shown)
            self._names = (os.path.join(folder, f".{name}"), shown)
            make = gzip.open if self._suffix.endswith(".gz") else open
            self._file = make(self._names[0], "wb")
        self._file.write(element if isinstance(element, bytes) else self._encoder.encode_records([element]))

    def finish_bundle(self) -> Iterator[Any]:
        """Hand the file's names on."""
        if self._file is not None:
            self._file.close()
            self._file = None
            yield WindowedValue(self._names, MIN_TIMESTAMP, [GlobalWindow()])


class ShowFn(beam.DoFn):
    """Gives files their names; may be done again."""

    def process(self, element: tuple[str, str]) -> None:
        """Rename a file.

        Raises:
            ConnectorError: neither is there.
        """
        hidden, shown = element
        try:
            os.replace(hidden, shown)
        except FileNotFoundError as exc:
            if not os.path.exists(shown):
                msg = f"sink {shown}: {hidden} is not there; all workers must see the same folder"
                raise ConnectorError(msg) from exc


class WriteFn(beam.DoFn):
    """Writes to a sink of the library, and has it all out when a bundle ends: at least once.

    Args:
        uri: address of the sink.
        pipeline: whose output it is.
        form: what comes in.
    """

    def __init__(self, uri: str, pipeline: Pipeline, form: str) -> None:
        self._uri, self._form = uri, form
        self._selected = pipeline.selected
        self._schemas = [spec.schema for spec in pipeline.sources] if form == "batch" else []
        self._sink: Any = None
        self._number = 0

    def start_bundle(self) -> None:
        """See `beam.DoFn.start_bundle`."""
        if self._sink is None:
            from streamml.connectors import open_sink

            self._envelopes = Envelopes(self._schemas)
            with _WRITING:
                self._sink = open_sink(self._uri, **_OPTIONS.get(_kind(self._uri), {}))
                self._sink.open(None)

    def process(self, element: Any) -> None:
        """Write a batch, lines or a dict."""
        with _WRITING:
            if self._form == "batch":
                self._sink.write(self._envelopes.decode(element), self._selected)
            elif self._form == "lines":
                write_all(1 if _kind(self._uri) == "stdout" else 2, element)
            else:
                self._sink.write_records([element])

    def finish_bundle(self) -> None:
        """Have it all written."""
        self._number += 1
        with _WRITING:
            self._sink.prepare(self._number)
            self._sink.commit(self._number)

    def teardown(self) -> None:
        """See `beam.DoFn.teardown`."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
