"""What the tests on a cluster do with topics, and how they wait."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["committed", "send", "wait"]


def send(address: str, topic: str, lines: list[bytes]) -> None:
    """Write records into a topic."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "queue.buffering.max.messages": 1_000_000})
    for line in lines:
        producer.produce(topic, line)
    assert producer.flush(60) == 0


def committed(address: str, topic: str) -> list[bytes]:
    """What a reader of committed data sees of a topic now."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "test",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            for message in consumer.consume(10_000, 1.0):
                if message.error() is not None:
                    return found
                found.append(message.value())
    finally:
        consumer.close()
    raise TimeoutError(topic)


def wait(what: str, there: Callable[[], bool], patience: float = 120) -> None:
    """Wait until something is there."""
    deadline = time.monotonic() + patience
    while not there():
        assert time.monotonic() < deadline, f"no {what} within {patience:.0f} s"
        time.sleep(0.3)
