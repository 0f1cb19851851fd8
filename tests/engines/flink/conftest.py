"""Tests that start Flink: skipped where PyFlink or a JVM is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))  # `conformance_cases`


@pytest.fixture
def flink(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """PyFlink with a JVM; its client leaves sockets to the garbage collector, which is not our matter."""
    if importlib.util.find_spec("pyflink") is None:
        pytest.skip("PyFlink is not installed: make setup EXTRAS=onnx,arrow,sketches,dev,flink")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("there is no JVM")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(
        "_python_worker_execution_mode", "process"
    )  # as on a cluster, where PyFlink would take this process
    yield
