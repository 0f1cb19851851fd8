"""Sources and sinks by address: `file:events.jsonl`, `-`, `null:`, `kafka://host:9092/topic`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FORMATS, FileSource, file_format
from streamml.connectors.line_reader import BLOCK_BYTES
from streamml.connectors.lines import MAX_RECORD_BYTES
from streamml.connectors.memory import NullSink
from streamml.connectors.parts_sink import PartsSink
from streamml.connectors.stdin import StdinSource
from streamml.connectors.storage import Step
from streamml.connectors.stream_sink import StreamSink
from streamml.errors import ConnectorError, suggest
from streamml.ports import Sink, Source

__all__ = ["SINKS", "SOURCES", "open_sink", "open_source", "side_uri"]

SOURCES = {
    "file": "streamml.connectors.uris:file_source",
    "stdin": "streamml.connectors.uris:stdin_source",
    "kafka": "streamml.connectors.kafka:open_source",
}
"""Scheme to `module:function`; the function gets the whole address and the options, and builds a `Source`."""

SINKS = {
    "file": "streamml.connectors.uris:file_sink",
    "stdout": "streamml.connectors.uris:stream_sink",
    "stderr": "streamml.connectors.uris:stream_sink",
    "null": "streamml.connectors.uris:null_sink",
    "kafka": "streamml.connectors.kafka:open_sink",
}
"""Scheme to `module:function`; the function gets the whole address and the options, and builds a `Sink`."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_EXTRAS = {"kafka": "kafka"}


def open_source(uri: str, **options: Any) -> Source:
    """Return the source at an address; it is not opened yet.

    Args:
        uri: `file:PATH` or a plain path (a file, a folder or a glob; by its suffix JSON lines, gzip of them, Parquet or
            Arrow), `-` or `stdin:`, or another scheme of `SOURCES`.
        options: as the source takes them, for files `format`, `follow`, `max_record_bytes`, `block_bytes`.

    Raises:
        ConnectorError: nothing is known by this address, or an option is unknown.

    >>> open_source("flie:x.jsonl")
    Traceback (most recent call last):
    streamml.errors.ConnectorError: source 'flie:x.jsonl': there is no scheme 'flie'. Did you mean 'file'? Known: ...
    """
    address = "stdin:" if uri == "-" else uri
    source: Source = _factory("source", address, SOURCES, options)(address, **options)
    return source


def open_sink(uri: str, *, overwrite: bool = False, on_step: Step | None = None, **options: Any) -> Sink:
    """Return the sink at an address; it is not opened yet.

    Args:
        uri: `file:PATH` or a plain path (by its suffix JSON lines, gzip of them, or a folder of Parquet or Arrow
            parts), `-` or `stdout:`, `stderr:NAME` for a side output, `null:`, or another scheme of `SINKS`.
        overwrite: a fresh job may replace what is there.
        on_step: called with the name of each durable step after it was made.
        options: as the sink takes them, for files `format`.

    Raises:
        ConnectorError: nothing is known by this address, or an option is unknown.

    >>> type(open_sink("scores.jsonl")).__name__, type(open_sink("null:")).__name__
    ('FileSink', 'NullSink')
    """
    address = "stdout:" if uri == "-" else uri
    options = {**options, "overwrite": overwrite, "on_step": on_step}
    sink: Sink = _factory("sink", address, SINKS, options)(address, **options)
    return sink


def side_uri(sink_uri: str, side: str) -> str:
    """Return where a side output goes unless it is told: beside the main output, and never nowhere unless that does.

    Side outputs of Parquet and Arrow are JSON lines, for their records differ in their fields.

    >>> side_uri("file:out/scores.jsonl.gz", "late"), side_uri("scores.parquet", "rejected")
    ('file:out/scores.late.jsonl.gz', 'scores.rejected.jsonl')
    >>> side_uri("-", "late"), side_uri("null:", "late"), side_uri("kafka://host:9092/scores?acks=1", "late")
    ('stderr:late', 'null:', 'kafka://host:9092/scores.late?acks=1')
    """
    scheme, _ = _split("-:" if sink_uri == "-" else sink_uri)
    if sink_uri == "-" or scheme in ("stdout", "stderr"):
        return f"stderr:{side}"
    if scheme == "null":
        return "null:"
    if scheme != "file":
        address, mark, query = sink_uri.partition("?")
        return f"{address}.{side}{mark}{query}"
    path = sink_uri.rstrip("/")
    for suffix in sorted(FORMATS, key=len, reverse=True):
        if path.lower().endswith(suffix):
            kept = path[-len(suffix) :] if FORMATS[suffix].startswith("jsonl") else ".jsonl"
            return f"{path[: -len(suffix)]}.{side}{kept}"
    return f"{path}.{side}.jsonl"


