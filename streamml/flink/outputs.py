"""What a stage gives back to Flink: main and side outputs, each joined into one array of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamml.connectors.encode import Encoder, to_plain
from streamml.errors import RecordError
from streamml.events import Event
from streamml.flink.envelope import Envelopes
from streamml.flink.wire import NO_TIME, join
from streamml.keying import Keying
from streamml.records import Batch
from streamml.runtime import rejected
from streamml.state.table import encode_key

__all__ = ["StageOutputs", "key_bytes"]

Sides = dict[str, list[dict[str, Any]]]

_json = msgspec.json.Encoder(enc_hook=to_plain).encode
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def key_bytes(key: Any) -> bytes | None:
    """Return the key of an output record: bytes as they are, text in UTF-8, everything else as JSON.

    >>> key_bytes("card-1"), key_bytes(7), key_bytes(("a", 1)), key_bytes(None)
    (b'card-1', b'7', b'["a",1]', None)
    """
    if key is None or isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else _json(key)


class StageOutputs:
    """Turns batches and side records into joined bytes.

    Args:
        schemas: event types of the pipeline's sources.
        keying: keys of the stage that comes next; None for the last stage, whose main output is JSON.
        selected: fields of the main output of the last stage, None for all.
        sides: names of the stage's side outputs, in the order of their numbers.
        typed: the main output of the last stage stays rows, too.
        timed: JSON records carry their event time.
    """

    def __init__(
        self,
        schemas: Sequence[type[Event]],
        keying: Keying | None,
        selected: Sequence[str] | None,
        sides: Sequence[str],
        *,
        typed: bool = False,
        timed: bool = True,
    ) -> None:
        self._numbers = {name: number for number, name in enumerate(sides, 1)}
        self._keying = keying
        self._typed = typed or keying is not None
        self._timed = timed or keying is not None
        self._selected = selected
        self._encoder = Encoder()
        self._envelopes = Envelopes(schemas)

    def main(self, batch: Batch, sides: Sides) -> bytes | None:
        """Return the main output of a batch, None when there is none; rows that can't be written go to `rejected`."""
        if self._keying is not None and len(batch):
            batch, bad = self._keying.assign(batch)
            if bad:
                sides.setdefault("rejected", []).extend(bad)
        if not len(batch):
            return None
        try:
            records = self._encode(batch)
        except _UNENCODABLE:
            batch, records = self._one_by_one(batch, sides)
            if not records:
                return None
        keys = map(encode_key if self._keying is not None else key_bytes, batch.keys)
        return join(records, batch.times if self._timed else [NO_TIME] * len(records), list(keys))

    def side(self, name: str, records: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the records of a side output."""
        lines = self._encoder.encode_records(records).split(b"\n")[:-1]
        times = [
            time if self._timed and type(time := record.get("timestamp")) is int else NO_TIME for record in records
        ]
        return join(lines, times, [key_bytes(record.get("key")) for record in records], self._numbers[name])

    def _encode(self, batch: Batch) -> list[bytes]:
        if self._typed:
            return self._envelopes.encode(batch)
        return self._encoder.encode_rows(batch, self._selected)

    def _one_by_one(self, batch: Batch, sides: Sides) -> tuple[Batch, list[bytes]]:
        kept: list[int] = []
        records: list[bytes] = []
        for row in range(len(batch)):
            try:
                records += self._encode(batch.slice(row, row + 1))
            except _UNENCODABLE as exc:
                event = batch.record(row)
                event.value, event.fields = None, {}
                error = exc if isinstance(exc, RecordError) else RecordError(str(exc))
                sides.setdefault("rejected", []).append(rejected(event, error, "encode"))
            else:
                kept.append(row)
        return batch.take(kept), records
