"""Sources and sinks of a submitted job, from their addresses: Kafka topics and files."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import ConnectorError, UnsupportedError
from streamml.events import TIME_UNITS, roles
from streamml.pipeline import SourceSpec

__all__ = ["attach_sink", "attach_source", "needs_kafka"]

_PATIENCE = 30_000
"""How long to wait for brokers while a job is submitted, ms."""

_OFFSETS = {"earliest": "earliest", "latest": "latest", "committed": "committedOffsets"}


def needs_kafka(uris: Mapping[str, str] | list[str]) -> bool:
    """Return whether some address is a Kafka topic."""
    values = uris.values() if isinstance(uris, Mapping) else uris
    return any(uri.startswith("kafka:") for uri in values)


def attach_source(java: Any, spec: SourceSpec, uri: str, pipeline: str, *, keyed: bool = False) -> Any:
    """Add a source to a Java environment; returns the Java stream of raw records, with their keys if `keyed`.

    It has no more subtasks than there are partitions: one without any would hold the watermark back until the others
    are far ahead.
    """
    from pyflink.java_gateway import get_gateway

    from streamml.flink.functions import BYTES

    jvm = get_gateway().jvm
    strategy = _watermarks(jvm, spec, keyed)
    name = f"{pipeline}/{spec.tag}: source"
    if uri.startswith("kafka:"):
        source, kind = _kafka_source(jvm, uri, pipeline, keyed), BYTES.get_java_type_info()
        stream = java.fromSource(source, strategy, name, kind)
    elif keyed:
        msg = f"source {uri}: key_by(record_key) needs records that have a key, those of kafka://HOST:PORT/TOPIC"
        raise UnsupportedError(msg)
    elif _path(uri) is not None:
        from pyflink.common import Types

        path = jvm.org.apache.flink.core.fs.Path(_path(uri))
        lines = jvm.org.apache.flink.connector.file.src.reader.TextLineInputFormat("UTF-8")
        made = get_gateway().new_array(jvm.org.apache.flink.core.fs.Path, 1)
        made[0] = path
        source = jvm.org.apache.flink.connector.file.src.FileSource.forRecordStreamFormat(lines, made).build()
        stream = java.fromSource(source, strategy, name, Types.STRING().get_java_type_info())
    else:
        msg = f"source {uri}: a Flink job reads kafka://HOST:PORT/TOPIC or file:PATH, as its workers see it"
        raise UnsupportedError(msg)
    stream.uid(f"streamml/{pipeline}/{spec.tag}/source")
    return stream.setParallelism(min(java.getParallelism(), _partitions(uri)))


def _partitions(uri: str) -> int:
    if uri.startswith("kafka:"):
        return _topic_partitions("source", uri)
    path = Path(uri.partition(":")[2].removeprefix("//") or uri)
    return max(1, sum(1 for each in path.rglob("*") if each.is_file())) if path.is_dir() else 1


def _topic_partitions(kind: str, uri: str) -> int:
    """Return the number of partitions of an address's topics, which must be there; `create=true` makes them."""
    from streamml.connectors.kafka_address import parse_address
    from streamml.connectors.kafka_admin import require_topics
    from streamml.connectors.kafka_client import client_module, patiently
    from streamml.connectors.kafka_tally import Tally

    address = parse_address(kind, uri, {})
    topics = list(address.topics)
    reader = importlib.import_module(client_module(address)).make_reader(address, None, Tally())
    try:
        found = patiently(address.where, lambda: reader.partitions(topics), _PATIENCE)
        if require_topics(address, topics, found, _PATIENCE):
            found = patiently(address.where, lambda: reader.partitions(topics), _PATIENCE)
    finally:
        reader.close()
    return sum(map(len, found.values()))


def _watermarks(jvm: Any, spec: SourceSpec, keyed: bool) -> Any:
    found = roles(spec.schema)
    names = {field.name: field.encode_name for field in msgspec.structs.fields(spec.schema)}
    return jvm.org.streamml.flink.EventTime.strategy(
        names[found.time or ""],
        float(TIME_UNITS[found.time_unit]),
        spec.out_of_orderness,
        spec.max_jump,
        spec.idleness,
        spec.max_future,
        keyed,
    )