def file_source(
    uri: str,
    *,
    format: str | None = None,
    follow: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Source:
    """Build the source of a file address."""
    path = _path("source", uri)
    return FileSource(path, format=format, follow=follow, max_record_bytes=max_record_bytes, block_bytes=block_bytes)


def stdin_source(uri: str, *, follow: bool = True, max_record_bytes: int = MAX_RECORD_BYTES) -> Source:
    """Build the source of standard input, which waits for more in any case."""
    return StdinSource(max_record_bytes=max_record_bytes)


def file_sink(uri: str, *, overwrite: bool, on_step: Step | None, format: str | None = None) -> Sink:
    """Build the sink of a file address."""
    path = _path("sink", uri)
    format = format or file_format(path, "sink")
    if format in ("parquet", "arrow"):
        return PartsSink(path, format, overwrite=overwrite, on_step=on_step)
    if format not in FORMATS.values():
        msg = f"sink {uri}: there is no format {format!r}. {suggest(format, set(FORMATS.values()))}"
        raise ConnectorError(msg)
    return FileSink(path, packed=format == "jsonl.gz", overwrite=overwrite, on_step=on_step)


def stream_sink(uri: str, *, overwrite: bool, on_step: Step | None) -> Sink:
    """Build the sink of standard output or standard error; there is nothing to overwrite and no durable step."""
    scheme, rest = _split(uri)
    return StreamSink(1 if scheme == "stdout" else 2, side=rest or None)


def null_sink(uri: str, *, overwrite: bool, on_step: Step | None) -> Sink:
    """Build the sink that keeps nothing."""
    return NullSink()


def _split(uri: str) -> tuple[str, str]:
    found = _SCHEME.match(uri)
    return (found[1].lower(), uri[found.end() :]) if found else ("file", uri)


def _path(kind: str, uri: str) -> str:
    path = _split(uri)[1]
    if path.startswith("//") and not path.startswith("///"):
        msg = (
            f"{kind} {uri}: wanted file:PATH or file:///PATH, got a host. Files of other machines are read by a mount."
        )
        raise ConnectorError(msg)
    path = path.removeprefix("//")
    if not path:
        msg = f"{kind} {uri!r}: wanted a path, got none. Write file:events.jsonl, or `-` for standard input and output."
        raise ConnectorError(msg)
    return path


def _factory(kind: str, uri: str, known: dict[str, str], options: dict[str, Any]) -> Callable[..., Any]:
    scheme, _ = _split(uri)
    if scheme not in known:
        if scheme == "memory":
            hint = f"A {kind} in memory has no address: give the Memory{kind.title()} itself."
        else:
            hint = f"{suggest(scheme, known)} A path with a colon is written file:PATH."
        msg = f"{kind} {uri!r}: there is no scheme {scheme!r}. {hint}"
        raise ConnectorError(msg)
    module, _, name = known[scheme].partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        extra = _EXTRAS.get(scheme)
        advice = f" pip install 'streamml[{extra}]'" if extra and exc.name != module else ""
        msg = f"{kind} {uri!r}: {scheme} is not available here, there is no module {exc.name!r}.{advice}"
        raise ConnectorError(msg) from exc
    parameters = inspect.signature(factory).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options.keys() - parameters.keys():
            msg = f"{kind} {uri!r}: there is no option {option!r}. {suggest(option, parameters.keys() - {'uri'})}"
            raise ConnectorError(msg)
    return factory
