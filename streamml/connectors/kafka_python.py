"""Reading and writing by kafka-python: for where confluent-kafka can't be installed. Some thirty times slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.structs import OffsetAndMetadata

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import Reader, Unavailable, Writer, log
from streamml.connectors.kafka_fetch import Fetch, Partition
from streamml.connectors.kafka_python_errors import translated
from streamml.connectors.kafka_settings import to_kafka_python
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError

__all__ = ["make_reader", "make_writer"]


def make_reader(address: KafkaAddress, group: str | None, tally: Tally) -> Reader:
    """Return a reader on kafka-python."""
    return _Reader(address, group, tally)


def make_writer(
    address: KafkaAddress, transactional_id: str | None, settings: Mapping[str, str], tally: Tally
) -> Writer:
    """Return a writer on kafka-python."""
    return _Writer(address, transactional_id, settings, tally)


class _Client:
    """What both have: errors, settings, and a connection that is made when it is first needed."""

    def __init__(self, address: KafkaAddress, tally: Tally, transactional_id: str | None = None) -> None:
        self._address = address
        self._tally = tally
        self._id = transactional_id
        self._made: Any = None
        self._timeout_ms = int(address.request_timeout * 1000)

    def _failing(self) -> Any:
        return translated(self._address.where, self._address.settings, self._id, self._tally)

    def _connected(self, kind: Any, settings: Mapping[str, str], own: Mapping[str, Any]) -> Any:
        given = to_kafka_python(self._address.where, settings, strict=True)
        known = {name: value for name, value in given.items() if name in kind.DEFAULT_CONFIG}
        servers = self._address.servers.split(",")
        return kind(bootstrap_servers=servers, bootstrap_timeout_ms=self._address.patience, **{**own, **known})

    def _consumer(self, group: str | None) -> Any:
        own = {
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "fetch_max_wait_ms": 100,
            "reconnect_backoff_max_ms": 2000,
        }
        settings = {name: value for name, value in self._address.settings.items() if name != "partitioner"}
        return self._connected(KafkaConsumer, settings, own)


class _Reader(_Client):
    def __init__(self, address: KafkaAddress, group: str | None, tally: Tally) -> None:
        super().__init__(address, tally)
        self._group = group
        self._assigned: dict[Any, None] = {}

    @property
    def _client(self) -> Any:
        if self._made is None:
            with self._failing():
                self._made = self._consumer(self._group)
        return self._made

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        consumer = self._client
        with self._failing():
            listed = consumer.topics()  # asks the brokers; what is known of one topic is up to five minutes old
            names = listed if topics is None else topics
            found = {name: consumer.partitions_for_topic(name) for name in names}
        return {name: sorted(numbers) for name, numbers in found.items() if numbers}

    def range(self, partition: Partition) -> tuple[int, int]:
        place = TopicPartition(*partition)
        with self._failing():
            return self._client.beginning_offsets([place])[place], self._client.end_offsets([place])[place]

    def at_time(self, partitions: Sequence[Partition], millis: int) -> dict[Partition, int | None]:
        with self._failing():
            found = self._client.offsets_for_times({TopicPartition(*partition): millis for partition in partitions})
        return {tuple(place)[:2]: None if at is None else at.offset for place, at in found.items()}

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        if self._group is None:
            return dict.fromkeys(partitions)
        with self._failing():
            return {partition: self._client.committed(TopicPartition(*partition)) for partition in partitions}

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        if self._group is None or not positions:
            return
        offsets = {TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in positions.items()}
        with self._failing():
            if wait:
                self._client.commit(offsets, timeout_ms=self._timeout_ms)
            else:
                self._client.commit_async(offsets, callback=self._on_commit)

    def _on_commit(self, offsets: Any, result: Any) -> None:
        if isinstance(result, Exception):
            log.warning(
                "%s: group %s: its positions could not be committed: %s", self._address.where, self._group, result
            )

    def add(self, positions: Mapping[Partition, int]) -> None:
        consumer = self._client
        with self._failing():
            before = {place: consumer.position(place) for place in self._assigned}
            after = {**before, **{TopicPartition(*at): offset for at, offset in positions.items()}}
            self._assign(after)

    def drop(self, partitions: Sequence[Partition]) -> None:
        gone = {TopicPartition(*partition) for partition in partitions}
        with self._failing():
            self._assign({place: self._client.position(place) for place in self._assigned if place not in gone})

    def _assign(self, places: Mapping[Any, int]) -> None:
        self._assigned = dict.fromkeys(places)
        self._client.assign(list(places))
        for place, offset in places.items():
            self._client.seek(place, offset)

    def poll(self, limit: int, timeout: float) -> Fetch:
        fetch = Fetch()
        consumer = self._client
        try:
            with self._failing():
                try:
                    found = consumer.poll(int(timeout * 1000), max_records=limit)
                except (
                    errors.OffsetOutOfRangeError,
                    errors.NoOffsetForPartitionError,
                    errors.LogTruncationError,
                ) as exc:
                    places = exc.divergent_offsets if isinstance(exc, errors.LogTruncationError) else exc.args[0]
                    fetch.lost = [(place.topic, place.partition) for place in places]
                    return fetch
            self._fill(fetch, found)
            with self._failing():
                for place in self._assigned:
                    fetch.ends[place.topic, place.partition] = consumer.position(place, timeout_ms=100)
        except Unavailable as exc:
            log.info("%s: %s", self._address.where, exc)
        return fetch

    def _fill(self, fetch: Fetch, found: Mapping[Any, Sequence[Any]]) -> None:
        traces: list[str | None] = []
        for place, records in found.items():
            fetch.runs.append(((place.topic, place.partition), len(records)))
            fetch.payloads += [record.value for record in records]
            fetch.offsets += [record.offset for record in records]
            fetch.keys += [record.key for record in records]
            fetch.times += [record.timestamp for record in records]
            traces += [_trace(record.headers) for record in records]
        if any(traces):
            fetch.traces = traces

    def down_for(self) -> float:
        return 0.0  # kafka-python tries again by itself and does not say so

    def high(self, partition: Partition) -> int | None:
        found: int | None = self._client.highwater(TopicPartition(*partition))
        return found

    def close(self) -> None:
        if self._made is not None:
            self._made.close(timeout_ms=2000)


class _Writer(_Client):
    def __init__(
        self, address: KafkaAddress, transactional_id: str | None, settings: Mapping[str, str], tally: Tally
    ) -> None:
        super().__init__(address, tally, transactional_id)
        self._settings = {name: value for name, value in settings.items() if name != "partitioner"}
        self._sent: list[Any] = []
        self._failure: BaseException | None = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            own: dict[str, Any] = {"enable_idempotence": True, "max_block_ms": self._timeout_ms, "retry_backoff_ms": 10}
            own |= {"linger_ms": 5, "reconnect_backoff_max_ms": 2000}
            if self._id is not None:
                own["transactional_id"] = self._id
            with self._failing():
                self._made = self._connected(KafkaProducer, self._settings, own)
        return self._made

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        reader = _Reader(self._address, None, self._tally)
        try:
            return reader.partitions(topics)
        finally:
            reader.close()

    def start(self) -> None:
        with self._failing():
            self._client.init_transactions()

    def committed(self, topics: Sequence[str]) -> int | None:
        with self._failing():
            consumer = self._consumer(self._id)
            try:
                found = [consumer.committed(TopicPartition(topic, 0)) for topic in topics]
            finally:
                consumer.close(timeout_ms=2000)
        return max((offset for offset in found if offset is not None), default=None)

    def begin(self) -> None:
        self._sent, self._failure = [], None
        with self._failing():
            self._client.begin_transaction()

    def send(
        self,
        topic: str,
        keys: Sequence[Any],
        values: Sequence[bytes],
        headers: Sequence[list[tuple[str, bytes]]] | None,
        times: Sequence[int] | None,
    ) -> None:
        send = self._client.send
        rows = zip(values, keys, headers or repeat(None), times or repeat(None), strict=False)
        with self._failing():
            for value, key, head, time in rows:
                raw = key.encode() if isinstance(key, str) else key
                self._sent.append(send(topic, value=value, key=raw, headers=head, timestamp_ms=time))
        if len(self._sent) > 100_000:
            self._forget()

    def _forget(self) -> None:
        """Drop what is known to be delivered; keep the first failure."""
        for future in self._sent:
            if self._failure is None and future.is_done and future.failed():
                self._failure = future.exception
        self._sent = [future for future in self._sent if not future.is_done]

    def flush(self, timeout: float) -> int:
        try:
            with self._failing():
                self._client.flush(timeout=timeout)
        except Unavailable as exc:
            log.info("%s: %s", self._address.where, exc)
        self._forget()
        if self._failure is not None and self._id is None:
            text = self._address.settings.redact(str(self._failure))
            msg = f"{self._address.where}: records could not be delivered: {text}"
            raise ConnectorError(msg) from self._failure
        return len(self._sent)

    def decide(self, topics: Sequence[str], number: int) -> None:
        offsets = {TopicPartition(topic, 0): OffsetAndMetadata(number, str(number), -1) for topic in topics}
        with self._failing():
            self._client.send_offsets_to_transaction(offsets, self._id)

    def commit(self) -> None:
        with self._failing():
            self._client.commit_transaction()

    def abort(self) -> None:
        with self._failing():
            self._client.abort_transaction()

    def close(self) -> None:
        if self._made is not None:
            self._made.close(timeout=2)


def _trace(headers: Sequence[tuple[str, bytes]] | None) -> str | None:
    for name, value in headers or ():
        if name == "traceparent" and value is not None:
            return value.decode("ascii", "replace")
    return None
