"""Addresses and settings of Kafka connectors, and their waiting; no broker."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors import open_sink, open_source, side_uri
from streamml.connectors.broker import TrialBroker, free_port
from streamml.connectors.kafka_address import KafkaAddress, parse_address
from streamml.connectors.kafka_client import Unavailable, client_module, patiently
from streamml.connectors.kafka_places import name_of, partition_of, time_of
from streamml.connectors.kafka_settings import read_settings, to_kafka_python
from streamml.errors import ConnectorError

HIDDEN = "s3cret"


def parse(uri: str, kind: str = "source", environment: dict[str, str] | None = None, **options: Any) -> KafkaAddress:
    return parse_address(kind, uri, options, environment or {})


def test_an_address_has_servers_topics_options_and_settings() -> None:
    address = parse("kafka://a:1,b/x,y?start=2026-11-01T00:00+01:00&fetch.min.bytes=5", refresh="1s", create=True)
    assert (address.servers, address.topics) == ("a:1,b:9092", ("x", "y"))
    assert address.options == {"start": "2026-11-01T00:00+01:00", "refresh": "1s", "create": "true"}
    assert dict(address.settings) == {"fetch.min.bytes": "5"}
    assert address.flag("create") and address.millis("refresh", "30s") == 1000
    assert parse("kafka://a/?topic=^pay.*").topics == ("^pay.*",)
    assert parse(side_uri("kafka://a/scores?acks=all", "late"), "sink").topics == ("scores.late",)


@pytest.mark.parametrize(
    ("kind", "uri", "message"),
    [
        ("source", "kafka://a", "wanted a topic, several with commas, or topic=^pattern, got none"),
        ("sink", "kafka://a/x,y", "wanted one topic, got 2"),
        ("source", "kafka:///x", "wanted kafka://HOST:PORT/TOPIC, got no host"),
        ("source", "kafka://a/x y", "'x y' is no name of a topic"),
        ("sink", "kafka://a/^x", "'^x' is no name of a topic"),
        ("source", "kafka://a/?topic=^(", "topic=^( is no regular expression"),
        ("source", "kafka://a/x?strat=latest", "there is no option 'strat'. Did you mean 'start'?"),
        ("source", "kafka://a/x?group.id=g", "group.id is set by streamml itself; use group="),
        ("sink", "kafka://a/x?transactional.id=g", "transactional.id is set by streamml itself; use transactional_id="),
    ],
)
def test_a_wrong_address_says_what_was_wanted(kind: str, uri: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=re.escape(message)):
        parse(uri, kind)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("kafka://a/x?delivery=twice", "there is no delivery=twice. Known: at-least-once, exactly-once"),
        ("kafka://a/x?resume=last", "resume= wants a whole number, got 'last'"),
        ("kafka://a/x?timestamp=then", "there is no timestamp=then"),
    ],
)
def test_a_wrong_option_is_refused_when_the_sink_is_made(uri: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=re.escape(message)):
        open_sink(uri)


def test_settings_come_from_the_file_over_them_the_environment_over_them_the_address(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# mine\nbootstrap.servers=other:1\nclient.id=file\nacks=1\nlinger.ms = 7\n\n")
    environment = {"STREAMML_KAFKA_CLIENT_ID": "env", "STREAMML_KAFKA_ACKS": "0", "HOME": "x"}
    settings = read_settings("here", {"acks": "all"}, str(path), environment)
    assert dict(settings) == {"client.id": "env", "acks": "all", "linger.ms": "7"}
    assert dict(read_settings("here", {}, None, {"STREAMML_KAFKA_CONFIG": str(path)}))["client.id"] == "file"
    path.write_text(f"sasl.password {HIDDEN}\n")
    with pytest.raises(ConnectorError, match="line 1: wanted name=value, got a line without '='") as caught:
        read_settings("here", {}, str(path), {})
    assert HIDDEN not in str(caught.value)
    with pytest.raises(ConnectorError, match=r"config=.*absent: can't read it: No such file"):
        read_settings("here", {}, str(tmp_path / "absent"), {})


@pytest.mark.parametrize(
    "uri",
    [
        f"kafka://ann:{HIDDEN}@a/x",
        f"kafka://a/x?sasl.password={HIDDEN}",
        f"kafka://a/x?ssl.key.password={HIDDEN}&start=latest",
        f"kafka://a/x?sasl_password={HIDDEN}",
        f"kafka://a/x?sasl.jaas.config={HIDDEN}",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConnectorError) as caught:
        parse(uri)
    assert HIDDEN not in f"{caught.value!r}{caught.value}"


def test_secrets_are_not_shown_by_what_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMML_KAFKA_SASL_PASSWORD", HIDDEN)
    monkeypatch.setenv("STREAMML_KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", HIDDEN)
    address = parse_address("source", "kafka://a/x", {})
    assert HIDDEN not in f"{address!r}{address}{address.settings!r}{address.settings}"
    assert address.settings.redact(f"bad {HIDDEN}!") == "bad (hidden)!"


def test_what_kafka_python_does_not_have_is_refused_or_left_out() -> None:
    settings = {
        "security.protocol": "SSL",
        "ssl.ca.location": "ca.pem",
        "ssl.endpoint.identification.algorithm": "none",
    }
    wanted = {"security_protocol": "SSL", "ssl_cafile": "ca.pem", "ssl_check_hostname": False}
    assert to_kafka_python("here", settings, strict=True) == wanted
    assert to_kafka_python("here", {**settings, "statistics.interval.ms": "5"}, strict=False) == wanted
    with pytest.raises(
        ConnectorError, match=r"kafka-python has no setting for 'linger.msec'. Did you mean 'linger.ms'"
    ):
        to_kafka_python("here", {"linger.msec": "1"}, strict=True)


def test_the_library_is_chosen_and_its_absence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"confluent_kafka", "kafka"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    assert client_module(parse("kafka://a/x")) == "streamml.connectors.kafka_confluent"
    assert client_module(parse("kafka://a/x?client=python")) == "streamml.connectors.kafka_python"
    there.remove("confluent_kafka")
    assert client_module(parse("kafka://a/x")) == "streamml.connectors.kafka_python"
    with pytest.raises(ConnectorError, match="the library of client=confluent is not installed"):
        open_source("kafka://a/x?client=confluent")
    there.clear()
    with pytest.raises(ConnectorError, match=re.escape("pip install 'streamml[kafka]'")):
        open_source("kafka://a/x")


class Clock:
    """Time that passes only by sleeping."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failing(times: int) -> Callable[[], str]:
    left = [times]

    def action() -> str:
        left[0] -= 1
        if left[0] >= 0:
            msg = "Connection refused"
            raise Unavailable(msg)
        return "done"

    return action


