"""From what a source polled to a batch: decode by the schema, check, give ids and watermarks.

What is bad becomes a rejected record.
"""

from __future__ import annotations

import base64
import reprlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from streamml.events import roles
from streamml.pipeline import SourceSpec
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.times import format_duration, format_time
from streamml.watermarks import WatermarkTracker

__all__ = ["Ingest", "payload_fields"]

_OLDEST = -62_135_596_800_000  # year 1
_NEWEST = 253_402_300_799_999  # year 9999
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, TypeError, RecursionError)  # the last: nested too deep


def payload_fields(payload: Any) -> dict[str, Any]:
    """Return a payload as it goes into a `rejected` record: text where it is text, base64 where it is not."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        return {"payload": payload}
    raw = bytes(payload)
    try:
        return {"payload": raw.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(raw).decode()}


class Ingest:
    """Turns the chunks of one source into batches.

    Args:
        spec: the source.
        pipeline: name of the pipeline, the first part of ids.
        tracker: the pipeline's watermark.
        tagged: whether rows carry the source's tag (pipelines of several sources).
        keyed: rows have their record's key, for `key_by(record_key)`.
    """

    def __init__(
        self, spec: SourceSpec, pipeline: str, tracker: WatermarkTracker, *, tagged: bool, keyed: bool = False
    ) -> None:
        self.spec = spec
        self._pipeline = pipeline
        self._tracker = tracker
        self._tagged = tagged
        self._keyed = keyed
        self._roles = roles(spec.schema)
        self._decode = msgspec.json.Decoder(spec.schema).decode
        self._time_of: Callable[[Any], Any] = attrgetter(self._roles.time or "")
        self._id_of: Callable[[Any], Any] | None = attrgetter(self._roles.id) if self._roles.id else None
        self._millis = self._roles.millis()

    def partition(self, name: str) -> str:
        """Return the tracker's name for a partition of this source."""
        return f"{self.spec.tag}/{name}"

    def follow(self, partitions: Sequence[str], now: int) -> None:
        """Follow the watermark of these partitions."""
        spec = self.spec
        for name in partitions:
            self._tracker.add(
                self.partition(name),
                bound=spec.out_of_orderness,
                max_jump=spec.max_jump,
                idleness=spec.idleness,
                now=now,
            )

    def batch(
        self, chunk: Chunk, now: int, watermarks: Sequence[int] | None = None
    ) -> tuple[Batch, list[dict[str, Any]]]:
        """Decode a chunk.

        Args:
            chunk: what the source polled.
            now: wall clock, ms.
            watermarks: the watermark before each record where the engine gives it; events move nothing then.

        Returns:
            The batch of the good records in order of arrival, and the `rejected` records of the bad ones.
        """
        bad: list[tuple[int, dict[str, Any]]] = []  # with their rows
        values: list[Any] = []
        rows: Sequence[int] = range(len(chunk.payloads))
        try:
            values = list(map(self._decode, chunk.payloads))
        except _UNDECODABLE:
            values, rows = self._decode_each(chunk, bad)  # some are bad, or are no bytes: one by one
        times = self._times(values)
        ids = list(map(self._id_of, values)) if self._id_of is not None else None
        if not self._all_good(times, ids, now):
            keep = self._good_rows(chunk, values, rows, times, ids, bad, now)
            values, rows, times = [values[i] for i in keep], [rows[i] for i in keep], [times[i] for i in keep]
            ids = [ids[i] for i in keep] if ids is not None else None
        names: list[str] = self._names(ids) if ids is not None else []
        marks: list[int] = []
        start = first = 0
        for partition, count in chunk.runs:
            start += count
            stop = bisect_left(rows, start)
            name = self.partition(partition)
            if ids is None:
                names += [f"{self._pipeline}/{name}@{chunk.offsets[row]}" for row in rows[first:stop]]
            if watermarks is not None:
                marks += [watermarks[row] for row in rows[first:stop]]
            else:
                self.follow([partition], now)
                marks += self._tracker.observe(name, times[first:stop], now)
            first = stop
        batch = Batch(
            values,
            times=times,
            ids=names,
            watermarks=marks,
            watermark=self._tracker.current if watermarks is None else max(watermarks, default=self._tracker.current),
            keys=[_text(chunk.keys[row]) for row in rows] if self._keyed and chunk.keys is not None else None,
            tags=[self.spec.tag] * len(values) if self._tagged else None,
            traces=[chunk.traces[row] for row in rows] if chunk.traces is not None else None,
        )
        return batch, [record for _, record in sorted(bad, key=itemgetter(0))]

    def _names(self, ids: list[Any]) -> list[str]:
        prefix = f"{self._pipeline}/"
        if set(map(type, ids)) == {str}:
            return list(map(prefix.__add__, ids))
        return [f"{prefix}{id}" for id in ids]

    def _decode_each(self, chunk: Chunk, bad: list[tuple[int, dict[str, Any]]]) -> tuple[list[Any], list[int]]:
        decode, schema = self._decode, self.spec.schema
        values: list[Any] = []
        rows: list[int] = []
        for row, payload in enumerate(chunk.payloads):
            try:
                values.append(decode(payload) if isinstance(payload, bytes) else msgspec.convert(payload, schema))
            except _UNDECODABLE as exc:
                reason = "empty payload" if payload in (b"", None) else str(exc)
                bad.append((row, self._rejected(chunk, row, "decode", type(exc).__name__, reason)))
            else:
                rows.append(row)
        return values, rows

    def _times(self, values: list[Any]) -> list[Any]:
        times: list[Any] = list(map(self._time_of, values))
        if self._roles.time_unit == "ms" and set(map(type, times)) <= {int}:
            return times
        return [self._to_millis(time) for time in times]

    def _to_millis(self, time: Any) -> int | None:
        if isinstance(time, datetime):
            return None if time.tzinfo is None else round(time.timestamp() * 1000)
        return None if time is None else self._millis(time)

    def _all_good(self, times: list[Any], ids: list[Any] | None, now: int) -> bool:
        if not times:
            return True
        if None in times or (ids is not None and None in ids):
            return False
        return bool(min(times) >= _OLDEST and max(times) <= min(_NEWEST, now + self.spec.max_future))

    def _good_rows(
        self,
        chunk: Chunk,
        values: list[Any],
        rows: Sequence[int],
        times: list[Any],
        ids: list[Any] | None,
        bad: list[tuple[int, dict[str, Any]]],
        now: int,
    ) -> list[int]:
        """Reject rows whose time or id can't be used; return the others."""
        newest = min(_NEWEST, now + self.spec.max_future)
        keep: list[int] = []
        for i, time in enumerate(times):
            if time is None:
                why = (
                    f"field {self._roles.time!r}: wanted an instant with its time zone, got "
                    f"{self._time_of(values[i])!r}"
                )
            elif not _OLDEST <= time <= _NEWEST:
                why = (
                    f"field {self._roles.time!r}: {reprlib.repr(time)} ms is outside the years 1 to 9999; is "
                    f"its unit {self._roles.time_unit!r}?"
                )
            elif time > newest:
                why = (
                    f"field {self._roles.time!r}: {format_time(time)} is more than "
                    f"{format_duration(self.spec.max_future)} "
                    f"ahead of the clock (max_future=)"
                )
            elif ids is not None and ids[i] is None:
                why = f"field {self._roles.id!r}: the id is null"
            else:
                keep.append(i)
                continue
            bad.append((rows[i], self._rejected(chunk, rows[i], "check", "RecordError", why)))
        return keep

    def _rejected(self, chunk: Chunk, row: int, step: str, error: str, reason: str) -> dict[str, Any]:
        left = row
        partition = ""
        for partition, count in chunk.runs:  # noqa: B007
            if left < count:
                break
            left -= count
        name = self.partition(partition)
        return {
            "id": f"{self._pipeline}/{name}@{chunk.offsets[row]}",
            "key": None,
            "timestamp": None,
            "operator": f"source.{self.spec.tag}.{step}",
            "error": error,
            "reason": reason,
            "partition": name,
            "offset": chunk.offsets[row],
            **payload_fields(chunk.payloads[row]),
        }


def _text(key: bytes | None) -> str | bytes | None:
    """Return a record's key as text where it is UTF-8."""
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
