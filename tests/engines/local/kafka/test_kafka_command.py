"""`streamml kafka`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from streamml.connectors.broker import TrialBroker, free_port


def test_a_trial_broker_is_started_found_and_stopped_by_separate_commands(tmp_path: Path, cluster: Any) -> None:
    options = ["--port", str(free_port()), "--dir", str(tmp_path)]

    def call(command: str) -> tuple[int, str]:
        program = [sys.executable, "-c", "from streamml.cli.kafka import app; app()", command, *options]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert call("status") == (3, f"none runs in {tmp_path}\n")
    try:
        code, said = call("start")
        assert code == 0 and "runs at 127.0.0.1:" in said
        assert call("status")[0] == 0 and "runs already" in call("start")[1]
        assert call("stop")[1].startswith("stopped at")
    finally:
        TrialBroker(tmp_path, int(options[1])).kill()
    assert call("stop") == (0, f"none runs in {tmp_path}\n")
