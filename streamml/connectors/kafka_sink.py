"""JSON records to a Kafka topic, exactly once or at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamml.connectors.encode import Encoder
from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_output import KafkaOutput, shared_output
from streamml.connectors.storage import Step
from streamml.errors import ConnectorError, RecordError
from streamml.observability.metrics import Metrics
from streamml.records import Batch

__all__ = ["KafkaSink"]

_VERSION = 1
_OVERHEAD = 256
"""Bytes that a record may take in a batch beside its key and value."""
_TEXTS = {str, bytes, type(None)}
_CUT = 1000


class KafkaSink:
    """Writes to a topic: the record's key, its JSON as value, its id and trace context as headers.

    With `delivery=exactly-once`, the default, everything between two checkpoints is one Kafka transaction for all Kafka
    outputs of the job, and the number of the checkpoint is committed in it. So at a start Kafka says which checkpoint
    belongs
    to what readers of committed data have seen, and another process that still writes with the same transactional id
    is cut off.
    With `delivery=at-least-once` records are visible at once, and some come again after a crash.

    Args:
        address: where to.
        on_step: called with the name of each durable step after it was made.
    """

    def __init__(self, address: KafkaAddress, *, on_step: Step | None = None) -> None:
        self.transactional = self.decides = (
            address.choice("delivery", "exactly-once", "at-least-once") == "exactly-once"
        )
        self._address = address
        self._topic = address.topics[0]
        self._headers = address.choice("headers", "true", "false") == "true"
        self._event_time = address.choice("timestamp", "now", "event") == "event"
        self._resume = address.number("resume", None)
        self._id = address.options.get("transactional_id")
        self._interval: int | None = None
        self._step = on_step or (lambda name: None)
        self._encoder = Encoder()
        self._output: KafkaOutput | None = None

    def for_job(self, job: str, interval: int) -> None:
        """Say which job it belongs to, before anything else; that gives the transactional id.

        Args:
            job: stable name of the job, different for each worker.
            interval: ms between checkpoints.
        """
        self._id = self._id or job
        self._interval = interval
        self._join()

    def _join(self) -> KafkaOutput:
        if self._output is None:
            if self.decides and self._id is None:
                msg = f"{self._address.where}: exactly once needs a name that stays the same: transactional_id="
                raise ConnectorError(msg)
            self._output = shared_output(self._address, self._id if self.decides else None, self._interval)
            self._output.join(self._address)
        return self._output

    def committed(self) -> int | None:
        """See `Sink.committed`; cuts off others with this id, and rolls back what they left unfinished."""
        if not self.decides:
            return None
        number = self._join().committed()
        return self._resume if number is None else number

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`.

        Raises:
            ConnectorError: brokers, rights, topic or settings are not as they must be, or the checkpoint is of another
            sink.
        """
        if prepared is not None and (prepared.get("format") != "kafka" or prepared.get("version") != _VERSION):
            msg = (
                f"{self._address.where}: the checkpoint was taken with another sink ({dict(prepared)}). "
                "Give that one, or start without the checkpoint."
            )
            raise ConnectorError(msg)
        output = self._join()
        output.start()
        if prepared is not None and not self.decides and prepared["transactional_id"] is not None:
            self._check_committed(prepared)

    def _check_committed(self, prepared: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint whose transaction was not committed: its output would be lost."""
        before = KafkaOutput(self._address, prepared["transactional_id"], None)
        before.join(self._address)
        try:
            number = before.committed()
        finally:
            before.leave()
        if number != prepared["checkpoint"]:
            msg = (
                f"{self._address.where}: the output of checkpoint {prepared['checkpoint']} was written exactly once "
                "and not "
                f"committed (the last one committed is {number}). Run the job with delivery=exactly-once until it is "
                "stopped in "
                "order, then change the delivery."
            )
            raise ConnectorError(msg)

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`.

        Raises:
            RecordError: a row can't be encoded, or is greater than the topic takes; then nothing of the batch was
            written.
        """
        values = self._encoder.encode_rows(batch, fields)
        keys = batch.keys if set(map(type, batch.keys)) <= _TEXTS else list(map(key_text, batch.keys))
        limit = self._limit()
        if max(map(len, values), default=0) > limit // 2:
            self._check_sizes(batch.ids, keys, values, limit)
        headers = None
        if self._headers:
            headers = [[("id", id.encode())] for id in batch.ids]
            if batch.traces is not None:
                for head, trace in zip(headers, batch.traces, strict=True):
                    if trace:
                        head.append(("traceparent", trace.encode()))
        self._join().send(self._topic, keys, values, headers, batch.times if self._event_time else None)

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`; of a record that is greater than the topic takes, long fields are cut."""
        if not records:
            return
        values = self._encoder.encode_records(records).split(b"\n")[:-1]
        limit = self._limit()
        for row, value in enumerate(values):
            if len(value) + _OVERHEAD > limit:
                values[row] = self._encoder.encode_records([shortened(records[row])])[:-1]
        keys = [key_text(record.get("key")) for record in records]
        headers = None
        if self._headers:
            headers = [[("id", str(record["id"]).encode())] if "id" in record else [] for record in records]
        self._join().send(self._topic, keys, values, headers, None)

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        self._join().prepare()
        self._step("kafka prepared")
        transactional_id = self._id if self.decides else None
        return {"version": _VERSION, "format": "kafka", "checkpoint": checkpoint, "transactional_id": transactional_id}

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`."""
        self._join().commit(checkpoint, self._step)

    def measure(self, metrics: Metrics, now: int) -> None:
        """Count records, transactions and errors in this registry (`streamml_kafka_...`)."""
        if self._output is not None:
            self._output.tally.publish(metrics)

    def close(self) -> None:
        """See `Sink.close`."""
        output, self._output = self._output, None
        if output is not None:
            output.leave()

    def _limit(self) -> int:
        return self._join().limits[self._topic]

    def _check_sizes(self, ids: Sequence[str], keys: Sequence[Any], values: Sequence[bytes], limit: int) -> None:
        for id, key, value in zip(ids, keys, values, strict=True):
            size = len(value) + len(key or b"") + len(id) + _OVERHEAD
            if size > limit:
                msg = (
                    f"event {id!r}: its output takes {size} bytes, and topic {self._topic!r} at most {limit} "
                    "(max.message.bytes). Leave fields out with select(), or raise that limit."
                )
                raise RecordError(msg)


def key_text(key: Any) -> str | bytes | None:
    """Return a key as it is written: text and bytes as they are, numbers as digits, tuples as JSON.

    >>> key_text("card"), key_text(7), key_text(("card", 7)), key_text(None)
    ('card', '7', '["card",7]', None)
    """
    if key is None or isinstance(key, str | bytes):
        return key
    if isinstance(key, int):
        return str(key)
    return msgspec.json.encode(key).decode()


def shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose long fields are cut, for side outputs that the topic would refuse.

    >>> cut = shortened({"id": "a", "payload": "x" * 5000})
    >>> len(cut["payload"]), cut["cut"]
    (1000, {'payload': 5000})
    """
    short: dict[str, Any] = {}
    cut: dict[str, int] = {}
    encoder = Encoder()
    for name, value in record.items():
        text = value if isinstance(value, str) else encoder.encode_records([{"x": value}])[5:-2].decode()
        if len(text) > _CUT:
            short[name], cut[name] = text[:_CUT], len(text)
        else:
            short[name] = value
    return {**short, "cut": cut}
