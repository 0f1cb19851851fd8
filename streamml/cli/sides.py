"""A sink for a side output that makes its file when the first record comes, and counts what kinds of records came."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamml.observability.metrics import Metrics
from streamml.ports import FollowingSink, Sink
from streamml.records import Batch

__all__ = ["SideSink", "file_of", "kind_of"]

_UNOPENED = {"unopened": True}
_MOST_KINDS = 100
_PARTICULARS = (
    (re.compile(r" \(byte \d+\)"), ""),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\[\d+\]"), "[...]"),
    (re.compile(r"-?\d{5,}"), "N"),
)


class SideSink(FollowingSink):
    """Stands before the sink of a side output.

    A side output to a file stays unopened until it has a record, so that a clean run leaves no empty files. A file that
    is there already is opened at once: to be refused or emptied at the start, not in the middle of a run.

    Args:
        name: the side output.
        uri: where it goes.
        make: makes the real sink, which may replace what is there if its argument says so.
        overwrite: what to say to it for a fresh job.
    """

    def __init__(self, name: str, uri: str, make: Callable[[bool], Sink], *, overwrite: bool = False) -> None:
        self.name = name
        self.kinds: Counter[str] = Counter()
        """How many records of each kind came in this run."""
        self._make = make
        self._overwrite = overwrite
        self._file = file_of(uri)
        real = make(overwrite)  # also: an address that nobody knows is refused here
        self._sink: Sink | None = real if self._file is None else None
        self.transactional, self.decides = real.transactional, real.decides

    def for_job(self, job: str, interval: int) -> None:
        """Tell the real sink which job it belongs to, if it asks for that."""
        if self._sink is not None and (tell := getattr(self._sink, "for_job", None)) is not None:
            tell(job, interval)

    def measure(self, metrics: Metrics, now: int) -> None:
        """See `Sink`: the real sink's own metrics."""
        if (measure := getattr(self._sink, "measure", None)) is not None:
            measure(metrics, now)

    def committed(self) -> int | None:
        """See `Sink.committed`."""
        return None if self._sink is None else self._sink.committed()

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`."""
        unopened = prepared is not None and dict(prepared) == _UNOPENED
        if (prepared is None or unopened) and self._file is not None and not self._file.exists():
            return
        if self._sink is None:
            # Left by a run that went on from the checkpoint in which it was not there: its records come again.
            self._sink = self._make(self._overwrite or unopened)
        self._sink.open(None if unopened else prepared)

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`."""
        self._opened().write(batch, fields)

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`."""
        if records:
            self._opened().write_records(records)
            for record in records:
                kind = kind_of(self.name, record)
                self.kinds[kind if kind in self.kinds or len(self.kinds) < _MOST_KINDS else "other"] += 1

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        return dict(_UNOPENED) if self._sink is None else self._sink.prepare(checkpoint)

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`."""
        if self._sink is not None:
            self._sink.commit(checkpoint)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._sink is not None:
            self._sink.close()

    def _opened(self) -> Sink:
        if self._sink is None:
            self._sink = self._make(self._overwrite)
            self._sink.open(None)
        return self._sink


def file_of(uri: str) -> Path | None:
    """Return the file that an address means, None for what is no file.

    >>> str(file_of("file:out/late.jsonl")), str(file_of("late.jsonl")), file_of("-"), file_of("kafka://host/late")
    ('out/late.jsonl', 'late.jsonl', None, None)
    """
    scheme, colon, rest = uri.partition(":")
    if uri == "-" or (colon and scheme.lower() != "file" and scheme.isalnum()):
        return None
    return Path((rest if colon and scheme.lower() == "file" else uri).removeprefix("//"))


def kind_of(side: str, record: Mapping[str, Any]) -> str:
    """Return what a summary counts a side record under.

    >>> kind_of("rejected", {"operator": "source.x.decode", "reason": "JSON is malformed: trailing data (byte 7)"})
    'source.x.decode: JSON is malformed: trailing data'
    >>> kind_of("late", {"operator": "dedupe", "late_by_ms": 12})
    'dedupe'
    """
    operator = str(record.get("operator", "?"))
    if side == "rejected":
        return f"{operator}: {_gist(str(record.get('reason', record.get('error', '?'))))}"
    if side == "drift" and "feature" in record:
        return f"{operator}: {record['feature']}"
    return operator


def _gist(reason: str) -> str:
    """Return what is the same in all reasons of one kind: no byte positions, instants, or large numbers."""
    for pattern, text in _PARTICULARS:
        reason = pattern.sub(text, reason)
    return reason if len(reason) <= 90 else reason[:89] + "…"
