"""A real Flink cluster on this machine, out of the pip package: a JobManager and TaskManagers on loopback."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from streamml.errors import ConnectorError, PlanError
from streamml.flink.rest import FlinkRest

__all__ = ["TrialCluster", "flink_home"]

_FILE = "cluster.json"


def flink_home() -> Path:
    """Return Flink's folder in the pip package.

    Raises:
        PlanError: PyFlink is not installed.
    """
    spec = importlib.util.find_spec("pyflink")
    if spec is None or spec.origin is None:
        msg = "flink: PyFlink is not installed here; pip install 'streamml[flink]'"
        raise PlanError(msg)
    return Path(spec.origin).parent


class _Process(msgspec.Struct):
    """One process, and when it was started, so that another one with its id is not taken for it."""

    kind: str
    number: int
    pid: int
    started: int


class _State(msgspec.Struct):
    port: int
    processes: list[_Process]


class TrialCluster:
    """Starts and stops a standalone cluster that keeps everything in one folder. Not for production.

    Args:
        folder: where everything is kept.
        port: the REST API's port.
        task_managers: how many.
        slots: slots of each of them.
        heap: JVM heap and other memory of a TaskManager without Python's, in MiB.
        settings: more of Flink's settings, over the built-in ones.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 8081,
        task_managers: int = 1,
        slots: int = 2,
        heap: int = 384,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port
        self._task_managers = task_managers
        self._slots = slots
        self._heap = heap
        self._settings = dict(settings or {})

    @classmethod
    def open(cls, folder: Path) -> TrialCluster:
        """Return the cluster that was started in a folder.

        Raises:
            PlanError: none was.
        """
        path = folder / _FILE
        if not path.is_file():
            msg = f"{folder}: no cluster was started here"
            raise PlanError(msg)
        return cls(folder, port=msgspec.json.decode(path.read_bytes(), type=_State).port)

    @property
    def rest(self) -> FlinkRest:
        """The cluster's REST API."""
        return FlinkRest(f"127.0.0.1:{self.port}")

    def start(self, patience: float = 60.0) -> None:
        """Start it and wait until its slots are there.

        Raises:
            ConnectorError: it runs already, or does not come up in time; nothing is left behind then.
        """
        if any(_alive(process) for process in self._read().processes):
            msg = f"{self.folder}: a cluster runs here already; stop it with `streamml flink cluster stop`"
            raise ConnectorError(msg)
        self._configure()
        try:
            self._launch("jobmanager", 0)
            for number in range(self._task_managers):
                self._launch("taskmanager", number)
            self.wait_for_slots(self._task_managers * self._slots, patience)
        except BaseException:
            self.stop()
            raise

    def wait_for_slots(self, slots: int, patience: float = 60.0) -> None:
        """Wait until the cluster has so many slots.

        Raises:
            ConnectorError: it took longer than `patience` seconds, or a process has ended.
        """
        deadline = time.monotonic() + patience
        while True:
            said = "no answer yet"
            try:
                if (found := self.rest.overview()["slots-total"]) >= slots:
                    return
                said = f"{found} of {slots} slots"
            except ConnectorError as exc:
                said = str(exc)
            dead = [f"{p.kind} {p.number}" for p in self._read().processes if not _alive(p)]
            if dead or time.monotonic() > deadline:
                why = f"{', '.join(dead)} ended" if dead else said
                msg = f"{self.folder}: the cluster did not come up: {why}. Its logs are in {self.folder / 'log'}."
                raise ConnectorError(msg)
            time.sleep(0.2)

    def add_task_manager(self) -> int:
        """Start one more TaskManager; returns its process id."""
        numbers = [process.number for process in self._read().processes if process.kind == "taskmanager"]
        return self._launch("taskmanager", max(numbers, default=-1) + 1)

    def task_managers(self) -> list[int]:
        """Return the process ids of the TaskManagers that live."""
        return [p.pid for p in self._read().processes if p.kind == "taskmanager" and _alive(p)]

    def stop(self, patience: float = 20.0) -> None:
        """Stop every process that it started, the stubborn ones by force."""
        alive = [process for process in reversed(self._read().processes) if _alive(process)]
        for process in alive:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while any(map(_alive, alive)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in alive:
            if _alive(process):
                _signal(process, signal.SIGKILL)
        (self.folder / _FILE).unlink(missing_ok=True)

    def _configure(self) -> None:
        conf = self.folder / "conf"
        for name in ("conf", "log", "checkpoints", "savepoints", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        settings = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.bind-host": "127.0.0.1",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": str(self.port),
            "rest.bind-port": str(self.port),
            "jobmanager.rpc.port": "0",
            "jobmanager.memory.jvm-metaspace.size": "192m",
            "jobmanager.memory.heap.size": "320m",
            "jobmanager.memory.off-heap.size": "64m",
            "jobmanager.memory.jvm-overhead.min": "64m",
            "jobmanager.memory.jvm-overhead.max": "64m",
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": str(self._slots),
            "taskmanager.memory.framework.heap.size": "64m",
            "taskmanager.memory.task.heap.size": f"{self._heap}m",
            "taskmanager.memory.framework.off-heap.size": "64m",
            "taskmanager.memory.task.off-heap.size": "64m",
            "taskmanager.memory.network.min": "64m",
            "taskmanager.memory.network.max": "64m",
            "taskmanager.memory.managed.size": "256m",
            "taskmanager.memory.jvm-metaspace.size": "512m",
            "taskmanager.memory.jvm-overhead.min": "64m",
            "taskmanager.memory.jvm-overhead.max": "64m",
            "env.java.opts.all": _java_options(),
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
            "io.tmp.dirs": str(self.folder / "tmp"),
            "execution.checkpointing.dir": (self.folder / "checkpoints").as_uri(),
            "execution.checkpointing.savepoint-dir": (self.folder / "savepoints").as_uri(),
            "heartbeat.interval": "1000",
            "heartbeat.timeout": "8000",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "100",
            "restart-strategy.fixed-delay.delay": "1 s",
            **self._settings,
        }
        if "jobmanager.rpc.port" not in self._settings:
            from streamml.flink.ports import free_port

            settings["jobmanager.rpc.port"] = str(free_port())
        text = "".join(f"{name}: {_quoted(value)}\n" for name, value in settings.items())
        (conf / "config.yaml").write_text(text)
        for path in (flink_home() / "conf").glob("log4j*.properties"):
            (conf / path.name).write_bytes(path.read_bytes())

    def _launch(self, kind: str, number: int) -> int:
        home = flink_home()
        environment = {
            **os.environ,
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder),
            "FLINK_IDENT_STRING": f"{kind}{number}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        environment.pop("_python_worker_execution_mode", None)
        log = (self.folder / "log" / f"{kind}{number}.out").open("ab")
        with log:
            process = subprocess.Popen(
                ["bash", str(home / "bin" / f"{kind}.sh"), "start-foreground"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        state = self._read()
        state.processes.append(_Process(kind, number, process.pid, _started(process.pid) or 0))
        (self.folder / _FILE).write_bytes(msgspec.json.encode(state))
        return process.pid

    def _read(self) -> _State:
        path = self.folder / _FILE
        return msgspec.json.decode(path.read_bytes(), type=_State) if path.is_file() else _State(self.port, [])


def _java_options() -> str:
    """Return the modules of Java that Flink opens to itself; Arrow batches need them."""
    text = (flink_home() / "conf" / "config.yaml").read_text()
    found = re.search(r"^ +all: (--add-\S+(?: \S+)*)$", text, re.M)
    return found[1] if found is not None else ""


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _started(pid: int) -> int | None:
    """Return the time at which a process was started, None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _alive(process: _Process) -> bool:
    return _started(process.pid) == process.started


def _signal(process: _Process, number: int) -> None:
    try:
        os.killpg(process.pid, number)  # with the Python workers that it started
    except ProcessLookupError:
        return
