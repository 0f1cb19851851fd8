"""The registry under writers at the same time, `kill -9` at any moment, and full disks: all or nothing, none lost."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.errors import ModelError  # noqa: E402
from streamml.models import Bundle, Registry  # noqa: E402

pytestmark = [pytest.mark.fault, pytest.mark.slow]

CHILD = Path(__file__).with_name("registry_child.py")


def write_bundle(folder: Path, rows: int) -> Bundle:
    """Write a model that looks up one of so many numbers."""
    weights = np.random.default_rng(1).random((rows, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    golden = {"x": np.arange(4)}
    return Bundle.write(folder / "b", folder / "m.onnx", name="m", version=1, features=["i"], golden=golden)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A model of 400 kB."""
    return write_bundle(tmp_path, 100_000)


@pytest.fixture
def large(tmp_path: Path) -> Bundle:
    """A model of 12 MB, so that a writer is often killed in the middle of a copy."""
    return write_bundle(tmp_path, 3_000_000)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def call(what: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(CHILD), what, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def check_versions(registry: Registry) -> list[int]:
    """Prove that each version is whole, by its checksums, its number and its golden rows."""
    versions = registry.versions("m")
    for version in versions:
        added = Bundle.load(registry.path("m", version))
        added.verify()
        assert added.manifest.version == version
    return versions


def test_two_processes_that_append_at_once_lose_and_double_nothing(
    tmp_path: Path, bundle: Bundle, start: Callable[..., subprocess.Popen[str]]
) -> None:
    registry = Registry(tmp_path / "models")
    registry.add("m", bundle.path)
    writers = {who: start("append", registry.place, who, 200) for who in ("a", "b")}
    go(*writers.values())
    numbers = {who: [int(n) for n in writer.communicate(timeout=110)[0].split()] for who, writer in writers.items()}
    records = registry.records("m")
    assert sorted(numbers["a"] + numbers["b"]) == [record.number for record in records] == list(range(1, 401))
    for who, got in numbers.items():
        mine = [record for record in records if record.who == who]
        assert [record.number for record in mine] == got
        assert [record.why for record in mine] == [str(n) for n in range(200)]
    turns = sum(one.who != next_.who for one, next_ in itertools.pairwise(records))
    assert turns > 1, "the two did not write at the same time"


def test_two_processes_that_add_at_once_get_different_versions(
    tmp_path: Path, bundle: Bundle, start: Callable[..., subprocess.Popen[str]]
) -> None:
    registry = Registry(tmp_path / "models")
    writers = [start("add", registry.place, bundle.path, 20) for _ in range(2)]
    go(*writers)
    numbers = [int(n) for writer in writers for n in writer.communicate(timeout=110)[0].split()]
    assert sorted(numbers) == check_versions(registry) == list(range(1, 41))
    assert sorted(os.listdir(Path(registry.place) / "m"), key=int) == [str(n) for n in range(1, 41)]


@pytest.mark.parametrize("seed", range(8))
def test_a_writer_killed_at_any_moment_leaves_nothing_half(
    tmp_path: Path, large: Bundle, start: Callable[..., subprocess.Popen[str]], seed: int
) -> None:
    registry = Registry(tmp_path / "models")
    registry.add("m", large.path)
    chance = random.Random(seed)
    for attempt in range(3):
        adds, appends = start("add", registry.place, large.path, 10**6), start("append", registry.place, "k", 10**6)
        go(adds, appends)
        time.sleep(chance.uniform(0, 0.3))
        adds.kill()
        appends.kill()
        said = [[int(n) for n in p.communicate()[0].split("\n")[:-1]] for p in (adds, appends)]
        versions, records = check_versions(registry), registry.records("m")
        assert set(said[0]) <= set(versions)
        assert set(said[1]) <= {record.number for record in records}
        fixed = {"effective": 0, "champion": 1, "who": "me", "why": str(attempt), "at": 0}
        made = registry.append("m", "prod", "promote", **fixed)  # type: ignore[arg-type]
        assert (made.number, registry.records("m")) == (len(records) + 1, [*records, made])
        assert registry.add("m", large.path) == versions[-1] + 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, with room for two versions and some records."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1100k", "none", str(path)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("a full disk: there is no `mount` here")
    if done.returncode:
        pytest.skip(f"a full disk: can't mount a small one here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_said_and_nothing_half_is_visible(disk: Path, bundle: Bundle) -> None:
    registry = Registry(disk)
    assert [registry.add("m", bundle.path) for _ in range(2)] == [1, 2]
    with pytest.raises(ModelError, match=r"No space left on device.*nothing was changed. The disk is full: free some"):
        registry.add("m", bundle.path)
    assert (check_versions(registry), sorted(os.listdir(disk / "m"))) == ([1, 2], ["1", "2"])

    fixed = {"effective": 0, "champion": 1, "who": "me", "at": 0}
    written = 0
    with pytest.raises(ModelError, match=r"No space left on device.*The disk is full: free some space"):
        for _ in range(1000):
            registry.append("m", "prod", "promote", why="x" * 3000, **fixed)  # type: ignore[arg-type]
            written += 1
    assert written > 5
    assert [record.number for record in registry.records("m")] == list(range(1, written + 1))
    assert not list((disk / "m" / "rollouts").glob(".*"))

    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True, capture_output=True)
    assert registry.append("m", "prod", "promote", why="room", **fixed).number == written + 1  # type: ignore[arg-type]
    assert registry.add("m", bundle.path) == 3
