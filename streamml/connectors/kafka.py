"""Kafka topics by their addresses: `kafka://host:port[,host:port]/topic?option=value`."""

from __future__ import annotations

from typing import Any

from streamml.connectors.kafka_address import parse_address
from streamml.connectors.kafka_client import client_module
from streamml.connectors.kafka_sink import KafkaSink
from streamml.connectors.kafka_source import KafkaSource
from streamml.connectors.storage import Step

__all__ = ["open_sink", "open_source"]


def open_source(uri: str, **options: Any) -> KafkaSource:
    """Return the source of a Kafka address; it does not connect yet.

    Args:
        uri: `kafka://host:port[,host:port]/topic`, or `/?topic=^pattern`; several topics with commas.
        options: as in the address, which may hold (with their defaults): `start=committed` (then earliest), or
        `earliest`,
            `latest`, an instant, offsets `0:100,1:250`; `until=` (none), `latest`, an instant or offsets; `group=`
            (the job's
            name); `on_data_loss=fail`, or `earliest`; `tombstones=reject`, or `skip`; `refresh=30s`;
            `give_up_after=5m`;
            `create=false`, with `partitions=`, `replication=`, `retention=`; `client=auto`, `confluent`, `python`;
            `config=PATH`
            of a properties file; and settings of librdkafka (names with a dot).

    Raises:
        ConnectorError: the address or an option is wrong, or no Kafka client is installed.
    """
    address = parse_address("source", uri, options)
    client_module(address)
    return KafkaSource(address)


def open_sink(uri: str, *, overwrite: bool = False, on_step: Step | None = None, **options: Any) -> KafkaSink:
    """Return the sink of a Kafka address; it does not connect yet.

    Args:
        uri: `kafka://host:port[,host:port]/topic`.
        overwrite: for other sinks; a topic is always appended to.
        on_step: called with the name of each durable step after it was made.
        options: as in the address, which may hold (with their defaults): `delivery=exactly-once`, or `at-least-once`;
            `transactional_id=` (the job's name); `timestamp=now`, or `event`; `headers=true`; `resume=` (number of the
            checkpoint
            to go on from when Kafka has forgotten it); and `give_up_after`, `create`, `client`, `config` and settings
            as for sources.

    Raises:
        ConnectorError: the address or an option is wrong, or no Kafka client is installed.
    """
    address = parse_address("sink", uri, options)
    client_module(address)
    return KafkaSink(address, on_step=on_step)
