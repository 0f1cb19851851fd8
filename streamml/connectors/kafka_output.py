"""What the Kafka sinks of one job share: one producer and one transaction for the main output and all side outputs."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_admin import record_limits, require_topics
from streamml.connectors.kafka_client import RolledBack, Unavailable, Writer, client_module, log, patiently
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError
from streamml.times import format_duration

__all__ = ["KafkaOutput", "shared_output"]

_SHARED: WeakValueDictionary[tuple[str, str | None], KafkaOutput] = WeakValueDictionary()

_SHORTEST_TRANSACTION = 60_000
_HEADROOM = 3


def shared_output(address: KafkaAddress, transactional_id: str | None, interval: int | None) -> KafkaOutput:
    """Return the output that sinks of this cluster and transactional id share in this process.

    Args:
        address: of the first sink.
        transactional_id: None for no transactions.
        interval: ms between checkpoints, None if not known.

    Raises:
        ConnectorError: another sink has the same transactional id on another cluster, which one transaction can't span.
    """
    if transactional_id is not None:
        for (servers, other), output in list(_SHARED.items()):
            if other == transactional_id and servers != address.servers and output.users:
                msg = (
                    f"{address.where}: exactly once takes one Kafka cluster, and other output of this job goes to "
                    f"{servers}. "
                    "Write all of it to one cluster, or this with delivery=at-least-once."
                )
                raise ConnectorError(msg)
    key = (address.servers, transactional_id)
    found = _SHARED.get(key)
    if found is None or found.closed:
        found = _SHARED[key] = KafkaOutput(address, transactional_id, interval)
    return found


class KafkaOutput:
    """A producer for several topics; with a transactional id everything between two commits is one transaction.

    Order of calls: `join` for every topic, `start`, then `committed`, `send`, `prepare`, `commit`; `leave` closes it
    with the
    last one.

    Attributes:
        users: number of sinks that use it.
        closed: it was closed, and is not to be used again.
        limits: greatest record of each topic, bytes.
        tally: what is counted, to be published.
    """

    def __init__(self, address: KafkaAddress, transactional_id: str | None, interval: int | None) -> None:
        self.users = 0
        self.closed = False
        self.limits: dict[str, int] = {}
        self.tally = Tally()
        self._address = address
        self._id = transactional_id
        self._patience = address.patience
        self._interval = interval
        self._topics: dict[str, KafkaAddress] = {}
        self._writer: Writer | None = None
        self._open = False  # a transaction is open
        self._started = False
        self._number: int | None = None  # committed last
        self._failed: ConnectorError | None = None
        self._begun = 0.0

    def join(self, address: KafkaAddress) -> None:
        """Take part with a topic."""
        self.users += 1
        self._topics.setdefault(address.topics[0], address)

    def start(self) -> None:
        """Connect, look at the topics or make them, and take the transactional id over.

        Raises:
            ConnectorError: brokers, rights, topics or settings are not as they must be.
        """
        settings = dict(self._address.settings)
        if self._id is not None and not self._started:
            settings["transaction.timeout.ms"] = str(self._transaction_timeout())
        if self._writer is None:
            make = importlib.import_module(client_module(self._address)).make_writer
            self._writer = make(self._address, self._id, settings, self.tally)
        for address in self._topics.values():
            self._require(address)
        if missing := [topic for topic in self._topics if topic not in self.limits]:
            self.limits.update(record_limits(self._address, missing))
        if self._id is not None and not self._started:
            self._patiently(lambda writer: writer.start())
        self._started = True

    def _require(self, address: KafkaAddress) -> None:
        topics = list(address.topics)
        if topics[0] not in self.limits:
            there = self._patiently(lambda writer: writer.partitions(topics))
            require_topics(address, topics, there, self._patience)

    def _transaction_timeout(self) -> int:
        interval = self._interval or 0
        given = self._address.settings.get("transaction.timeout.ms")
        if given is None:
            return max(_SHORTEST_TRANSACTION, _HEADROOM * interval)
        if not given.isdigit() or int(given) < 2 * interval:
            msg = (
                f"{self._address.where}: transaction.timeout.ms={given} is too short: a transaction is open from one "
                "checkpoint "
                f"to the next, and they are {format_duration(interval)} apart. Give at least {_HEADROOM * interval}, "
                "or leave it out."
            )
            raise ConnectorError(msg)
        return int(given)

    def committed(self) -> int | None:
        """Return the number of the checkpoint that the last committed transaction belongs to."""
        self.start()
        self._number = self._patiently(lambda writer: writer.committed(list(self._topics)))
        return self._number

    def send(self, topic: str, keys: Sequence[Any], values: Sequence[bytes], headers: Any, times: Any) -> None:
        """Send records, in a transaction if there is a transactional id."""
        writer = self._usable()
        self._begin(writer)
        self._guarded(lambda: writer.send(topic, keys, values, headers, times))
        self.tally.count("streamml_kafka_records_written_total", len(values), topic=topic)

    def prepare(self) -> None:
        """Wait until the brokers have everything."""
        self._guarded(self._flush)

    def _flush(self) -> None:
        """Wait until the brokers have everything."""
        writer = self._usable()
        deadline = time.monotonic() + self._patience / 1000
        while left := writer.flush(1.0):
            if time.monotonic() > deadline:
                msg = (
                    f"{self._address.where}: the brokers did not take {left} records within "
                    f"{format_duration(self._patience)} "
                    "(give_up_after=). Nothing is lost: start the job again when they are available."
                )
                raise ConnectorError(msg)

    def commit(self, checkpoint: int, step: Callable[[str], None]) -> None:
        """Commit the transaction with the number of the checkpoint; does nothing if that was done."""
        if self._id is None or self._number == checkpoint:
            return
        started = time.perf_counter()
        self._begin(self._usable())
        self._guarded(lambda: self._patiently(lambda writer: writer.decide(list(self._topics), checkpoint)))
        step("kafka decided")
        self._guarded(lambda: self._patiently(lambda writer: writer.commit()))
        self._open, self._number = False, checkpoint
        ended = time.perf_counter()
        self.tally.count("streamml_kafka_transactions_total")
        self.tally.observe("streamml_kafka_commit_duration_seconds", ended - started)
        self.tally.observe("streamml_kafka_transaction_duration_seconds", ended - self._begun)
        step("kafka committed")

    def leave(self) -> None:
        """Stop taking part; the last one closes the producer, and what was not committed is rolled back."""
        self.users -= 1
        if self.users > 0 or self.closed:
            return
        self.closed = True
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if self._open and self._failed is None:
                writer.abort()
        except ConnectorError as exc:  # the next start rolls it back, or the brokers do when its time is over
            log.info("%s: the unfinished transaction could not be rolled back now: %s", self._address.where, exc)
        finally:
            writer.close()

    def _begin(self, writer: Writer) -> None:
        if self._id is not None and not self._open:
            self._guarded(writer.begin)
            self._open, self._begun = True, time.perf_counter()

    def _usable(self) -> Writer:
        if self._failed is not None:
            msg = f"{self._address.where}: an earlier write failed: {self._failed}"
            raise ConnectorError(msg)
        assert self._writer is not None, "used before start, or after close"
        return self._writer

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Do something that must not be tried again by others once it has failed."""
        try:
            return action()
        except RolledBack as exc:
            if self._writer is not None:
                try:
                    self._writer.abort()
                except ConnectorError as more:
                    log.info("%s: %s", self._address.where, more)
            before = "from the start" if self._number is None else f"from checkpoint {self._number}"
            msg = f"{exc}. The transaction was rolled back and is not visible. Start again: the job goes on {before}."
            raise self._fail(ConnectorError(msg)) from exc
        except Unavailable:
            raise
        except ConnectorError as exc:
            raise self._fail(exc)  # noqa: B904 the same error

    def _fail(self, error: ConnectorError) -> ConnectorError:
        self._failed = error
        return error

    def _patiently(self, action: Callable[[Writer], Any]) -> Any:
        assert self._writer is not None
        writer = self._writer

        def retried() -> None:
            self.tally.count("streamml_kafka_retries_total", role="sink")

        return patiently(self._address.where, lambda: action(writer), self._patience, retried=retried)
