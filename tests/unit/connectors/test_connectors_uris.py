"""Addresses of sources and sinks, and the streams of the process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors import open_sink, open_source, side_uri, uris
from streamml.connectors.stream_sink import StreamSink
from streamml.errors import ConnectorError


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("kafak://h/t", "there is no scheme 'kafak'. Did you mean 'kafka'?"),
        ("memory:", "memory has no address: give the Memory"),
        ("file://host/x.jsonl", "wanted file:PATH or file:///PATH, got a host"),
        ("file:", "wanted a path, got none"),
        ("data:x.jsonl", "A path with a colon is written file:PATH."),
    ],
)
@pytest.mark.parametrize("build", [open_source, open_sink])
def test_a_wrong_address_says_what_is_known(build: Any, uri: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=re.escape(message)):
        build(uri)


def test_null_is_no_source_and_stdin_no_sink() -> None:
    with pytest.raises(
        ConnectorError, match=r"source 'null:': there is no scheme 'null'\. .*Known: file, kafka, stdin\."
    ):
        open_source("null:")
    with pytest.raises(
        ConnectorError, match=r"sink 'stdin:': there is no scheme 'stdin'\. Known: file, kafka, null, stderr"
    ):
        open_sink("stdin:")


def test_an_unknown_option_or_format_says_what_is_known() -> None:
    with pytest.raises(ConnectorError, match=r"there is no option 'folow'\. Did you mean 'follow'\?"):
        open_source("x.jsonl", folow=True)
    with pytest.raises(ConnectorError, match=r"there is no option 'formt'\. Did you mean 'format'\?"):
        open_sink("x.jsonl", formt="jsonl")
    for build in (open_source, open_sink):
        with pytest.raises(ConnectorError, match="there is no format 'jsnl'"):
            build("x.jsonl", format="jsnl")
    with pytest.raises(ConnectorError, match=r"sink x\.csv: the name does not tell .* \.jsonl, .*or give format="):
        open_sink("x.csv")


def test_a_scheme_without_its_module_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uris.SOURCES, "kafka", "streamml.connectors.not_there:open_source")
    with pytest.raises(ConnectorError, match=r"no module 'streamml\.connectors\.not_there'\.$"):
        open_source("kafka://h:1/t")
    monkeypatch.setitem(uris.SOURCES, "kafka", "not_there_either:open_source")
    with pytest.raises(ConnectorError, match="kafka is not available here, there is no module 'not_there_either'"):
        open_source("kafka://h:1/t")


def test_a_registered_scheme_gets_the_address_and_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uris.SOURCES, "echo", "builtins:dict")
    monkeypatch.setattr("builtins.echo_source", lambda uri, **options: (uri, options), raising=False)
    monkeypatch.setitem(uris.SOURCES, "echo", "builtins:echo_source")
    assert open_source("echo://h/t", group="g") == ("echo://h/t", {"group": "g"})


@pytest.mark.parametrize("spelling", ["file:{}", "file://{}", "{}", "FILE:{}"])
def test_a_file_has_many_spellings(tmp_path: Path, spelling: str) -> None:
    path = tmp_path / "x.JSONL"
    path.write_bytes(b"a\n")
    source = open_source(spelling.format(path))
    source.open(None)
    assert source.poll(1, 0.0).payloads == [b"a"]  # type: ignore[union-attr]
    source.close()


@pytest.mark.parametrize(
    ("sink", "side"),
    [
        ("file:scores.jsonl", "file:scores.late.jsonl"),
        ("out/scores.ndjson.gz", "out/scores.late.ndjson.gz"),
        ("out.parquet/", "out.late.jsonl"),
        ("scores", "scores.late.jsonl"),
        ("-", "stderr:late"),
        ("stdout:", "stderr:late"),
        ("null:", "null:"),
        ("kafka://h:9092/scores", "kafka://h:9092/scores.late"),
    ],
)
def test_a_side_output_goes_beside_the_main_one(sink: str, side: str) -> None:
    assert side_uri(sink, "late") == side


def test_standard_output_and_side_outputs_on_standard_error() -> None:
    code = (
        "from streamml.connectors import open_sink, side_uri\n"
        "main, late = open_sink('-', overwrite=True), open_sink(side_uri('-', 'late'))\n"
        "for sink in (main, late):\n"
        "    sink.open(None); sink.write_records([{'x': 1}]); sink.prepare(1); sink.commit(1); sink.close()\n"
        "print(main.transactional)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b'{"x":1}\nFalse\n'
    assert json.loads(done.stderr) == {"side": "late", "x": 1}


def test_a_closed_pipe_says_that_the_reader_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(ConnectorError, match="its reader has gone"):
        StreamSink(writing).write_records([{"x": 1}])
    os.close(writing)


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    child = os.fork()
    if child == 0:
        os.close(writing)
        size = 0
        while data := os.read(reading, 65536):
            size += len(data)
        os._exit(size % 251)
    os.close(reading)
    StreamSink(writing).write_records([{"x": "y" * 1_000_000}])
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(b'{"x":""}\n' + b"y" * 1_000_000) % 251
