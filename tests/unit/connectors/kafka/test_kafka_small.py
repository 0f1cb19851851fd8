"""What needs no broker: the trial broker's id, retries that are counted, and a library that would log secrets."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import pytest

from streamml.connectors.broker import _cluster_id
from streamml.connectors.kafka_client import Unavailable, patiently
from streamml.connectors.kafka_settings import to_kafka_python


def test_the_trial_brokers_id_is_one_that_its_tool_takes() -> None:
    ids = {_cluster_id() for _ in range(2_000)}
    assert len(ids) == 2_000
    for each in ids:
        assert not each.startswith("-")  # the tool would take it for an option
        assert len(base64.urlsafe_b64decode(each + "==")) == 16


def test_every_further_attempt_is_counted() -> None:
    waited: list[float] = []
    attempts, retries = 0, 0

    def action() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 5:
            msg = "away"
            raise Unavailable(msg)
        return "there"

    def retried() -> None:
        nonlocal retries
        retries += 1

    assert patiently("x", action, 60_000, clock=lambda: 0.0, sleep=waited.append, retried=retried) == "there"
    assert retries == len(waited) == 4
    assert waited == sorted(waited) and waited[-1] > waited[0]


@pytest.fixture
def their_log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("kafka")
    before = logger.level
    yield logger
    logger.setLevel(before)


@pytest.mark.parametrize(("settings", "silent"), [({"sasl.password": "hush"}, True), ({"acks": "all"}, False)])
def test_kafka_pythons_debug_log_which_holds_requests_is_off_where_there_is_a_secret(
    their_log: logging.Logger, settings: dict[str, str], silent: bool
) -> None:
    their_log.setLevel(logging.DEBUG)
    to_kafka_python("sink", settings, strict=True)
    assert their_log.isEnabledFor(logging.DEBUG) is not silent
    assert their_log.isEnabledFor(logging.INFO)
