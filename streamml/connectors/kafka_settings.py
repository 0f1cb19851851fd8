"""Settings of Kafka clients: from a file, the environment and the address; secrets are never shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

from streamml.connectors.storage import failing
from streamml.errors import ConnectorError, suggest

__all__ = ["CONFIG_VARIABLE", "Settings", "is_secret", "read_settings", "to_kafka_python"]

CONFIG_VARIABLE = "STREAMML_KAFKA_CONFIG"
"""Environment variable with the path of a configuration file; the address's `config=` goes before it."""

_PREFIX = "STREAMML_KAFKA_"
_SECRET = re.compile(
    r"password|secret|jaas|token|credential|userinfo|\.key\.pem|keystore|ssl\.key$|oauthbearer\.config", re.I
)
_HIDDEN = "(hidden)"
_RESERVED = {
    "auto.offset.reset": "start= and on_data_loss=",
    "enable.auto.commit": "nothing: positions are committed with checkpoints",
    "enable.auto.offset.store": "nothing: positions are committed with checkpoints",
    "enable.partition.eof": "nothing: streamml needs it",
    "enable.idempotence": "nothing: it is always on",
    "group.id": "group=",
    "transactional.id": "transactional_id=",
}
_IGNORED = frozenset(("bootstrap.servers", "metadata.broker.list", "key.serializer", "value.serializer",
                      "key.deserializer", "value.deserializer"))  # fmt: skip
_TO_PYTHON = {
    "client.id": "client_id",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
    "ssl.cipher.suites": "ssl_ciphers",
    "ssl.crl.location": "ssl_crlfile",
    "request.timeout.ms": "request_timeout_ms",
    "retry.backoff.ms": "retry_backoff_ms",
    "reconnect.backoff.ms": "reconnect_backoff_ms",
    "reconnect.backoff.max.ms": "reconnect_backoff_max_ms",
    "isolation.level": "isolation_level",
    "fetch.min.bytes": "fetch_min_bytes",
    "fetch.wait.max.ms": "fetch_max_wait_ms",
    "max.partition.fetch.bytes": "max_partition_fetch_bytes",
    "acks": "acks",
    "linger.ms": "linger_ms",
    "batch.size": "batch_size",
    "compression.type": "compression_type",
    "message.max.bytes": "max_request_size",
    "transaction.timeout.ms": "transaction_timeout_ms",
}


class Settings(Mapping[str, str]):
    """Settings by librdkafka's names. Shown, it hides the values of secrets.

    >>> Settings({"sasl.username": "ann", "sasl.password": "pass"})
    Settings(sasl.password=(hidden), sasl.username=ann)
    >>> Settings({"sasl.password": "pass"}).redact("invalid value pass")
    'invalid value (hidden)'
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = (f"{name}={_HIDDEN if is_secret(name) else value}" for name, value in sorted(self._values.items()))
        return f"Settings({', '.join(shown)})"

    def redact(self, text: str) -> str:
        """Return a text, say an error of the client library, without the values of secrets."""
        for name, value in self._values.items():
            if is_secret(name) and value:
                text = text.replace(value, _HIDDEN)
        return text


def is_secret(name: str) -> bool:
    """Return whether a setting's value must not be shown.

    >>> is_secret("sasl.password"), is_secret("ssl.ca.location")
    (True, False)
    """
    return _SECRET.search(name) is not None


def read_settings(where: str, given: Mapping[str, str], config: str | None, environment: Mapping[str, str]) -> Settings:
    """Return the settings of a client: the file's, over them the environment's, over them the address's.

    Args:
        where: for messages.
        given: from the address; no secrets, for addresses are shown.
        config: path of a properties file (`name=value` lines), None for that of `STREAMML_KAFKA_CONFIG`.
        environment: `STREAMML_KAFKA_SASL_PASSWORD` gives `sasl.password`.

    Raises:
        ConnectorError: the file can't be read, or a setting is one that streamml makes itself.

    >>> read_settings("source", {"acks": "1"}, None, {"STREAMML_KAFKA_SASL_USERNAME": "ann"})
    Settings(acks=1, sasl.username=ann)
    """
    for name in given:
        if is_secret(name):
            msg = f"{where}: {name} does not belong into an address. Put it into a file (config=) or {_variable(name)}."
            raise ConnectorError(msg)
    values: dict[str, str] = {}
    config = config or environment.get(CONFIG_VARIABLE)
    if config:
        values.update(_read_file(where, config))
    for variable, value in environment.items():
        if variable.startswith(_PREFIX) and variable != CONFIG_VARIABLE:
            values[variable.removeprefix(_PREFIX).lower().replace("_", ".")] = value
    values.update(given)
    for name in values.keys() & _RESERVED.keys():
        msg = f"{where}: {name} is set by streamml itself; use {_RESERVED[name]}."
        raise ConnectorError(msg)
    return Settings({name: value for name, value in values.items() if name not in _IGNORED})


def to_kafka_python(where: str, settings: Mapping[str, str], *, strict: bool) -> dict[str, object]:
    """Return settings in kafka-python's names and types.

    It writes whole requests into its debug log, so that is switched off where there is a secret.

    Args:
        where: for messages.
        settings: by librdkafka's names.
        strict: refuse what kafka-python does not have; else leave it out.

    Raises:
        ConnectorError: a setting that it does not have.

    >>> to_kafka_python("sink", {"sasl.mechanisms": "PLAIN", "linger.ms": "2"}, strict=True)
    {'sasl_mechanism': 'PLAIN', 'linger_ms': 2}
    """
    if any(map(is_secret, settings)):
        theirs = logging.getLogger("kafka")
        theirs.setLevel(max(theirs.getEffectiveLevel(), logging.INFO))
    found: dict[str, object] = {}
    for name, value in settings.items():
        if name == "ssl.endpoint.identification.algorithm":
            found["ssl_check_hostname"] = value.lower() == "https"
        elif name in _TO_PYTHON:
            found[_TO_PYTHON[name]] = int(value) if re.fullmatch(r"-?\d+", value) and name != "sasl.password" else value
        elif strict:
            msg = (
                f"{where}: kafka-python has no setting for {name!r}. {suggest(name, _TO_PYTHON)} "
                "Leave it out, or install confluent-kafka, which takes it."
            )
            raise ConnectorError(msg)
    return found


def _read_file(where: str, path: str) -> dict[str, str]:
    values: dict[str, str] = {}
    with failing(f"{where}, config={path}", "read"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.startswith(("#", "!")):
                continue
            name, equals, value = text.partition("=")
            if not equals:
                msg = f"{where}, config={path}, line {number}: wanted name=value, got a line without '='."
                raise ConnectorError(msg)
            values[name.strip()] = value.strip()
    return values


def _variable(name: str) -> str:
    return _PREFIX + name.upper().replace(".", "_")
