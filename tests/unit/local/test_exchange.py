"""A pipeline that changes its key, shared by workers: for each key the same records in the same order as with one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.memory import MemorySink, MemorySource
from streamml.errors import PlanError, StateError
from streamml.generate.payments import payments
from streamml.local import LocalEngine
from streamml.local.rescale import end_of
from streamml.local.segments import stage_names
from streamml.local.share import Share, check_share
from streamml.operators import Dedupe, Window, total, tumbling
from streamml.operators import count as number_of
from streamml.state.workers import WorkerFolders, read_workers, write_workers


def load_jobs() -> ModuleType:
    path = Path(__file__).parents[2] / "faults" / "exchange_job.py"
    spec = importlib.util.spec_from_file_location("exchange_job", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["exchange_job"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


jobs = load_jobs()
EVENTS = 4_000
JOBS = ("shops", "countries")


def segments(job: str) -> int:
    return len(stage_names(jobs.workers_job.PIPELINES[job]()))


@pytest.fixture(scope="module")
def input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = payments(EVENTS, cards=300, max_disorder="1s", late=0.03, late_by="5s", malformed=0.01)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def alone(input: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes."""
    found = {}
    for job in (*JOBS, "ties"):
        folder = tmp_path_factory.mktemp(job)
        jobs.run_all(job, str(input), folder, WorkerFolders(folder / "state"))
        found[job] = jobs.results(folder)
        outputs = {output for output, _, _ in found[job]}
        assert outputs >= {"out", "out.late", "out.rejected", "out.duplicates"}
        assert len({key for output, _, key in found[job] if output == "out"}) > 2
    return found