def test_brokers_that_are_away_are_waited_for_with_growing_pauses_and_not_for_ever() -> None:
    clock = Clock()
    assert patiently("here", failing(4), 60_000, clock=clock, sleep=clock.sleep) == "done"
    assert clock.now == pytest.approx(0.1 + 0.2 + 0.4 + 0.8)
    clock = Clock()
    message = re.escape(
        "here: the brokers were not available for 20s (give_up_after=): Connection refused. Nothing is lost"
    )
    with pytest.raises(ConnectorError, match=message):
        patiently("here", failing(1000), 20_000, clock=clock, sleep=clock.sleep)
    assert clock.now == pytest.approx(20.0)


def test_names_of_partitions_and_instants() -> None:
    assert partition_of(name_of(("a-b", 12))) == ("a-b", 12)
    assert time_of("2026-11-01T00:00") == time_of("2026-11-01T01:00+01:00") == 1_793_491_200_000
    assert time_of("0:5") is None and time_of("latest") is None


def test_a_trial_broker_does_not_touch_processes_that_are_not_its_own(tmp_path: Path) -> None:
    import os

    broker = TrialBroker(tmp_path, free_port())
    assert (broker.pid, broker.stop()) == (None, False)
    (tmp_path / "broker.pid").write_text(str(os.getpid()))
    assert (broker.pid, broker.stop(), broker.ready()) == (None, False, False)
    assert not (tmp_path / "broker.pid").exists()


def test_a_trial_broker_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConnectorError, match=r"there is no `java` on the PATH. Install a JDK or JRE 17 or newer"):
        TrialBroker(tmp_path, free_port()).start()
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConnectorError, match=r"there is no `mvn` on the PATH. Install Maven, or put the jars"):
        TrialBroker(tmp_path, free_port()).start()
