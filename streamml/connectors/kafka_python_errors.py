"""What kafka-python's errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors

from streamml.connectors.kafka_client import RolledBack, Unavailable
from streamml.connectors.kafka_settings import Settings
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError

__all__ = ["translated"]

_IDENTITY = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
_FENCED = (errors.ProducerFencedError, errors.InvalidProducerEpochError)
_ROLLED_BACK = (errors.TransactionAbortedError, errors.TransactionAbortableError)


@contextmanager
def translated(
    where: str, settings: Settings, transactional_id: str | None = None, tally: Tally | None = None
) -> Iterator[None]:
    """Turn errors of kafka-python raised inside into ours, and count them."""
    try:
        yield
    except errors.KafkaError as exc:
        if tally is not None:
            tally.count("streamml_kafka_errors_total", role=where.partition(" ")[0], kind=_kind(exc))
        text = settings.redact(" ".join(str(exc).split())) or type(exc).__name__
        if isinstance(exc, _FENCED):
            msg = (
                f"{where}: another worker with the transactional id {transactional_id!r} has started and taken over; "
                "this "
                "one must stop. If that is another job, give one of them another id (transactional_id=)."
            )
            raise ConnectorError(msg) from exc
        if "InvalidTransactionTimeoutError" in text:  # kafka-python wraps it
            msg = (
                f"{where}: the brokers don't allow a transaction to be open that long: {text}. Take checkpoints more "
                "often, "
                "or raise transaction.max.timeout.ms at the brokers."
            )
            raise ConnectorError(msg) from exc
        if isinstance(exc, _IDENTITY):
            msg = (
                f"{where}: the brokers refused the connection: {text}. Check security.protocol, sasl.*, ssl.* in the "
                f"configuration; in use: {settings!r}"
            )
            raise ConnectorError(msg) from exc
        if isinstance(exc, errors.AuthorizationError):
            msg = f"{where}: no right to do this: {text}. Ask for an ACL that allows it."
            raise ConnectorError(msg) from exc
        if isinstance(exc, _ROLLED_BACK):
            msg = f"{where}: {text}"
            raise RolledBack(msg) from exc
        if exc.retriable or isinstance(exc, errors.BrokerNotAvailableError):
            if "bootstrap" in text and any(name.startswith(("sasl.", "ssl.")) for name in settings):
                text += " (kafka-python does not say whether they refused the connection: check sasl.* and ssl.* too)"
            raise Unavailable(text) from exc
        msg = f"{where}: {type(exc).__name__}: {text}"
        raise ConnectorError(msg) from exc
    except (ConnectionError, TimeoutError) as exc:
        msg = f"{type(exc).__name__}: {exc}"
        raise Unavailable(msg) from exc


def _kind(error: errors.KafkaError) -> str:
    """Return the kind of an error, as in metrics."""
    for kind, classes in (
        ("fenced", _FENCED),
        ("refused", _IDENTITY),
        ("rights", errors.AuthorizationError),
        ("rolled_back", _ROLLED_BACK),
    ):
        if isinstance(error, classes):
            return kind
    return "unavailable" if error.retriable or isinstance(error, errors.BrokerNotAvailableError) else "other"