def _path(uri: str) -> str | None:
    scheme, colon, rest = uri.partition(":")
    if colon and scheme != "file":
        return uri if scheme in ("hdfs", "s3", "s3a", "gs", "abfss", "oss") else None
    path = rest.removeprefix("//") if colon else uri
    return None if path in ("", "-") else Path(path).resolve().as_uri()


def _kafka_source(jvm: Any, uri: str, pipeline: str, keyed: bool) -> Any:
    from streamml.connectors.kafka_address import parse_address

    address = parse_address("source", uri, {})
    start = address.options.get("start", "earliest")
    initializers = jvm.org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer
    if start.lstrip("-").isdigit():
        begin = initializers.timestamp(int(start))
    elif start in _OFFSETS:
        begin = getattr(initializers, _OFFSETS[start])()
    else:
        msg = f"{address.where}: start={start}: on Flink wanted earliest, latest, committed, or milliseconds since 1970"
        raise ConnectorError(msg)
    topics = jvm.java.util.ArrayList()
    for topic in address.topics:
        topics.add(topic)
    builder = jvm.org.apache.flink.connector.kafka.source.KafkaSource.builder()
    builder = (
        builder.setBootstrapServers(address.servers)
        .setTopics(topics)
        .setGroupId(address.options.get("group", pipeline))
        .setStartingOffsets(begin)
        .setProperty("isolation.level", "read_committed")
    )
    if keyed:
        builder = builder.setDeserializer(jvm.org.streamml.flink.RecordKeySchema())
    else:
        builder = builder.setValueOnlyDeserializer(jvm.org.streamml.flink.BytesSchema())
    for name, value in _settings(address).items():
        builder = builder.setProperty(name, value)
    until = address.options.get("until")
    if until == "end":
        builder = builder.setBounded(initializers.latest())
    elif until is not None and until.isdigit():
        builder = builder.setBounded(initializers.timestamp(int(until)))
    elif until is not None:
        msg = f"{address.where}: until={until}: on Flink wanted end, or milliseconds since 1970"
        raise ConnectorError(msg)
    return builder.build()


def _settings(address: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in dict(address.settings).items()}


def attach_sink(stream: Any, uri: str, *, pipeline: str, output: str) -> None:
    """Send a Java stream of rows (key, record) to an address."""
    from pyflink.java_gateway import get_gateway

    jvm = get_gateway().jvm
    name = f"{pipeline}: {output}"
    if uri.startswith("null:"):
        sink = jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink()
    elif uri.startswith("kafka:"):
        _topic_partitions("sink", uri)
        sink = _kafka_sink(jvm, uri, f"{pipeline}-{output}")
    elif _path(uri) is not None:
        path = jvm.org.apache.flink.core.fs.Path(_path(uri))
        sink = jvm.org.apache.flink.connector.file.sink.FileSink.forRowFormat(
            path, jvm.org.streamml.flink.RowLines()
        ).build()
    else:
        msg = f"{output} {uri}: a Flink job writes to kafka://HOST:PORT/TOPIC, file:FOLDER, or null:"
        raise UnsupportedError(msg)
    placed = stream.sinkTo(sink).name(name)
    placed.uid(f"streamml/{pipeline}/sink/{output}")


def _kafka_sink(jvm: Any, uri: str, identity: str) -> Any:
    from streamml.connectors.kafka_address import parse_address

    address = parse_address("sink", uri, {})
    delivery = address.choice("delivery", "exactly-once", "at-least-once")
    kafka = jvm.org.apache.flink.connector.kafka.sink
    guarantee = jvm.org.apache.flink.connector.base.DeliveryGuarantee
    part = getattr(jvm.org.streamml.flink, "BytesSchema$Part")
    serializer = (
        kafka.KafkaRecordSerializationSchema.builder()
        .setTopic(address.topics[0])
        .setKeySerializationSchema(part(0))
        .setValueSerializationSchema(part(1))
        .build()
    )
    exactly = delivery == "exactly-once"
    builder = (
        kafka.KafkaSink.builder()
        .setBootstrapServers(address.servers)
        .setRecordSerializer(serializer)
        .setDeliveryGuarantee(guarantee.EXACTLY_ONCE if exactly else guarantee.AT_LEAST_ONCE)
    )
    if exactly:
        builder = builder.setTransactionalIdPrefix(address.options.get("transactional_id", identity))
        builder = builder.setProperty("transaction.timeout.ms", "600000")
    for name, value in _settings(address).items():
        builder = builder.setProperty(name, value)
    return builder.build()
