"""Where a Kafka source starts and ends in each partition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_client import Reader, log
from streamml.connectors.kafka_fetch import Partition
from streamml.errors import ConnectorError

__all__ = ["end_offsets", "name_of", "partition_of", "start_offsets", "time_of"]

_OFFSETS = re.compile(r"(?:([A-Za-z0-9._-]+)/)?(\d+):(\d+)")
_WORDS = {"start": ("committed", "earliest", "latest"), "until": ("latest",)}


def name_of(partition: Partition) -> str:
    """Return the name of a partition.

    >>> name_of(("payments", 3))
    'payments-3'
    """
    return f"{partition[0]}-{partition[1]}"


def partition_of(name: str) -> Partition:
    """Return the partition of a name.

    >>> partition_of("eu-payments-3")
    ('eu-payments', 3)
    """
    topic, _, number = name.rpartition("-")
    return topic, int(number)


def time_of(text: str) -> int | None:
    """Return an instant in milliseconds, None if the text is none; without a time zone it is UTC.

    >>> time_of("2026-11-01T00:00Z"), time_of("2026-11-01"), time_of("earliest")
    (1793491200000, 1793491200000, None)
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp() * 1000)


def start_offsets(address: KafkaAddress, reader: Reader, partitions: Sequence[Partition]) -> dict[Partition, int]:
    """Return where each partition is begun by `start=`.

    Raises:
        ConnectorError: it says nothing that is known.
    """
    start = address.options.get("start", "committed")
    ranges = {partition: reader.range(partition) for partition in partitions}
    earliest = {partition: low for partition, (low, _) in ranges.items()}
    latest = {partition: high for partition, (_, high) in ranges.items()}
    if start == "earliest":
        return earliest
    if start == "latest":
        return latest
    if start == "committed":
        found = reader.committed(partitions)
        if "start" not in address.options:
            _warn_of_skipped(address, {at: offset for at, offset in found.items() if offset is not None}, ranges)
        return {at: earliest[at] if (offset := found[at]) is None else offset for at in partitions}
    return {**earliest, **_given(address, "start", reader, partitions, latest)}


def end_offsets(address: KafkaAddress, reader: Reader, partitions: Sequence[Partition]) -> dict[Partition, int]:
    """Return where each partition ends by `until=`: the offset of the first record that is not read any more.

    Raises:
        ConnectorError: it says nothing that is known.
    """
    latest = {partition: reader.range(partition)[1] for partition in partitions}
    if address.options["until"] == "latest":
        return latest
    given = _given(address, "until", reader, partitions, latest)
    return {at: given.get(at, latest[at]) for at in partitions}


def _given(
    address: KafkaAddress, option: str, reader: Reader, partitions: Sequence[Partition], latest: Mapping[Partition, int]
) -> dict[Partition, int]:
    """Return the offsets that an instant or a list of offsets means."""
    text = address.options[option]
    millis = time_of(text)
    if millis is not None:
        found = reader.at_time(partitions, millis)
        return {at: latest[at] if (offset := found[at]) is None else offset for at in partitions}
    offsets: dict[Partition, int] = {}
    for part in text.split(","):
        match = _OFFSETS.fullmatch(part)
        topic = None if match is None else match[1] or (address.topics[0] if len(address.topics) == 1 else None)
        if match is None or topic is None:
            msg = (
                f"{address.where}: {option}={text}: wanted {', '.join(_WORDS[option])}, an instant such as "
                "2026-11-01T00:00Z, or "
                f"offsets such as 0:100,1:250 (with several topics TOPIC/0:100), got {part!r}"
            )
            raise ConnectorError(msg)
        offsets[topic, int(match[2])] = int(match[3])
    if unknown := sorted(offsets.keys() - set(partitions)):
        msg = f"{address.where}: {option}={text}: no partition {name_of(unknown[0])}; there are {_names(partitions)}."
        raise ConnectorError(msg)
    return offsets


def _warn_of_skipped(
    address: KafkaAddress, committed: Mapping[Partition, int], ranges: Mapping[Partition, tuple[int, int]]
) -> None:
    """Say that a job without state starts behind records that its group has read before."""
    before = sum(max(0, offset - ranges[at][0]) for at, offset in committed.items())
    if before:
        left = sum(max(0, ranges[at][1] - committed.get(at, ranges[at][0])) for at in ranges)
        log.warning(
            "%s: the job has no state yet, and starts where its group has read to: %d records before are not read, "
            "%s after. start=earliest reads all of them (start=committed says that this is meant).",
            address.where,
            before,
            left or "none",
        )


def _names(partitions: Sequence[Any]) -> str:
    names = [name_of(partition) for partition in sorted(partitions)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
