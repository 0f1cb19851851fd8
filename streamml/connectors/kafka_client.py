"""What the Kafka source and sink need from a client library, and how they wait for brokers."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_fetch import Fetch, Partition
from streamml.errors import ConnectorError
from streamml.times import format_duration

__all__ = ["Reader", "RolledBack", "Unavailable", "Writer", "client_module", "log", "patiently"]

T = TypeVar("T")

log = logging.getLogger("streamml.kafka")
"""Says when brokers are waited for; the client libraries speak to `streamml.kafka.client`, silent by default."""
logging.getLogger("streamml.kafka.client").addHandler(logging.NullHandler())

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0


class Unavailable(ConnectorError):
    """Raised when the brokers do not answer; the same call may succeed later."""


class RolledBack(ConnectorError):
    """Raised when a transaction can't be committed any more."""


class Reader(Protocol):
    """A consumer that is told which partitions it reads, and where.

    Every call but `poll`, `down_for` and `high` may raise `Unavailable`.
    """

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        """Return the partitions of these topics, of all for None; what is not there is left out."""
        ...

    def range(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is there, and the one after the last."""
        ...

    def at_time(self, partitions: Sequence[Partition], millis: int) -> dict[Partition, int | None]:
        """Return the first offset of that time or later; None if there is none."""
        ...

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """Return what the group has committed."""
        ...

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        """Commit positions for the group, by default without waiting for the answer."""
        ...

    def add(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions from these offsets, beside the others."""
        ...

    def drop(self, partitions: Sequence[Partition]) -> None:
        """Stop reading these partitions."""
        ...

    def poll(self, limit: int, timeout: float) -> Fetch:
        """Return what is there, waiting at most `timeout` seconds for the first record."""
        ...

    def down_for(self) -> float:
        """Return for how many seconds no broker seems to be there; 0 if one is, or if that is not known."""
        ...

    def high(self, partition: Partition) -> int | None:
        """Return the end of a partition as last seen, without asking the broker."""
        ...

    def close(self) -> None: ...


class Writer(Protocol):
    """A producer, with a transactional id or without one. Every call but `send` may raise `Unavailable`."""

    def partitions(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        """See `Reader.partitions`."""
        ...

    def start(self) -> None:
        """Take the transactional id over: others that have it are fenced, an unfinished transaction is rolled back."""
        ...

    def committed(self, topics: Sequence[str]) -> int | None:
        """Return the greatest number that a transaction of this id has committed; call `start` first."""
        ...

    def begin(self) -> None:
        """Begin a transaction."""
        ...

    def send(
        self,
        topic: str,
        keys: Sequence[Any],
        values: Sequence[bytes],
        headers: Sequence[list[tuple[str, bytes]]] | None,
        times: Sequence[int] | None,
    ) -> None:
        """Send records; the keys are text, bytes or None."""
        ...

    def flush(self, timeout: float) -> int:
        """Wait until the brokers have everything, at most `timeout` seconds; return how many they don't have."""
        ...

    def decide(self, topics: Sequence[str], number: int) -> None:
        """Make the number part of the transaction."""
        ...

    def commit(self) -> None:
        """Commit the transaction.

        Raises:
            RolledBack: it can't be committed any more.
        """
        ...

    def abort(self) -> None:
        """Roll the transaction back."""
        ...

    def close(self) -> None: ...


def client_module(address: KafkaAddress) -> str:
    """Return the module with `make_reader` and `make_writer` of the client library to use.

    Raises:
        ConnectorError: neither confluent-kafka nor kafka-python is installed, or the one that is asked for is not.
    """
    wanted = address.choice("client", "auto", "confluent", "python")
    found = {"confluent": "confluent_kafka", "python": "kafka"}
    for name, module in found.items():
        if wanted in ("auto", name) and importlib.util.find_spec(module) is not None:
            return f"streamml.connectors.kafka_{name}"
    what = (
        "neither confluent-kafka nor kafka-python is" if wanted == "auto" else f"the library of client={wanted} is not"
    )
    msg = f"{address.where}: {what} installed: pip install 'streamml[kafka]'"
    raise ConnectorError(msg)


def patiently(
    where: str,
    action: Callable[[], T],
    give_up_after: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Any] = time.sleep,
    retried: Callable[[], None] = lambda: None,
) -> T:
    """Do something that needs the brokers, again and again with growing pauses while they are not available.

    Args:
        where: for messages.
        action: what to do; raises `Unavailable` while it can't be done.
        give_up_after: milliseconds.
        clock: monotonic seconds.
        sleep: waits for seconds.
        retried: called before each further attempt.

    Raises:
        ConnectorError: they were not available for that long.
    """
    deadline = clock() + give_up_after / 1000
    wait = _FIRST_WAIT
    said = False
    while True:
        try:
            result = action()
        except Unavailable as exc:
            left = deadline - clock()
            if left <= 0:
                msg = (
                    f"{where}: the brokers were not available for {format_duration(give_up_after)} (give_up_after=): "
                    f"{exc}. Nothing is lost: start the job again when they are."
                )
                raise ConnectorError(msg) from exc
            if not said and wait > 1.0:
                said = True
                log.warning("%s: the brokers are not available, trying again for %d s: %s", where, left, exc)
            sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT)
            retried()
        else:
            if said:
                log.warning("%s: the brokers are available again", where)
            return result
