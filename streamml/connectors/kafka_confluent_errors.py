"""What confluent-kafka's errors mean: wait, give up, or something to be set right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import RolledBack, Unavailable
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError

__all__ = ["Errors"]

_FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
_IDENTITY = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}
_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "read or write the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "use the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "use the cluster in this way",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "use the transactional id",
}
_WAIT = {
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._DESTROY_BROKER,  # a connection was given up while it was being made
    KafkaError._WAIT_COORD,
    KafkaError._WAIT_CACHE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.CONCURRENT_TRANSACTIONS,
}


class Errors:
    """Turns the errors of one client into ours; as a context manager, those raised inside.

    Args:
        address: for messages; the secrets of its settings are not shown.
        tally: where errors are counted.
        transactional_id: for messages.
    """

    def __init__(self, address: KafkaAddress, tally: Tally, transactional_id: str | None = None) -> None:
        self.where = address.where
        self.down_since: float | None = None
        """Monotonic time since when no broker was heard of, None when one was."""
        self._settings = address.settings
        self._role = address.role
        self._tally = tally
        self._id = transactional_id
        self._refusal: KafkaError | None = None
        self._last: KafkaError | None = None
        self._heard = False

    def note(self, error: KafkaError) -> None:
        """Remember an error that the client's threads report (its `error_cb`)."""
        self._count(error)
        self._last = error
        if error.code() in _IDENTITY or error.fatal():
            self._refusal = error
        elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT) and self.down_since is None:
            self.down_since = time.monotonic()

    def answered(self) -> None:
        """Note that a broker has answered."""
        self.down_since = self._last = None
        self._heard = True

    def check(self) -> None:
        """Raise what was noted, if it is nothing that passes by itself."""
        if self._refusal is not None:
            raise self.translate(self._refusal)

    def event(self, error: KafkaError) -> None:
        """Handle an error that came in place of a record: what passes by itself is noted, the rest raised."""
        translated = self.translate(error)
        if not isinstance(translated, Unavailable):
            self._count(error)
            raise translated
        self.note(error)

    def partitions(self, client: Any, topics: Sequence[str] | None, timeout: float) -> dict[str, list[int]]:
        """Return the partitions of topics, of all for None."""
        with self, self._listening(client):
            alone = topics[0] if topics is not None and len(topics) == 1 else None
            found = (
                client.list_topics(alone, timeout=timeout) if alone else client.list_topics(timeout=timeout)
            ).topics
            self.answered()
            there = {}
            for name in topics if topics is not None else found:
                topic = found.get(name)
                if topic is None or (topic.error and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART):
                    continue
                if topic.error:
                    raise KafkaException(topic.error)
                there[name] = sorted(topic.partitions)
            return there

    @contextmanager
    def _listening(self, client: Any) -> Iterator[None]:
        """Let a client that failed before it was heard of say why: it does so only when it is polled."""
        try:
            yield
        except KafkaException:
            if not self._heard:
                client.poll(0)  # nothing is assigned yet, so this takes no record
            raise

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KafkaException):
            cause = error.args[0] if error.args else None
            if self._refusal is not None:
                cause = self._refusal
            self._count(cause)
            raise self.translate(cause) from error

    def translate(self, error: Any) -> ConnectorError:
        """Return our error for one of the client's."""
        if not isinstance(error, KafkaError):
            return ConnectorError(f"{self.where}: {self._text(error)}")
        code, text = error.code(), self._text(error.str())
        if code in _FENCED:
            return ConnectorError(
                f"{self.where}: another worker with the transactional id {self._id!r} has started and taken over; "
                "this one "
                "must stop. If that is another job, give one of them another id (transactional_id=)."
            )
        if code == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            return ConnectorError(
                f"{self.where}: the brokers don't allow a transaction to be open that long: {text}. Take checkpoints "
                "more "
                "often, or raise transaction.max.timeout.ms at the brokers."
            )
        if code in _IDENTITY:
            return ConnectorError(
                f"{self.where}: the brokers refused the connection: {text}. Check security.protocol, sasl.*, ssl.* "
                "in the "
                f"configuration; in use: {self._settings!r}"
            )
        if code in _RIGHTS:
            return ConnectorError(f"{self.where}: no right to {_RIGHTS[code]}: {text}. Ask for an ACL that allows it.")
        if error.txn_requires_abort():
            return RolledBack(f"{self.where}: {text}")
        if not error.fatal() and (error.retriable() or code in _WAIT):
            last = (
                f" ({self._text(self._last.str())})"
                if self._last is not None and self._last.str() != error.str()
                else ""
            )
            return Unavailable(f"{text}{last}")
        return ConnectorError(f"{self.where}: {error.name()}: {text}")

    def _count(self, error: Any) -> None:
        kind = _kind(error) if isinstance(error, KafkaError) else "other"
        self._tally.count("streamml_kafka_errors_total", role=self._role, kind=kind)

    def _text(self, value: object) -> str:
        return self._settings.redact(" ".join(str(value).split())).rstrip(".")


def _kind(error: KafkaError) -> str:
    """Return the kind of an error, as in metrics."""
    code = error.code()
    for kind, codes in (("fenced", _FENCED), ("refused", _IDENTITY), ("rights", _RIGHTS), ("unavailable", _WAIT)):
        if code in codes:
            return kind
    if error.txn_requires_abort():
        return "rolled_back"
    return "unavailable" if error.retriable() and not error.fatal() else "other"
