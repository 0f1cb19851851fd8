"""What a step gives back to Beam: main and side outputs as elements with their event times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue

from streamml.beam.envelope import Envelopes
from streamml.beam.settings import BLOCKS
from streamml.beam.watermark import arrival, to_beam
from streamml.connectors.encode import Encoder, output_rows
from streamml.errors import RecordError
from streamml.keying import Keying
from streamml.records import Batch
from streamml.runtime import Output, rejected
from streamml.state.table import encode_key, key_group
from streamml.times import MIN_TIME

__all__ = ["Outputs"]

Sides = dict[str, list[dict[str, Any]]]


class Outputs:
    """Turns what a stage made into elements.

    Args:
        envelopes: for rows on their way to the next stage.
        keying: keys of the stage that comes next; None for the last one.
        groups: number of key groups.
        form: what records of the last stage's main output are, see `StageSettings.form`; `rows` for the test kit.
        selected: fields of the main output of the last stage, None for all.
        marks: rows on their way take the watermarks before them along.
    """

    def __init__(
        self,
        envelopes: Envelopes,
        keying: Keying | None,
        *,
        groups: int,
        form: str,
        selected: Sequence[str] | None,
        marks: bool = False,
    ) -> None:
        self._envelopes = envelopes
        self._keying = keying
        self._groups = groups
        self._form = form
        self._selected = selected
        self._marks = marks
        self._encoder = Encoder()

    def of(self, output: Output | None, bad: list[dict[str, Any]] | None = None) -> Iterator[Any]:
        """Yield the elements of an output, and of the records that were rejected before it."""
        if output is None:
            output = Output(Batch([], times=[], ids=[], watermarks=[], watermark=MIN_TIME))
        sides: Sides = output.sides
        if bad:
            sides["rejected"] = bad + sides.get("rejected", [])
        yield from self._main(output.main, sides)
        for name, records in sides.items():
            for record in records:
                time = record.get("timestamp")
                made = TimestampedValue(record, to_beam(time)) if type(time) is int else record
                yield TaggedOutput(name, made)

    def _main(self, batch: Batch, sides: Sides) -> Iterator[Any]:
        if self._keying is not None and len(batch):
            batch, bad = self._keying.assign(batch)
            if bad:
                sides.setdefault("rejected", []).extend(bad)
        if not len(batch):
            return
        if self._keying is not None:
            yield from self._by_group(batch, sides)
        elif self._form == "rows":
            yield TimestampedValue(self._envelopes.encode(batch), to_beam(min(batch.times)))
        else:
            batch, records = self._records(batch, sides)
            if self._form in BLOCKS:
                yield from self._block(batch, records)
                return
            for record, time in zip(records, batch.times, strict=True):
                yield TimestampedValue(record, to_beam(time))

    def _block(self, batch: Batch, records: Sequence[Any]) -> Iterator[Any]:
        """Yield a batch as one element, for the sinks of a whole job."""
        if len(batch):
            made = (
                self._envelopes.encode(batch) if self._form == "batch" else b"".join(b"%b\n" % each for each in records)
            )
            yield TimestampedValue(made, to_beam(min(batch.times)))

    def _by_group(self, batch: Batch, sides: Sides) -> Iterator[Any]:
        rows: dict[int, list[int]] = {}
        for row, key in enumerate(batch.keys):
            rows.setdefault(key_group(encode_key(key), self._groups), []).append(row)
        for group, mine in rows.items():
            part = batch if len(rows) == 1 else batch.take(mine)
            for payload in self._payloads(part, sides):
                yield TimestampedValue((group, payload), arrival())

    def _payloads(self, batch: Batch, sides: Sides) -> Iterator[bytes]:
        """Yield a batch as one array of bytes; row by row, without those that can't travel, when some can't."""
        try:
            yield self._envelopes.encode(batch, marks=self._marks)
        except RecordError as exc:
            if len(batch) > 1:
                for row in range(len(batch)):
                    yield from self._payloads(batch.slice(row, row + 1), sides)
                return
            event = batch.record(0)
            event.value, event.fields = None, {}
            sides.setdefault("rejected", []).append(rejected(event, exc, "encode"))

    def _records(self, batch: Batch, sides: Sides) -> tuple[Batch, Sequence[Any]]:
        try:
            return batch, self._encoded(batch)
        except RecordError:
            faults = self._encoder.faults(batch, self._selected)
        for row, why in faults.items():
            event = batch.record(row)
            event.value, event.fields = None, {}
            sides.setdefault("rejected", []).append(rejected(event, RecordError(why), "encode"))
        batch = batch.take([row for row in range(len(batch)) if row not in faults])
        return batch, self._encoded(batch)

    def _encoded(self, batch: Batch) -> Sequence[Any]:
        if self._form in ("json", *BLOCKS):
            return self._encoder.encode_rows(batch, self._selected)
        records = output_rows(batch, self._selected)
        return records if self._form == "dict" else [beam.Row(**record) for record in records]
