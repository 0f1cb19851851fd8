"""What a Kafka address says: `kafka://host:port[,host:port]/topic?option=value&...`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from streamml.connectors.kafka_settings import Settings, is_secret, read_settings
from streamml.errors import ConnectorError, suggest

__all__ = ["SINK_OPTIONS", "SOURCE_OPTIONS", "KafkaAddress", "parse_address"]

_COMMON = ("client", "config", "create", "give_up_after", "partitions", "replication", "retention")
SOURCE_OPTIONS = (*_COMMON, "group", "on_data_loss", "refresh", "start", "tombstones", "topic", "until")
"""Options of a source's address, beside settings of the client (names with a dot)."""
SINK_OPTIONS = (*_COMMON, "delivery", "headers", "resume", "timestamp", "transactional_id")
"""Options of a sink's address, beside settings of the client (names with a dot)."""

_SETTINGS_WITHOUT_DOT = ("acks", "debug", "partitioner")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True)
class KafkaAddress:
    """A parsed address.

    Attributes:
        where: kind and address, for messages; holds no secret.
        servers: `host:port[,host:port]`.
        topics: names; for a source one of them may be a pattern, `^...`.
        options: the connector's own options, as text.
        settings: settings of the client.
    """

    where: str
    servers: str
    topics: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=lambda: Settings({}))

    def choice(self, name: str, default: str, *others: str) -> str:
        """Return an option that is one of a few words.

        Raises:
            ConnectorError: it is another word.
        """
        value = self.options.get(name, default)
        if value not in (default, *others):
            msg = f"{self.where}: there is no {name}={value}. {suggest(value, (default, *others))}"
            raise ConnectorError(msg)
        return value

    def number(self, name: str, default: int | None) -> int | None:
        """Return an option that is a whole number.

        Raises:
            ConnectorError: it is none.
        """
        text = self.options.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"-?\d+", text):
            msg = f"{self.where}: {name}= wants a whole number, got {text!r}"
            raise ConnectorError(msg)
        return int(text)

    def millis(self, name: str, default: str) -> int:
        """Return an option that is a duration, in milliseconds.

        Raises:
            ConnectorError: it is none.
        """
        from streamml.times import to_millis

        try:
            return to_millis(self.options.get(name, default), where=f"{self.where}: {name}")
        except ValueError as exc:
            raise ConnectorError(str(exc)) from exc

    @property
    def role(self) -> str:
        """Source or sink, as in metrics."""
        return self.where.partition(" ")[0]

    @property
    def patience(self) -> int:
        """How long to wait for brokers that are not available, ms."""
        return self.millis("give_up_after", "5m")

    @property
    def request_timeout(self) -> float:
        """How long one request may take, seconds; it is made again while there is patience."""
        return max(0.5, min(10.0, self.patience / 1000))

    def flag(self, name: str) -> bool:
        """Return an option that is true or false, by default false."""
        return self.choice(name, "false", "true") == "true"


def parse_address(
    kind: str,
    uri: str,
    options: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> KafkaAddress:
    """Parse an address.

    Args:
        kind: `source` or `sink`.
        uri: the address.
        options: more options; they go before those in the address.
        environment: by default that of the process.

    Raises:
        ConnectorError: it is no such address, has an unknown option, or shows a secret.

    >>> address = parse_address("source", "kafka://a:9092,b/payments?group=fraud&fetch.min.bytes=1", {}, {})
    >>> address.servers, address.topics, dict(address.options), address.settings
    ('a:9092,b:9092', ('payments',), {'group': 'fraud'}, Settings(fetch.min.bytes=1))
    >>> parse_address("sink", "kafka://a/scores?delivry=exactly-once", {}, {})
    Traceback (most recent call last):
    streamml.errors.ConnectorError: sink kafka://a/scores?delivry=...: there is no option 'delivry'. Did you mean ...
    """
    known = SOURCE_OPTIONS if kind == "source" else SINK_OPTIONS
    base, _, query = uri.partition("?")
    pairs = [(name, value) for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)]
    shown = "&".join(f"{name}={'...' if is_secret(name) or name not in known else value}" for name, value in pairs)
    rest = base.partition(":")[2].removeprefix("//")
    hosts, _, path = rest.partition("/")
    if "@" in hosts:
        msg = (
            f"{kind} kafka://(hidden)@{hosts.rpartition('@')[2]}/{path}: user and password don't belong into an "
            "address. "
            "Put sasl.username and sasl.password into a file (config=PATH), or set STREAMML_KAFKA_SASL_USERNAME and "
            "_PASSWORD."
        )
        raise ConnectorError(msg)
    where = f"{kind} {base}{'?' if pairs else ''}{shown}"
    servers = [host if re.search(r":\d+$", host) else f"{host}:9092" for host in hosts.split(",") if host]
    if not servers:
        msg = f"{where}: wanted kafka://HOST:PORT/TOPIC, got no host."
        raise ConnectorError(msg)
    own: dict[str, str] = {}
    given: dict[str, str] = {}
    for name, value in [*pairs, *((name, _text(value)) for name, value in options.items() if value is not None)]:
        if name in known:
            own[name] = value
        elif "." in name or name in _SETTINGS_WITHOUT_DOT:
            given[name] = value
        else:
            msg = f"{where}: there is no option {name!r}. {suggest(name, known)} Settings of the client have a dot."
            raise ConnectorError(msg)
    settings = read_settings(where, given, own.get("config"), os.environ if environment is None else environment)
    topics = tuple(topic for topic in (own.get("topic") or unquote(path)).split(",") if topic)
    _check_topics(kind, where, topics)
    return KafkaAddress(where, ",".join(servers), topics, own, settings)


def _check_topics(kind: str, where: str, topics: tuple[str, ...]) -> None:
    if not topics or (kind == "sink" and len(topics) > 1):
        wanted = "one topic" if kind == "sink" else "a topic, several with commas, or topic=^pattern"
        msg = f"{where}: wanted {wanted}, got {len(topics) or 'none'}. Write kafka://HOST:PORT/TOPIC."
        raise ConnectorError(msg)
    for topic in topics:
        if topic.startswith("^") and kind == "source":
            try:
                re.compile(topic)
            except re.error as exc:
                msg = f"{where}: topic={topic} is no regular expression: {exc}"
                raise ConnectorError(msg) from exc
        elif not _TOPIC.fullmatch(topic):
            msg = f"{where}: {topic!r} is no name of a topic: at most 249 letters, digits, '.', '_' and '-'."
            raise ConnectorError(msg)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
