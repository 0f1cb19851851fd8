"""Topics: made with the right settings, their limits asked for, removed; by kafka-python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import log, patiently
from streamml.connectors.kafka_settings import to_kafka_python
from streamml.errors import ConnectorError

__all__ = ["DEFAULT_LIMIT", "create_topics", "delete_topics", "record_limits", "require_topics"]

DEFAULT_LIMIT = 1_048_588
"""Kafka's default of `max.message.bytes`."""


def create_topics(
    address: KafkaAddress,
    topics: Sequence[str],
    *,
    partitions: int = 1,
    replication: int = -1,
    configs: Mapping[str, str] | None = None,
) -> None:
    """Create topics; one that is there already is left as it is.

    Args:
        address: of the cluster.
        topics: names.
        partitions: how many each has.
        replication: copies of each partition, -1 for the brokers' default.
        configs: settings of the topics, such as `retention.ms` (`-1` keeps records for ever).

    Raises:
        Unavailable: the brokers do not answer.
        ConnectorError: they refuse.
    """
    wanted = {"num_partitions": partitions, "replication_factor": replication, "configs": dict(configs or {})}
    with _admin(address) as (admin, errors):
        for topic in topics:
            try:
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
            except errors.TopicAlreadyExistsError:
                continue


def delete_topics(address: KafkaAddress, topics: Sequence[str]) -> None:
    """Delete topics with their records.

    Raises:
        Unavailable: the brokers do not answer.
        ConnectorError: they refuse.
    """
    with _admin(address) as (admin, _):
        admin.delete_topics(list(topics))


def record_limits(address: KafkaAddress, topics: Sequence[str]) -> dict[str, int]:
    """Return the greatest record that each topic takes, bytes; Kafka's default where it can't be told."""
    limits = dict.fromkeys(topics, DEFAULT_LIMIT)
    try:
        with _admin(address) as (admin, _):
            from kafka.admin import ConfigResource, ConfigResourceType

            asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            found = admin.describe_configs(asked, config_filter="all")
        for settings in found.values():
            for topic, values in settings.items():
                limits[topic] = int(values["max.message.bytes"]["value"])
    except (ConnectorError, KeyError, ValueError) as exc:
        log.info("%s: max.message.bytes is taken to be %d: %s", address.where, DEFAULT_LIMIT, exc)
    return limits


def require_topics(address: KafkaAddress, topics: Sequence[str], there: Mapping[str, Any], give_up_after: int) -> bool:
    """Make sure that topics are there: with `create=true` those that are not are made.

    Args:
        address: its options say whether and how to create them.
        topics: what must be there.
        there: what is there.
        give_up_after: how long to wait for brokers, ms.

    Returns:
        Whether some were made.

    Raises:
        ConnectorError: one is not there and must not be made.
    """
    missing = [topic for topic in topics if topic not in there]
    if not missing:
        return False
    if not address.flag("create"):
        msg = (
            f"{address.where}: there is no topic {missing[0]!r} at {address.servers}. Create it, or let it be created: "
            "add create=true (with partitions=N, retention=7d or forever) to the address."
        )
        raise ConnectorError(msg)
    configs = {}
    if (retention := address.options.get("retention")) is not None:
        configs["retention.ms"] = "-1" if retention == "forever" else str(address.millis("retention", "7d"))
    partitions, replication = address.number("partitions", 1) or 1, address.number("replication", -1) or -1

    def create() -> None:
        create_topics(address, missing, partitions=partitions, replication=replication, configs=configs)

    patiently(address.where, create, give_up_after)
    return True


@contextmanager
def _admin(address: KafkaAddress) -> Iterator[tuple[Any, Any]]:
    try:
        from kafka import KafkaAdminClient, errors
    except ModuleNotFoundError as exc:
        msg = (
            f"{address.where}: kafka-python, which administers topics, is not installed: pip install 'streamml[kafka]'"
        )
        raise ConnectorError(msg) from exc
    from streamml.connectors.kafka_python_errors import translated

    with translated(address.where, address.settings):
        settings = to_kafka_python(address.where, address.settings, strict=False)
        names = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        names |= {"bootstrap_servers": address.servers.split(",")}
        names |= {"bootstrap_timeout_ms": int(address.request_timeout * 1000)}
        admin = KafkaAdminClient(**names)
        try:
            yield admin, errors
        finally:
            admin.close()
