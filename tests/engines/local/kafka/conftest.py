"""One broker for all tests with Kafka, on loopback; topics are told apart by their names."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors.broker import TrialBroker, free_port
from streamml.connectors.broker_jars import KAFKA_VERSION, cache_folder

HERE = Path(__file__).parent
_NUMBERS = itertools.count()
_WATCH = 'cat > /dev/null; test ! -e "$0" || kill -9 "$(cat "$0")"'
"""Ends the broker when the test run is gone, even if that was killed: its end of the pipe is closed then."""
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


def pytest_configure(config: pytest.Config) -> None:
    # A kafka-python client that is closed shuts its sockets down, and leaves them to the garbage collector.
    config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kafka)
            item.add_marker(pytest.mark.slow)


@dataclass
class Cluster:
    """The broker, and plain clients that share no code with the connectors."""

    broker: TrialBroker
    sasl: str
    tls: str
    """Address with TLS; `ca` is the certificate that clients have to know."""
    sasl_tls: str
    ca: Path
    behind: int
    """Port of a listener whose clients are sent to port `front`, where a test puts something in between."""
    front: int
    admin: Any
    made: list[str] = field(default_factory=list)

    def uri(self, path: str, **options: Any) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"kafka://{self.broker.address}/{path}{'?' if query else ''}{query}"

    def restart(self) -> None:
        """Start the broker again after it was killed."""
        from kafka import KafkaAdminClient

        self.broker.start()
        self.admin.close()
        self.admin = KafkaAdminClient(bootstrap_servers=self.broker.address)

    def name(self, stem: str = "t") -> str:
        return f"{stem}-{os.getpid()}-{next(_NUMBERS)}"

    def topic(self, stem: str = "t", partitions: int = 1, **configs: str) -> str:
        name = self.name(stem)
        settings = {"num_partitions": partitions, "replication_factor": 1, "configs": {"retention.ms": "-1", **configs}}
        self.admin.create_topics({name: settings}, wait_for_metadata=True)
        return name

    def produce(self, topic: str, rows: list[tuple[int, bytes | None, bytes | None]], **more: Any) -> None:
        """Produce (partition, key, value), with confluent-kafka."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.broker.address, "linger.ms": 1})
        for partition, key, value in rows:
            producer.produce(topic, value, key, partition=partition, **more)
        assert producer.flush(20) == 0

    def consume(self, topic: str, committed: bool = True) -> list[Any]:
        """Return all records of a topic, by kafka-python."""
        from kafka import KafkaConsumer, TopicPartition

        isolation = "read_committed" if committed else "read_uncommitted"
        consumer = KafkaConsumer(
            bootstrap_servers=self.broker.address,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            group_id=None,
        )
        try:
            places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
            consumer.assign(places)
            ends = consumer.end_offsets(places)
            for place in places:
                consumer.seek(place, 0)
            found = []
            while any(consumer.position(place) < ends[place] for place in places):
                for records in consumer.poll(500).values():
                    found += records
            return found
        finally:
            consumer.close()


def certificates(folder: Path) -> tuple[Path, Path]:
    """Make a certificate authority and a broker's certificate; return its certificate, and key and chain in one."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl")
    ca, key, request, made = (str(folder / name) for name in ("ca.pem", "ca.key", "broker.csr", "broker.pem"))
    own = str(folder / "broker.key")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    named = ["-days", "2", "-extfile", str(folder / "names")]
    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=trial authority", "-keyout", key, "-out", ca],
        [*new, "-subj", "/CN=broker", "-keyout", own, "-out", request],
        ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial", "-out", made, *named],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(Path(own).read_text() + Path(made).read_text() + Path(ca).read_text())
    return Path(ca), both


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running broker; it is stopped at the end of the run."""
    pytest.importorskip("confluent_kafka")
    pytest.importorskip("kafka")
    if shutil.which("java") is None:
        pytest.skip("a Kafka broker needs Java")
    if shutil.which("mvn") is None and not (cache_folder() / f"kafka-{KAFKA_VERSION}").is_dir():
        pytest.skip("the jars of a Kafka broker are fetched by Maven")
    sasl, tls, sasl_tls = (f"127.0.0.1:{free_port()}" for _ in range(3))
    behind, front = free_port(), free_port()
    ca, keys = certificates(tmp_path_factory.mktemp("certificates"))
    users = f'{_PLAIN} user_ann="ann-pass-word" user_bea="bea-pass-word";'
    settings = {
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "400",
        "listeners": f"SASL://{sasl},TLS://{tls},SASLTLS://{sasl_tls},BEHIND://127.0.0.1:{behind}",
        "advertised.listeners": f"SASL://{sasl},TLS://{tls},SASLTLS://{sasl_tls},BEHIND://127.0.0.1:{front}",
        "listener.security.protocol.map": "SASL:SASL_PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL,BEHIND:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keys),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": users,
        "listener.name.sasltls.plain.sasl.jaas.config": users,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:bea",
        "log.initial.task.delay.ms": "1000",
    }
    broker = TrialBroker(tmp_path_factory.mktemp("broker"), free_port(), heap="384m", settings=settings)
    watch = subprocess.Popen(
        ["sh", "-c", _WATCH, str(broker.folder / "broker.pid")], stdin=subprocess.PIPE, start_new_session=True
    )
    broker.start()
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=broker.address)
    made = Cluster(broker, sasl, tls, sasl_tls, ca, behind, front, admin)
    try:
        yield made
    finally:
        made.admin.close()
        broker.kill()
        watch.communicate()


@pytest.fixture(params=["confluent", "python"])
def client(request: pytest.FixtureRequest) -> str:
    """The client library: the same tests for both."""
    return str(request.param)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Close what a test opened, at its end."""
    opened: list[Any] = []

    def keep(item: Any) -> Any:
        opened.append(item)
        return item

    yield keep
    for item in reversed(opened):
        item.close()
