"""Workload W from Kafka to Kafka on the embedded engine, and the broker that the benchmarks with Kafka share.

`python tests/bench/kafka_w.py once|serve SERVERS SOURCE SINK MODEL FOLDER [DELIVERY INTERVAL]` runs the job: `once`
up to the end of the topic, printing as JSON what an event cost in microseconds of CPU; `serve` until SIGTERM.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workload_w import pipeline

from streamml.connectors.broker import TrialBroker, free_port
from streamml.connectors.uris import open_sink, open_source
from streamml.local import LocalEngine, LocalOptions

__all__ = ["bytewax_python", "job", "make_topic", "produce", "running_broker", "values"]

HERE = Path(__file__).parent
PARTITIONS = 4
BYTEWAX = ("bytewax==0.21.1", "confluent-kafka", "onnxruntime", "msgspec")


def job(
    servers: str, source: str, sink: str, model: Path, folder: Path, delivery: str, interval: str, **options: Any
) -> LocalEngine:
    """W as a job between two topics; its side outputs are counted only."""
    return LocalEngine(
        pipeline(str(model)),
        {"w": open_source(f"kafka://{servers}/{source}", start="earliest", group=sink, **options)},
        open_sink(f"kafka://{servers}/{sink}", delivery=delivery, transactional_id=sink),
        options=LocalOptions(state_dir=folder / "state", checkpoint_interval=interval),
    )


def once(engine: LocalEngine) -> dict[str, Any]:
    """Run to the end of the topic; CPU of this process, the client's threads included."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = engine.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    figures = result.figures
    per_event = {"us": cpu / figures.events_in * 1e6, "rate": figures.events_in / wall}
    return {"events": figures.events_in, "out": figures.events_out, "sides": dict(result.sides), **per_event}


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """A broker for trials, by its address."""
    broker = TrialBroker(folder, free_port())
    broker.start()
    try:
        yield broker.address
    finally:
        broker.stop()


def make_topic(servers: str, name: str) -> str:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = NewTopic(name, PARTITIONS, 1, config={"retention.ms": "-1"})
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([topic])[name].result(30)
    return name


def produce(servers: str, topic: str, lines: list[bytes]) -> None:
    """Produce events keyed by card, in order."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "enable.idempotence": True})
    for line in lines:
        while True:
            try:
                producer.produce(topic, line, json.loads(line)["card_id"])
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def values(servers: str, topic: str) -> list[dict[str, Any]]:
    """Every record that a reader of committed data sees."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    settings = {"bootstrap.servers": servers, "group.id": "check", "isolation.level": "read_committed"}
    consumer = Consumer({**settings, "enable.partition.eof": "true", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found, ended = [], 0
    while ended < PARTITIONS:
        for message in consumer.consume(10_000, 1.0):
            if (error := message.error()) is None:
                found.append(json.loads(message.value()))
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended += 1
    consumer.close()
    return found


def bytewax_python() -> Path:
    """The Python of Bytewax's own environment, which is made if it is not there."""
    root = HERE.parent.parent / ".cache/bytewax/venv"
    python = root / "bin/python"
    if not python.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(root)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *BYTEWAX], check=True)
    return python


def main(how: str, servers: str, source: str, sink: str, model: str, folder: str, *rest: str) -> None:
    delivery, interval = rest or ("exactly-once", "5s")
    options = {"until": "latest"} if how == "once" else {}
    engine = job(servers, source, sink, Path(model), Path(folder), delivery, interval, **options)
    if how == "once":
        print(json.dumps(once(engine)))
    else:
        signal.signal(signal.SIGTERM, lambda *_: engine.stop())
        engine.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
