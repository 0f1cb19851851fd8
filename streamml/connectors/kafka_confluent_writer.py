"""Writing by confluent-kafka, plainly or in transactions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import log
from streamml.connectors.kafka_confluent_errors import Errors
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError

__all__ = ["ConfluentWriter"]

_RESUMED = 3.0  # a transactional call that took too long goes on where it was when it is made again


class ConfluentWriter:
    """A `Writer` on confluent-kafka.

    Args:
        address: of the sink.
        transactional_id: None for no transactions.
        settings: of the producer, those of the address included.
        tally: where errors are counted.
    """

    def __init__(
        self, address: KafkaAddress, transactional_id: str | None, settings: Mapping[str, str], tally: Tally
    ) -> None:
        self._where = address.where
        self._errors = Errors(address, tally, transactional_id)
        self._address = address
        self._id = transactional_id
        self._failed: KafkaError | None = None
        self._group: Any = None
        logger = logging.getLogger("streamml.kafka.client")
        conf: dict[str, Any] = {
            "linger.ms": "1",
            "partitioner": "murmur2_random",  # where Java's clients would put it
            "queue.buffering.max.messages": "500000",
            "queue.buffering.max.kbytes": "262144",
            "retry.backoff.ms": "2",  # a transaction takes 30 ms, and 100 with the default of 100 ms
            "retry.backoff.max.ms": "500",
            "metadata.recovery.strategy": "none",  # else 2.16 may wait for ever in send_offsets_to_transaction
            **settings,
            "bootstrap.servers": address.servers,
            "enable.idempotence": "true",
            "delivery.report.only.error": True,
            "on_delivery": self._on_failure,
            "error_cb": self._errors.note,
        }
        if transactional_id is not None:
            conf["transactional.id"] = transactional_id
        with self._errors:
            self._producer = Producer(conf, logger=logger)
        self._produce: Any = self._producer.produce

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        """See `Writer.partitions`."""
        self._producer.poll(0)
        return self._errors.partitions(self._producer, topics, self._address.request_timeout)

    def start(self) -> None:
        """See `Writer.start`."""
        with self._errors:
            self._producer.init_transactions(_RESUMED)

    def committed(self, topics: Sequence[str]) -> int | None:
        """See `Writer.committed`."""
        group = self._consumer()
        try:
            with self._errors:
                asked = [TopicPartition(topic, 0) for topic in topics]
                found = group.committed(asked, timeout=self._address.request_timeout)
                for each in found:
                    if each.error is not None:
                        raise KafkaException(each.error)
        finally:
            group.close()
        return max((each.offset for each in found if each.offset >= 0), default=None)

    def begin(self) -> None:
        """See `Writer.begin`."""
        with self._errors:
            self._producer.begin_transaction()

    def send(
        self,
        topic: str,
        keys: Sequence[Any],
        values: Sequence[bytes],
        headers: Sequence[list[tuple[str, bytes]]] | None,
        times: Sequence[int] | None,
    ) -> None:
        """See `Writer.send`; waits while the buffer is full."""
        produce = self._produce
        rows = zip(values, keys, headers or repeat(None), times or repeat(0), strict=False)
        with self._errors:
            for value, key, head, time in rows:
                while True:
                    try:
                        if head is None:
                            produce(topic, value, key, timestamp=time)
                        else:
                            produce(topic, value, key, headers=head, timestamp=time)
                        break
                    except BufferError:
                        self._producer.poll(0.1)
                        self._check()
            self._producer.poll(0)
        self._check()

    def flush(self, timeout: float) -> int:
        """See `Writer.flush`."""
        with self._errors:
            left: int = self._producer.flush(timeout)
        self._check()
        return left

    def decide(self, topics: Sequence[str], number: int) -> None:
        """See `Writer.decide`."""
        if self._group is None:
            consumer = self._consumer()
            self._group = consumer.consumer_group_metadata()
            consumer.close()
        offsets = [TopicPartition(topic, 0, number, metadata=str(number)) for topic in topics]
        with self._errors:
            self._producer.send_offsets_to_transaction(offsets, self._group, _RESUMED)

    def commit(self) -> None:
        """See `Writer.commit`."""
        with self._errors:
            self._producer.commit_transaction(_RESUMED)

    def abort(self) -> None:
        """See `Writer.abort`."""
        with self._errors:
            self._producer.abort_transaction(_RESUMED)

    def close(self) -> None:
        """Give up what was not flushed."""
        try:
            self._producer.purge()
            self._producer.flush(1.0)
        except KafkaException as exc:  # one that is cut off can't even be asked what it has left
            log.info("%s: closed although %s", self._where, exc)
        del self._produce, self._producer  # its own close() would wait for the brokers without end

    def _consumer(self) -> Any:
        """Return a consumer in the group that holds the number; it never joins it."""
        conf = {
            **{name: value for name, value in self._address.settings.items() if _is_common(name)},
            "bootstrap.servers": self._address.servers,
            "group.id": self._id,
            "isolation.level": "read_committed",
            "error_cb": self._errors.note,
        }
        with self._errors:
            return Consumer(conf, logger=logging.getLogger("streamml.kafka.client"))

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failed is None:
            self._failed = error

    def _check(self) -> None:
        """Raise if a record could not be delivered; in a transaction the commit fails for it."""
        self._errors.check()
        if self._failed is not None and self._id is None:
            msg = f"{self._where}: records could not be delivered: {self._errors.translate(self._failed)}"
            raise ConnectorError(msg)


def _is_common(name: str) -> bool:
    return name.startswith(
        ("security.", "sasl.", "ssl.", "socket.", "broker.", "client.", "enable.ssl", "enable.sasl", "debug")
    )