@pytest.mark.parametrize("job", [*JOBS, "ties"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_for_each_key_of_each_stage_are_those_of_one_process(
    job: str, count: int, input: Path, alone: Any, tmp_path: Path
) -> None:
    workers = WorkerFolders(tmp_path / "state", count, 1, segments(job))
    jobs.run_all(job, str(input), tmp_path, workers)
    assert jobs.results(tmp_path) == alone[job]
    last = segments(job) - 1
    written = sorted(path.name for path in tmp_path.glob("out.g*.jsonl"))
    assert written == [f"out.g0001-s{last:02d}-w{index:04d}.jsonl" for index in range(count)]


@pytest.mark.parametrize("sizes", [(1024, 7), (13, 512)])
def test_results_do_not_depend_on_the_micro_batches_of_each_segment(
    sizes: tuple[int, int], input: Path, alone: Any, tmp_path: Path
) -> None:
    for segment, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        options = {"batch_size": sizes[segment] + index}
        jobs.build("shops", str(input), tmp_path, Share(index, 2, 1, segment, 2), options=options).run()
    assert jobs.results(tmp_path) == alone["shops"]


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_results_are_the_same_when_the_number_of_workers_changes_in_the_middle(
    job: str, input: Path, alone: Any, tmp_path: Path
) -> None:
    """From one process to 2, 3 and 1 workers; those of the first segment stop at different places."""
    jobs.run_all(job, str(input), tmp_path, WorkerFolders(tmp_path / "state"), stops=[600])
    for number, stops in ((2, [1_500, 1_100]), (3, [1_600, 2_600, 2_000]), (1, [3_000]), (2, None)):
        workers = jobs.change(job, str(input), tmp_path, number)
        assert (workers.count, workers.segments, read_workers(tmp_path / "state")) == (number, segments(job), workers)
        jobs.run_all(job, str(input), tmp_path, workers, stops=stops)
    assert jobs.results(tmp_path) == alone[job]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["gen-0004", "workers.json"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_windows_by_a_second_key_are_those_of_a_plain_loop(count: int, input: Path, tmp_path: Path) -> None:
    """An oracle that shares no code: deduplicate, then sum by merchant and second, drop what is too late."""
    pipeline = (
        sml.Pipeline("p", schema=jobs.Payment, out_of_orderness="500ms")
        .key_by("card_id")
        .then(Dedupe(ttl="1d"))
        .key_by("merchant")
        .then(Window(tumbling("1s"), {"n": number_of(), "sum": total("amount")}, allowed_lateness="1s"))
    )
    jobs.workers_job.PIPELINES["plain"] = lambda: pipeline
    jobs.run_all("plain", str(input), tmp_path, WorkerFolders(tmp_path / "state", count, 1, 2))
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for path in sorted(tmp_path.glob("out.g*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            found[record["id"].split("/")[2], record["window_start"]] = (record["n"], record["sum"])
    late = {
        record["id"]
        for path in tmp_path.glob("out.late.*.jsonl")
        for record in map(json.loads, path.read_text().splitlines())
    }
    wanted, wanted_late = plain_loop(input)
    assert found == wanted and late == wanted_late
    assert len(wanted) > 500 and len(late) > 50


def plain_loop(input: Path) -> tuple[dict[tuple[str, int], tuple[int, float]], set[str]]:
    seen: set[str] = set()
    windows: dict[tuple[str, int], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    late: set[str] = set()
    newest = -(10**18)
    kinds = {"tx_id": str, "card_id": str, "amount": (int, float), "merchant": int, "country": int, "ts": int}
    for line in input.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or any(not isinstance(event.get(name), kind) for name, kind in kinds.items()):
            continue
        if not 0 < event["ts"] < 4_000_000_000_000:
            continue
        watermark, newest = newest - 500, max(newest, event["ts"])
        if event["tx_id"] in seen:
            continue
        seen.add(event["tx_id"])
        start = event["ts"] // 1000 * 1000
        if start + 1000 + 1000 <= watermark:
            late.add(f"p/{event['tx_id']}")
            continue
        n, amount = windows[str(event["merchant"]), start]
        windows[str(event["merchant"]), start] = (n + 1, amount + event["amount"])
    return dict(windows), late


@pytest.mark.slow
def test_a_job_that_has_ended_goes_on_when_input_is_appended(input: Path, tmp_path: Path) -> None:
    """The second end closes what the first one could not; with workers as with one process, key by key."""
    lines = input.read_bytes().splitlines(keepends=True)
    found = []
    for name, workers in (("one", None), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        grown = folder / "grown.jsonl"
        grown.write_bytes(b"".join(lines[:2_000]))
        there = WorkerFolders(folder / "state", workers, 1, 3) if workers else WorkerFolders(folder / "state")
        jobs.run_all("countries", str(grown), folder, there)
        for segment in range(there.segments):
            share = Share(1, 2, 1, segment, 3) if workers else Share()
            nothing = jobs.build("countries", str(grown), folder, share).run()
            assert nothing.finished and nothing.nothing_new
        grown.write_bytes(b"".join(lines))
        jobs.run_all("countries", str(grown), folder, there)
        found.append(jobs.results(folder))
    assert found[0] == found[1]


@pytest.mark.slow
def test_input_that_was_appended_before_the_next_segment_saw_the_end_is_kept_apart_from_it(
    input: Path, tmp_path: Path
) -> None:
    lines = input.read_bytes().splitlines(keepends=True)
    found = []
    for name, at_once in (("apart", False), ("at once", True)):
        folder = tmp_path / name
        folder.mkdir()
        grown = folder / "grown.jsonl"
        for upto in (2_000, EVENTS):
            grown.write_bytes(b"".join(lines[:upto]))
            for segment in (0, 1, 2):
                if segment and at_once and upto < EVENTS:
                    continue
                for index in (0, 1):
                    jobs.build("countries", str(grown), folder, Share(index, 2, 1, segment, 3)).run()
        found.append(jobs.results(folder))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("appended", [False, True])
def test_workers_that_had_not_come_to_the_end_that_others_saw_end_there_too(
    appended: bool, input: Path, tmp_path: Path
) -> None:
    """Else a window that one has closed would go on in the other."""
    lines = input.read_bytes().splitlines(keepends=True)
    found = []
    for name in ("disturbed", "whole"):
        folder = tmp_path / name
        folder.mkdir()
        grown = folder / "grown.jsonl"
        grown.write_bytes(b"".join(lines[:2_000]))
        there = WorkerFolders(folder / "state", 2, 1, 3)
        jobs.build("countries", str(grown), folder, Share(0, 2, 1, 0, 3)).run()
        stop = 1_000 if name == "disturbed" else None
        jobs.build("countries", str(grown), folder, Share(1, 2, 1, 0, 3), stop_after=stop).run()
        if appended:
            grown.write_bytes(b"".join(lines))
        end = end_of(there)
        assert (end is None) == (stop is None)
        if end is not None:
            jobs.run_all("countries", str(grown), folder, there, goal=end, ends=True)
            assert end_of(there) is None
        jobs.run_all("countries", str(grown), folder, there)
        found.append(jobs.results(folder))
    assert found[0] == found[1]


def test_a_state_folder_of_other_segments_is_refused(input: Path, tmp_path: Path) -> None:
    write_workers(WorkerFolders(tmp_path / "state", 2, 1))
    with pytest.raises(StateError, match=r"changes its key 0 times, this one does 1 times"):
        jobs.change("shops", str(input), tmp_path, 3)
    with pytest.raises(PlanError, match=r"wanted 3 segments, as the job was started with, got 2"):
        jobs.build("shops", str(input), tmp_path, Share(0, 2, 1, 0, 3))


def test_workers_share_a_pipeline_of_several_keys_only_by_segments() -> None:
    pipeline = jobs.shops()
    check_share(pipeline, 128)
    with pytest.raises(PlanError, match=r"129 workers.*128 key groups"):
        check_share(pipeline, 129)
    with pytest.raises(PlanError, match=r"changes its key: its segments run apart"):
        LocalEngine(pipeline, {"shops": MemorySource([])}, MemorySink(), share=Share(0, 2, 1))
