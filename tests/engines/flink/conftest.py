"""Tests that start Flink: skipped where PyFlink or a JVM is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))  # `conformance_cases`
sys.path.insert(0, str(Path(__file__).parent))  # `flink_topics`


def _require_flink() -> None:
    if importlib.util.find_spec("pyflink") is None:
        pytest.skip("PyFlink is not installed: make setup EXTRAS=onnx,arrow,sketches,dev,flink")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("there is no JVM")


@pytest.fixture
def flink(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """PyFlink with a JVM; its client leaves sockets to the garbage collector, which is not our matter."""
    _require_flink()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(
        "_python_worker_execution_mode", "process"
    )  # as on a cluster, where PyFlink would take this process
    yield


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real cluster of two TaskManagers with two slots each, for tests that kill none of it."""
    _require_flink()
    from streamml.flink.cluster import TrialCluster
    from streamml.flink.ports import free_port

    folder = tmp_path_factory.mktemp("cluster")
    cluster = TrialCluster(folder, port=free_port(), task_managers=2, slots=2)
    cluster.start(120)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real broker."""
    from streamml.connectors.broker import TrialBroker
    from streamml.flink.ports import free_port

    broker = TrialBroker(tmp_path_factory.mktemp("kafka"), free_port(), heap="384m")
    broker.start(90)
    try:
        yield broker.address
    finally:
        broker.stop(10)
