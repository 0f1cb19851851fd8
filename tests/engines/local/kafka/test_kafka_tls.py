"""Encrypted connections, with and without a user: settings from a file or the environment, never shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors import open_sink, open_source
from streamml.errors import ConnectorError

PASSWORD = "bea-pass-word"


@pytest.fixture
def config(tmp_path: Path, cluster: Any) -> Iterator[Path]:
    """A configuration file for TLS and a user; its password is not in it."""
    path = tmp_path / "kafka.properties"
    path.write_text(
        f"security.protocol=SASL_SSL\nssl.ca.location={cluster.ca}\nsasl.mechanisms=PLAIN\nsasl.username=bea\n"
    )
    yield path


def copy(source_uri: str, sink_uri: str, job: str) -> None:
    """Read a topic to its end and write what was read into another, in one transaction."""
    source, sink = open_source(source_uri), open_sink(sink_uri)
    try:
        source.for_job(job, 1000)
        sink.for_job(job, 1000)
        assert sink.committed() is None
        source.open(None)
        sink.open(None)
        while not source.finished:
            chunk = source.poll(10, 0.1)
            if chunk is not None:
                sink.write_records([json.loads(payload) for payload in chunk.payloads])
        sink.prepare(1)
        sink.commit(1)
    finally:
        source.close()
        sink.close()


def test_records_are_read_and_committed_over_tls(cluster: Any, client: str, tmp_path: Path) -> None:
    config = tmp_path / "tls.properties"
    config.write_text(f"security.protocol=SSL\nssl.ca.location={cluster.ca}\n")
    topic, output = cluster.topic(), cluster.topic()
    cluster.produce(topic, [(0, None, b'{"x":%d}' % number) for number in range(20)])
    base, more = f"kafka://{cluster.tls}", f"client={client}&config={config}"
    copy(f"{base}/{topic}?until=latest&{more}", f"{base}/{output}?{more}", cluster.name("job"))
    assert [json.loads(record.value)["x"] for record in cluster.consume(output)] == list(range(20))


def test_a_user_over_tls_comes_from_a_file_and_the_environment_and_nothing_shows_the_password(
    cluster: Any, client: str, config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("STREAMML_KAFKA_CONFIG", str(config))
    monkeypatch.setenv("STREAMML_KAFKA_SASL_PASSWORD", PASSWORD)
    topic, output = cluster.topic(), cluster.topic(**{"max.message.bytes": "30000"})
    cluster.produce(topic, [(0, None, b'{"x":%d}' % number) for number in range(20)])
    base, more = f"kafka://{cluster.sasl_tls}", f"client={client}&create=true"
    copy(f"{base}/{topic}?until=latest&{more}", f"{base}/{output}?{more}", cluster.name("job"))
    assert [json.loads(record.value)["x"] for record in cluster.consume(output)] == list(range(20))
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    ("file", "password"),
    [
        pytest.param("sasl.mechanisms=PLAIN\nsasl.username=bea\nssl.ca.location={ca}\n", "wrong-word", id="password"),
        pytest.param("sasl.mechanisms=PLAIN\nsasl.username=bea\n", PASSWORD, id="unknown authority"),
    ],
)
def test_what_is_refused_says_so_and_hides_the_password(
    cluster: Any,
    client: str,
    file: str,
    password: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    config = tmp_path / "bad.properties"
    config.write_text("security.protocol=SASL_SSL\n" + file.format(ca=cluster.ca))
    monkeypatch.setenv("STREAMML_KAFKA_SASL_PASSWORD", password)
    topic = cluster.topic()
    for open_it in (open_source, open_sink):
        each = open_it(f"kafka://{cluster.sasl_tls}/{topic}?client={client}&config={config}&give_up_after=3s")
        each.for_job(cluster.name("job"), 1000)
        try:
            with pytest.raises(ConnectorError, match=r"[Cc]heck (security\.protocol, )?sasl") as caught:
                each.open(None)
        finally:
            each.close()
        assert password not in f"{caught.value}{caught.value.__cause__!r}{caught.value.__context__!r}"
        if client == "confluent":
            assert "refused the connection" in str(caught.value) and "sasl.password=(hidden)" in str(caught.value)
    assert password not in caplog.text


def test_a_secret_in_an_address_is_refused(cluster: Any) -> None:
    for name in ("sasl.password", "ssl.key.password", "ssl.keystore.password"):
        with pytest.raises(ConnectorError, match=f"{name} does not belong into an address") as caught:
            open_source(f"kafka://{cluster.tls}/x?{name}=hush-hush")
        assert "hush-hush" not in str(caught.value)
