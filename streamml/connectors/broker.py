"""A Kafka broker for trials and tests: one node on loopback in a folder of its own, started and stopped in one call."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from streamml.connectors.broker_jars import kafka_jars
from streamml.errors import ConnectorError

__all__ = ["TrialBroker", "free_port"]

_HOST = "127.0.0.1"

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
}

_JOINED = ("listeners", "advertised.listeners", "listener.security.protocol.map")


class TrialBroker:
    """One broker in KRaft mode, its data, log and process id in one folder. Not for production: one node, no security.

    Args:
        folder: where everything is kept; a broker started there again has its topics.
        port: where clients connect, on loopback only.
        heap: memory of the JVM.
        settings: more broker settings, over the built-in ones; more listeners are added to them.
        jars: folder of Kafka's jars, by default fetched by Maven.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 9092,
        *,
        heap: str = "512m",
        settings: Mapping[str, str] | None = None,
        jars: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.port = port
        self._heap = heap
        self._settings = dict(settings or {})
        self._jars = jars
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return f"{_HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """What the broker writes."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """Process id of the broker that runs in this folder, None if none does."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process.pid
            self._process = None
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._properties) in command else None

    def start(self, timeout: float = 60.0) -> None:
        """Start it and wait until it answers; does nothing if it runs.

        Raises:
            ConnectorError: there is no Java, the port is taken, or the broker does not come up.
        """
        if self.pid is None:
            self._launch()
        deadline = time.monotonic() + timeout
        while not self.ready():
            if self.pid is None:
                msg = f"trial broker: it ended while it started: {self._last_words()} All of it is in {self.log}."
                raise ConnectorError(msg)
            if time.monotonic() > deadline:
                self.stop()
                msg = f"trial broker: it did not answer at {self.address} within {timeout:g} s: {self._last_words()}"
                raise ConnectorError(msg)
            time.sleep(0.1)

    def ready(self) -> bool:
        """Return whether a broker answers a request at the address."""
        request = struct.pack(">hhih", 18, 0, 1, -1)  # ApiVersions, version 0
        try:
            with socket.create_connection((_HOST, self.port), timeout=1.0) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                return len(connection.recv(10)) == 10
        except OSError:
            return False

    def stop(self, timeout: float = 30.0) -> bool:
        """Stop it in order, after `timeout` seconds by force; return whether one was running."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> bool:
        """Kill it as a power cut would (fault tests); return whether one was running."""
        return self._end(signal.SIGKILL, 10.0)

    def _end(self, how: signal.Signals, timeout: float) -> bool:
        pid = self.pid
        if pid is not None:
            os.kill(pid, how)
            deadline = time.monotonic() + timeout
            while not self._has_ended(pid):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    deadline += 10.0
                time.sleep(0.02)
        self._pid_file.unlink(missing_ok=True)
        return pid is not None

    def _has_ended(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is not None
        process = Path(f"/proc/{pid}")
        try:  # a process whose parent does not ask how it ended stays as a zombie
            return b") Z " in (process / "stat").read_bytes() and len(list((process / "task").iterdir())) <= 1
        except OSError:
            return True

    def _launch(self) -> None:
        java = shutil.which("java")
        if java is None:
            msg = "trial broker: there is no `java` on the PATH. Install a JDK or JRE 17 or newer."
            raise ConnectorError(msg)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self.port))
            except OSError as exc:
                msg = f"trial broker: port {self.port} of {_HOST} is taken: {exc.strerror}. Give another one: --port."
                raise ConnectorError(msg) from exc
        jars = self._jars or kafka_jars()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_settings()
        common = ["-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format([java, "-Xmx256m", "-XX:TieredStopAtLevel=1", *common])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [java, "-Xms64m", f"-Xmx{self._heap}", *common, "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid), encoding="ascii")

    def _write_settings(self) -> None:
        controller = free_port()
        settings: dict[str, str] = {
            **_PROPERTIES,
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{_HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.quorum.voters": f"1@{_HOST}:{controller}",
            "log.dirs": str(self.folder / "data"),
        }
        for name, value in self._settings.items():
            settings[name] = f"{settings[name]},{value}" if name in _JOINED else value
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")

    def _format(self, java: list[str]) -> None:
        tool = [*java, "kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(self._properties)]
        done = subprocess.run(tool, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode != 0:
            said = " ".join((done.stdout + done.stderr).split())[-600:]
            msg = f"trial broker: its folder {self.folder} can't be formatted: {said}"
            raise ConnectorError(msg)

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it wrote nothing."
        return " ".join(" ".join(lines[-5:]).split())[-600:] or "it wrote nothing."

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "broker.pid"


def _cluster_id() -> str:
    """Return a new id; without "-", since the tool takes an id that begins with one for an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
