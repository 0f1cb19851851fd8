"""A full disk: the run ends with an error that says so, nothing is damaged, and once there is room it goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow]


class Disk:
    """A file system of its own in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.path)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("a full disk: there is no `mount` here")
    if done.returncode:
        pytest.skip(f"a full disk: can't mount a small one here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


OPTIONS = {"checkpoint_interval": "20ms"}


@pytest.mark.parametrize("kilobytes", [400, 900, 1500])
def test_a_full_state_disk_ends_the_run_and_with_room_it_goes_on(
    nursery: Any, w: Any, disk: Disk, tmp_path: Path, kilobytes: int
) -> None:
    disk.resize(kilobytes)
    request = w.request(tmp_path / "run", state=disk.path / "state", options=OPTIONS)
    for _ in range(2):  # the second start finds the disk as full as the first one left it
        error = nursery.run(**request).error
        assert error["type"] in ("CheckpointError", "StateError")
        assert "No space left on device" in error["message"] and "ree" in error["message"]
    stored = list((disk.path / "state" / "checkpoints").glob("chk-*"))
    disk.resize(64 << 10)
    last = nursery.run(**request)
    assert last.end["finished"] and last.end["problems"] == []
    assert (last.end["restored"] is not None) == bool(stored)
    w.check(tmp_path / "run")


@pytest.mark.parametrize("kilobytes", [300, 2000, 7000])
def test_a_full_output_disk_ends_the_run_and_with_room_it_goes_on(
    nursery: Any, w: Any, disk: Disk, tmp_path: Path, kilobytes: int
) -> None:
    disk.resize(kilobytes)
    request = w.request(tmp_path / "run", out=disk.path, options=OPTIONS)
    for _ in range(2):
        error = nursery.run(**request).error
        assert error["type"] == "ConnectorError"
        assert "The disk is full: free some space" in error["message"]
        written = (disk.path / "out.jsonl").read_bytes()
        assert w.outputs["out.jsonl"].startswith(written[: written.rfind(b"\n") + 1])
    disk.resize(64 << 10)
    assert nursery.run(**request).end["finished"]
    w.check(disk.path)
