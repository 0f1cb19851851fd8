"""A network that is slow, stands still, or cuts connections: the job waits, goes on, and loses and doubles nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import streamml as sml
from streamml.connectors import open_sink, open_source
from streamml.errors import ConnectorError
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

COUNT = 600
START = 1_793_491_200_000


class Proxy:
    """Stands between clients and a broker; every chunk of bytes waits for `delay`, and while `stalled` for ever."""

    def __init__(self, port: int, to: int) -> None:
        self.delay = 0.0
        self.passed = 0
        self._go_on = threading.Event()
        self._go_on.set()
        self._to = to
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self, seconds: float) -> None:
        """Let nothing through for a while, with all connections open."""
        self._go_on.clear()
        time.sleep(seconds)
        self._go_on.set()

    def cut(self) -> None:
        """Break every connection, without a farewell."""
        with self._lock:
            for each in self._open:
                with suppress(OSError):  # the other side may have closed it
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._go_on.set()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._to), timeout=5)
                except OSError:
                    client.close()
                    continue
                broker.settimeout(None)
                with self._lock:
                    self._open |= {client, broker}
                for pair in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # cut
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                self._go_on.wait()
                target.sendall(data)
                self.passed += len(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source}
        source.close()


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


@pytest.fixture
def proxy(cluster: Any) -> Iterator[Proxy]:
    made = Proxy(cluster.front, cluster.behind)
    yield made
    made.close()


class Job:
    """A job between two topics, whose clients see the brokers through the proxy only."""

    def __init__(self, cluster: Any, proxy: Proxy, client: str, folder: Path) -> None:
        self.cluster, self.proxy = cluster, proxy
        self.source, self.output = cluster.topic(partitions=2), cluster.topic(partitions=2)
        self._name = cluster.name("net")
        self._client = client
        self._folder = folder
        self._produced = 0

    def produce(self, count: int) -> None:
        """Produce events, each twice, past the proxy."""
        rows = []
        for number in range(self._produced, self._produced + count):
            event = {"id": f"e{number}", "user": f"u{number % 20}", "ts": START + number}
            rows += [(number % 2, None, json.dumps(event).encode())] * 2
        self.cluster.produce(self.source, rows)
        self._produced += count

    def run(self, **options: Any) -> None:
        """Run the job to the end of its input."""
        more = {"client": self._client, **options}
        if self._client == "confluent":
            more = {"socket.timeout.ms": "1500", **more}  # a minute by default
        query = "&".join(f"{name}={value}" for name, value in more.items())
        base = f"kafka://127.0.0.1:{self.cluster.front}"
        engine = LocalEngine(
            sml.Pipeline(self._name, schema=Click).key_by("user").then(Dedupe(ttl="1h")),
            {self._name: open_source(f"{base}/{self.source}?until=latest&{query}")},
            open_sink(f"{base}/{self.output}?{query}"),
            options=LocalOptions(
                state_dir=self._folder / "state", checkpoint_interval="50ms", batch_size=20, fsync=False
            ),
        )
        assert engine.run().finished

    def check(self) -> None:
        """Every event is in the committed output once, and those of a user and partition in their order."""
        found = [json.loads(record.value) for record in self.cluster.consume(self.output)]
        assert sorted(int(row["id"].rpartition("e")[2]) for row in found) == list(range(self._produced))
        for user in {row["user"] for row in found}:
            times = [row["ts"] for row in found if row["user"] == user]
            assert times == sorted(times)


@pytest.fixture
def job(cluster: Any, proxy: Proxy, client: str, tmp_path: Path) -> Job:
    made = Job(cluster, proxy, client, tmp_path)
    made.produce(COUNT)
    return made


def disturbing(action: Callable[[], None], pause: float, times: int) -> Callable[[], int]:
    """Do something some times beside the job; returns what ends it, and says how often it was done."""
    over = threading.Event()
    done = 0

    def disturb() -> None:
        nonlocal done
        while done < times and not over.wait(pause):
            action()
            done += 1

    thread = threading.Thread(target=disturb)
    thread.start()

    def end() -> int:
        over.set()
        thread.join()
        return done

    return end


def test_a_slow_network_costs_time_only(job: Job) -> None:
    job.proxy.delay = 0.02
    job.run()
    job.check()
    assert job.proxy.passed > 50_000


def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(job: Job) -> None:
    job.proxy.delay = 0.005
    end = disturbing(job.proxy.cut, 0.5, times=8)
    try:
        job.run()
    finally:
        cuts = end()
    assert cuts >= 1
    job.check()


def test_a_network_that_stands_still_is_waited_for(job: Job) -> None:
    job.proxy.delay = 0.005
    end = disturbing(lambda: job.proxy.stall(2.5), 0.5, times=3)
    try:
        job.run()
    finally:
        stalls = end()
    assert stalls >= 1
    job.check()


@pytest.mark.parametrize("client", ["confluent"])  # kafka-python does not say for how long it has tried in vain
def test_a_network_that_stays_away_is_given_up_and_the_next_start_goes_on(job: Job) -> None:
    job.run()
    job.produce(COUNT)
    job.proxy.delay = 0.005
    away = threading.Thread(target=lambda: (time.sleep(0.5), job.proxy.stall(10)))
    away.start()
    with pytest.raises(ConnectorError, match=r"give_up_after.*Nothing is lost"):
        while away.is_alive():  # a run may be over before
            job.run(give_up_after="2s")
            job.produce(50)
    away.join()
    job.run()
    job.check()
