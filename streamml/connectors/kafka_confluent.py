"""Reading by confluent-kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import Reader, Unavailable, Writer, log
from streamml.connectors.kafka_confluent_errors import Errors
from streamml.connectors.kafka_fetch import Fetch, Partition
from streamml.connectors.kafka_places import name_of
from streamml.connectors.kafka_tally import Tally

__all__ = ["make_reader", "make_writer"]

_MESSAGE: Any = Message
_ERROR, _VALUE, _KEY, _OFFSET = _MESSAGE.error, _MESSAGE.value, _MESSAGE.key, _MESSAGE.offset
_TOPIC, _PARTITION, _TIME, _HEADERS = _MESSAGE.topic, _MESSAGE.partition, _MESSAGE.timestamp, _MESSAGE.headers


def make_reader(address: KafkaAddress, group: str | None, tally: Tally) -> Reader:
    """Return a reader on confluent-kafka."""
    return _Reader(address, group, tally)


def make_writer(
    address: KafkaAddress, transactional_id: str | None, settings: Mapping[str, str], tally: Tally
) -> Writer:
    """Return a writer on confluent-kafka."""
    from streamml.connectors.kafka_confluent_writer import ConfluentWriter

    return ConfluentWriter(address, transactional_id, settings, tally)


class _Reader:
    def __init__(self, address: KafkaAddress, group: str | None, tally: Tally) -> None:
        self._errors = Errors(address, tally)
        self._group = group
        self._timeout = address.request_timeout
        settings = {
            "fetch.wait.max.ms": "100",
            "fetch.error.backoff.ms": "100",
            "queued.min.messages": "20000",
            "fetch.queue.backoff.ms": "5",  # by default a full queue is not filled again for a second
            "queued.max.messages.kbytes": "65536",
            **address.settings,
            "bootstrap.servers": address.servers,
            "group.id": group or "streamml",
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "auto.offset.reset": "error",
            "enable.partition.eof": "true",
            "error_cb": self._errors.note,
            "on_commit": self._on_commit,
        }
        with self._errors:
            self._consumer = Consumer(settings, logger=logging.getLogger("streamml.kafka.client"))

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        return self._errors.partitions(self._consumer, topics, self._timeout)

    def range(self, partition: Partition) -> tuple[int, int]:
        with self._errors:
            try:
                place = TopicPartition(*partition)
                found: tuple[int, int] = self._consumer.get_watermark_offsets(place, timeout=self._timeout)
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                msg = f"who leads {name_of(partition)} is not known now"  # it was listed, so it is there
                raise Unavailable(msg) from exc
        return found

    def at_time(self, partitions: Sequence[Partition], millis: int) -> dict[Partition, int | None]:
        with self._errors:
            asked = [TopicPartition(*partition, millis) for partition in partitions]
            return self._offsets(self._consumer.offsets_for_times(asked, timeout=self._timeout))

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        if self._group is None:
            return dict.fromkeys(partitions)
        with self._errors:
            asked = [TopicPartition(*partition) for partition in partitions]
            return self._offsets(self._consumer.committed(asked, timeout=self._timeout))

    def _offsets(self, found: Sequence[Any]) -> dict[Partition, int | None]:
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return {(each.topic, each.partition): each.offset if each.offset >= 0 else None for each in found}

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        if self._group is None or not positions:
            return
        offsets = [TopicPartition(*partition, offset) for partition, offset in positions.items()]
        with self._errors:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[Any]) -> None:
        error = error or next((each.error for each in partitions if each.error is not None), None)
        if error is not None:
            log.warning(
                "%s: group %s: its positions could not be committed: %s", self._errors.where, self._group, error
            )

    def add(self, positions: Mapping[Partition, int]) -> None:
        if positions:
            with self._errors:
                self._consumer.incremental_assign([TopicPartition(*at, offset) for at, offset in positions.items()])

    def drop(self, partitions: Sequence[Partition]) -> None:
        if partitions:
            with self._errors:
                self._consumer.incremental_unassign([TopicPartition(*partition) for partition in partitions])

    def poll(self, limit: int, timeout: float) -> Fetch:
        with self._errors:
            messages = self._consumer.consume(
                limit, 0.0
            )  # with a timeout it would wait until it has all `limit` of them
            if not messages and timeout > 0.0:
                first = self._consumer.poll(timeout)
                if first is not None:
                    messages = [first, *self._consumer.consume(limit - 1, 0.0)] if limit > 1 else [first]
        fetch = Fetch()
        if any(map(_ERROR, messages)):
            messages = self._sort_out(messages, fetch)
        if messages:
            self._errors.answered()
            _fill(fetch, messages)
        else:
            self._errors.check()
        return fetch

    def _sort_out(self, messages: list[Any], fetch: Fetch) -> list[Any]:
        """Return the records; what is an event or an error instead is noted or raised."""
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
                continue
            code = error.code()
            if code == KafkaError._PARTITION_EOF:
                fetch.ends[message.topic(), message.partition()] = message.offset()
                self._errors.answered()
            elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                fetch.lost.append((message.topic(), message.partition()))
            else:
                self._errors.event(error)
        return records

    def down_for(self) -> float:
        since = self._errors.down_since
        return 0.0 if since is None else time.monotonic() - since

    def high(self, partition: Partition) -> int | None:
        with self._errors:
            found = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return found[1] if found is not None and found[1] >= 0 else None

    def close(self) -> None:
        self._consumer.close()


def _fill(fetch: Fetch, messages: list[Any]) -> None:
    """Put messages into columns, stably grouped by partition."""
    count = len(messages)
    topics = set(map(_TOPIC, messages))
    if len(topics) == 1:
        places: list[Any] = list(map(_PARTITION, messages))
        topic = topics.pop()
    else:
        places, topic = list(zip(map(_TOPIC, messages), map(_PARTITION, messages), strict=True)), None
    runs = [(place, sum(1 for _ in run)) for place, run in groupby(places)]
    if len(runs) > len({place for place, _ in runs}):
        order = sorted(range(count), key=places.__getitem__)
        messages = [messages[row] for row in order]
        runs = [(place, sum(1 for _ in run)) for place, run in groupby(map(places.__getitem__, order))]
    fetch.runs = [((topic, place) if topic is not None else place, size) for place, size in runs]
    fetch.payloads = list(map(_VALUE, messages))
    fetch.offsets = list(map(_OFFSET, messages))
    fetch.keys = list(map(_KEY, messages))
    fetch.times = [time for _, time in map(_TIME, messages)]
    headers = list(map(_HEADERS, messages))
    if headers.count(None) < count:
        fetch.traces = [_trace(each) for each in headers]


def _trace(headers: Any) -> str | None:
    for name, value in headers or ():
        if name == "traceparent" and value is not None:
            text: str = value.decode("ascii", "replace")
            return text
    return None
