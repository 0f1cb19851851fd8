"""A damaged checkpoint: the one before is used, and the output, which is ahead of it, is cut back and written again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def own_files(checkpoint: Path, older: Path) -> list[Path]:
    """Files that this checkpoint does not share with the older one, largest first."""
    shared = {path.stat().st_ino for path in older.rglob("*") if path.is_file()}
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_ino not in shared]
    return sorted(files, key=lambda path: (-path.stat().st_size, path))


def data_file(files: list[Path]) -> Path:
    return next(path for path in files if path.suffix == ".sst")


def manifest(files: list[Path]) -> Path:
    return next(path for path in files if path.parent.name.startswith("chk-"))


DAMAGES: dict[str, Callable[[list[Path]], None]] = {
    "data cut": lambda files: cut(data_file(files)),
    "data flipped": lambda files: flip(data_file(files)),
    "data gone": lambda files: data_file(files).unlink(),
    "manifest cut": lambda files: cut(manifest(files)),
    "manifest flipped": lambda files: flip(manifest(files)),
    "manifest gone": lambda files: manifest(files).unlink(),
    "every file empty": lambda files: [path.write_bytes(b"") for path in files] and None,
}


def killed(
    nursery: Any, job: Any, folder: Path, after: str, checkpoint: int, **more: Any
) -> tuple[dict[str, Any], list[Path]]:
    """Kill a job after this step of a checkpoint; return its request and its checkpoints, newest first."""
    places = [number for number, step in enumerate(job.steps, 1) if step == after]
    request = job.request(folder, **more)
    assert nursery.run(**request, die_at=places[checkpoint - 1]).code == -9
    return request, sorted((folder / "state" / "checkpoints").glob("chk-*"), reverse=True)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("after", ["engine: checkpoint stored", "main: appended", "last step"])
def test_the_checkpoint_before_a_damaged_one_is_used_and_every_record_comes_once(
    nursery: Any, small: Any, memory_path: Path, damage: str, after: str
) -> None:
    step = small.steps[-1] if after == "last step" else after
    request, found = killed(nursery, small, memory_path, step, checkpoint=4)
    assert [path.name for path in found[:2]] == ["chk-00000004", "chk-00000003"]
    DAMAGES[damage](own_files(found[0], found[1]))
    end = nursery.run(**request).end
    assert end["restored"] == 3 and end["finished"]
    assert len(end["problems"]) == 1 and "chk-00000004: " in end["problems"][0]
    small.check(memory_path)


def test_two_damaged_checkpoints_are_passed_over(nursery: Any, small: Any, memory_path: Path) -> None:
    request, found = killed(nursery, small, memory_path, small.steps[-1], checkpoint=4)
    for newer, older in itertools.pairwise(found):
        if older.name != "chk-00000001":
            flip(manifest(own_files(newer, older)))
    end = nursery.run(**request).end
    assert end["restored"] == 2 and len(end["problems"]) == 2
    small.check(memory_path)


def test_parts_that_a_damaged_checkpoint_committed_are_written_again(
    nursery: Any, small: Any, memory_path: Path
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    whole, folder = memory_path / "whole", memory_path / "run"
    assert nursery.run(**small.request(whole, sink="parquet")).end["finished"]
    reference = nursery.run(**small.request(memory_path / "steps", sink="parquet"))
    places = [number for number, step in enumerate(reference.steps, 1) if step == small.steps[-1]]
    request = small.request(folder, sink="parquet")
    assert nursery.run(**request, die_at=places[3]).code == -9
    found = sorted((folder / "state" / "checkpoints").glob("chk-*"), reverse=True)
    flip(manifest(own_files(found[0], found[1])))
    assert nursery.run(**request).end["restored"] == 3

    def rows(path: Path) -> list[Any]:
        parts = sorted((path / "out.parquet").glob("part-*"))
        return [row for part in parts for row in pq.read_table(part, use_threads=False).to_pylist()]

    assert rows(folder) == rows(whole)
    assert len(rows(whole)) == small.outputs["out.jsonl"].count(b"\n") > 100


def test_when_every_checkpoint_is_damaged_the_job_says_so_and_leaves_the_output_alone(
    nursery: Any, small: Any, memory_path: Path
) -> None:
    request, found = killed(nursery, small, memory_path, small.steps[-1], checkpoint=4)
    for path in found:
        flip(path / "manifest.json") if (path / "manifest.json").exists() else flip(
            manifest(own_files(path, path / "none"))
        )
    before = (memory_path / "out.jsonl").read_bytes()
    error = nursery.run(**request).error
    assert error["type"] == "CheckpointError" and "none can be used" in error["message"]
    assert (memory_path / "out.jsonl").read_bytes() == before
