"""The parts of a source that are read apart from each other on Beam: files, partitions of Kafka topics."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamml.errors import ConnectorError, UnsupportedError

__all__ = ["END", "Split", "SplitReader", "find_files", "find_splits", "open_split", "scheme_of"]

END = 1 << 62
"""End of a split that has none, or whose end is found by reading."""
_GROUP = "streamml"


@dataclass(frozen=True)
class Split:
    """A part of a source that is read in order by one reader at a time.

    Attributes:
        uri: address of the source.
        name: file, as its folder or glob sees it, or topic and partition.
        path: of the file.
        start, stop: the offsets that it has: bytes of the text of a file, numbers of Kafka records.
        alone: there is no other one in the pipeline, so its watermark is the pipeline's.
    """

    uri: str
    name: str
    start: int = 0
    stop: int = END
    alone: bool = False
    path: str = ""


class SplitReader(Protocol):
    """Reads a split from an offset on.

    Attributes:
        offset: where the next record is.
        ended: the last record was handed out.
    """

    offset: int
    ended: bool

    def read(self, limit: int) -> tuple[Sequence[Any], Sequence[int] | None]:
        """Return at most `limit` records that are there now, and their numbers if they have some."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def scheme_of(uri: str) -> str:
    """Return what kind of address it is.

    >>> scheme_of("events.jsonl"), scheme_of("kafka://host:9092/payments"), scheme_of("-")
    ('file', 'kafka', 'stdin')
    """
    if uri == "-":
        return "stdin"
    scheme, colon, _ = uri.partition(":")
    return scheme.lower() if colon and scheme.isalnum() else "file"


def find_splits(uri: str) -> list[Split]:
    """Return the splits of a source, as they are now: files and partitions that come later are not read.

    Raises:
        ConnectorError: nothing is there.
        UnsupportedError: it can't be read by splits.
    """
    kind = scheme_of(uri)
    if kind == "file":
        from streamml.connectors.files import file_format

        files = find_files(uri)
        for path in files.values():
            if (found := file_format(path, "source")) not in ("jsonl", "jsonl.gz"):
                msg = f"source {uri}: --streaming reads JSON lines, {path} is {found}. Leave --streaming out."
                raise UnsupportedError(msg)
        return [Split(uri, name, path=path) for name, path in files.items()]
    if kind == "kafka":
        return _partitions(uri)
    msg = f"source {uri}: a Beam job reads kafka://HOST:PORT/TOPIC or file:PATH, as its workers see it"
    raise UnsupportedError(msg)


def open_split(split: Split, offset: int) -> SplitReader:
    """Open a split at an offset."""
    return _KafkaReader(split, offset) if scheme_of(split.uri) == "kafka" else _FileReader(split, offset)


def find_files(uri: str) -> dict[str, str]:
    """Return the paths of a source's files by their names.

    Raises:
        ConnectorError: there is none.
    """
    from streamml.connectors.files import FileSource

    path = (uri.partition(":")[2] if uri.lower().startswith("file:") else uri).removeprefix("//")
    source = FileSource(path)
    try:
        source.open(None)
        names = source.partitions()
    finally:
        source.close()
    root = path if os.path.isdir(path) else os.path.dirname(path)
    while glob.has_magic(root) and not os.path.exists(path):
        root = os.path.dirname(root)
    return {name: os.path.abspath(os.path.join(root, name)) for name in names}


def _partitions(uri: str) -> list[Split]:
    from streamml.connectors.kafka_address import parse_address
    from streamml.connectors.kafka_client import client_module
    from streamml.connectors.kafka_source import KafkaSource

    address = parse_address("source", uri, {})
    client_module(address)
    source = KafkaSource(address)
    source.for_job(_GROUP, 0)
    try:
        source.open(None)
        places = source.positions()
    finally:
        source.close()
    until = places.get("until", {})
    return [Split(uri, name, start, until.get(name, END)) for name, start in sorted(places["offsets"].items())]


class _FileReader:
    """JSON lines; an offset is a byte of the text."""

    def __init__(self, split: Split, offset: int) -> None:
        from streamml.connectors.files import file_format
        from streamml.connectors.line_reader import LineReader
        from streamml.connectors.partitions import POSITION_VERSION

        kind = file_format(split.path, "source")
        self._reader = LineReader(split.path, split.name, packed=kind == "jsonl.gz")
        place = {
            "version": POSITION_VERSION,
            "format": kind,
            "offset": offset,
            "record": 1,
            "head_bytes": 0,
            "head": "",
        }
        self._reader.open(place if offset else None)
        self.offset, self.ended = offset, False

    def read(self, limit: int) -> tuple[Sequence[Any], None]:
        records = self._reader.read(limit)
        self.offset = self._reader.position()["offset"]
        self.ended = self._reader.finished
        return records, None

    def close(self) -> None:
        self._reader.close()


class _KafkaReader:
    """A partition; its records are read by the client that is installed."""

    def __init__(self, split: Split, offset: int) -> None:
        from streamml.connectors.kafka_address import parse_address
        from streamml.connectors.kafka_client import client_module
        from streamml.connectors.kafka_places import partition_of
        from streamml.connectors.kafka_tally import Tally

        address = parse_address("source", split.uri, {})
        self._where, self._stop = address.where, split.stop
        self._at = partition_of(split.name)
        self._skip_empty = address.choice("tombstones", "reject", "skip") == "skip"
        self._client = importlib.import_module(client_module(address)).make_reader(address, None, Tally())
        self._client.add({self._at: offset})
        self.offset, self.ended = offset, offset >= split.stop

    def read(self, limit: int) -> tuple[Sequence[Any], Sequence[int]]:
        fetch = self._client.poll(limit, 0.2)
        if fetch.lost:
            msg = (
                f"{self._where}: the next record of {self._at[0]}-{self._at[1]} is {self.offset}, which the broker "
                "does not have any more. Start the job anew, from what is there (start=earliest)."
            )
            raise ConnectorError(msg)
        fetch.cut({self._at: self._stop})
        if fetch.offsets:
            self.offset = fetch.offsets[-1] + 1
        self.offset = max(self.offset, fetch.ends.get(self._at, 0))
        self.ended = self.offset >= self._stop
        if self._skip_empty:
            fetch.drop_empty()
        return [b"" if value is None else value for value in fetch.payloads], fetch.offsets

    def close(self) -> None:
        self._client.close()
