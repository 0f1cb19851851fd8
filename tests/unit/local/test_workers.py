"""Workers that share the keys of a job write together what one process writes, for each key in the same order."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.files import FileSource
from streamml.connectors.memory import MemorySink, MemorySource
from streamml.connectors.positions import furthest, held, records
from streamml.errors import PlanError, StateError
from streamml.generate.payments import payments
from streamml.local import LocalEngine, LocalOptions
from streamml.local.parts import part_uri
from streamml.local.rescale import goal_of, locked, rescale
from streamml.local.share import Goal, Share, Sharing, check_share
from streamml.local.together import from_plain, to_plain, together
from streamml.observability.figures import RunFigures
from streamml.operators import Dedupe, Filter
from streamml.ports import Chunk
from streamml.records import Batch
from streamml.state.workers import WorkerFolders, owner, read_workers, write_workers


def load_jobs() -> ModuleType:
    path = Path(__file__).parents[2] / "faults" / "workers_job.py"
    spec = importlib.util.spec_from_file_location("workers_job", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workers_job"] = module
    spec.loader.exec_module(module)
    return module


jobs = load_jobs()
EVENTS = 4_000


JOBS = list(jobs.PIPELINES)  # other tests add theirs


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
    for job in JOBS:
        folder = tmp_path_factory.mktemp(job)
        jobs.run_all(job, str(input), folder, WorkerFolders(folder / "state"))
        found[job] = jobs.results(folder)
        assert min(len(found[job][name]) for name in ("out", "out.late", "out.rejected", "out.duplicates")) > 0
    return found


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_for_each_key_are_the_same_at_any_number_of_workers(
    job: str, count: int, input: Path, alone: Any, tmp_path: Path
) -> None:
    workers = WorkerFolders(tmp_path / "state", count, 1)
    jobs.run_all(job, str(input), tmp_path, workers, options={"checkpoint_interval": "1h"})
    assert jobs.results(tmp_path) == alone[job]
    if count == 3:
        written = [(tmp_path / f"out.g0001-w{index:04d}.jsonl").read_bytes() for index in range(3)]
        assert all(written) and not any((tmp_path / f"out.rejected.g0001-w000{i}.jsonl").read_bytes() for i in (1, 2))


@pytest.mark.parametrize("job", JOBS)
def test_results_are_the_same_when_the_number_of_workers_changes_in_the_middle(
    job: str, input: Path, alone: Any, tmp_path: Path
) -> None:
    """From one process to 2, 3 and 1; the workers stop at different places."""
    jobs.run_all(job, str(input), tmp_path, WorkerFolders(tmp_path / "state"), stops=[600])
    for count, stops in ((2, [1_500, 1_100]), (3, [1_600, 2_600, 2_000]), (1, [3_000]), (2, None)):
        workers = jobs.change(job, str(input), tmp_path, count)
        assert (workers.count, read_workers(tmp_path / "state")) == (count, workers)
        jobs.run_all(job, str(input), tmp_path, workers, stops=stops)
    assert jobs.results(tmp_path) == alone[job]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["gen-0004", "workers.json"]


def test_a_job_that_has_ended_goes_on_with_another_number_of_workers_when_input_is_appended(
    input: Path, alone: Any, tmp_path: Path
) -> None:
    lines, grown = input.read_bytes().splitlines(keepends=True), tmp_path / "grown.jsonl"
    grown.write_bytes(b"".join(lines[:2_000]))
    write_workers(WorkerFolders(tmp_path / "state", 2, 1))
    jobs.run_all("features", str(grown), tmp_path, WorkerFolders(tmp_path / "state", 2, 1))
    workers = jobs.change("features", str(grown), tmp_path, 3)
    nothing = jobs.build("features", str(grown), tmp_path, Share(1, 3, 2)).run()
    assert nothing.finished and nothing.nothing_new
    grown.write_bytes(b"".join(lines))
    jobs.run_all("features", str(grown), tmp_path, workers)
    names = {"out", "out.duplicates", "out.late"}  # ids of rejected records have the name of the file in them
    assert {name: jobs.results(tmp_path)[name] for name in names} == {name: alone["features"][name] for name in names}


def test_a_job_that_took_no_checkpoint_changes_its_number_of_workers_without_more(tmp_path: Path) -> None:
    write_workers(WorkerFolders(tmp_path, 2, 1))

    def never(goal: Any) -> bool:
        raise AssertionError

    assert rescale(read_workers(tmp_path), 3, never) == WorkerFolders(tmp_path, 3, 2) == read_workers(tmp_path)


def test_workers_whose_reading_on_was_stopped_keep_their_state(input: Path, tmp_path: Path) -> None:
    write_workers(WorkerFolders(tmp_path / "state", 2, 1))
    now = read_workers(tmp_path / "state")
    jobs.run_all("features", str(input), tmp_path, now, stops=[500, 900])
    assert rescale(now, 3, lambda goal: False) is None
    assert read_workers(tmp_path / "state") == now
    with pytest.raises(StateError, match=r"not of one place of the input.*Start the job with --workers 2"):
        rescale(now, 3, lambda goal: True)


def test_the_goal_is_the_furthest_position_in_each_partition(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        folder.joinpath(f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in payments(3_000, cards=30)))
    write_workers(WorkerFolders(tmp_path / "state", 2, 1))
    now = read_workers(tmp_path / "state")
    for index, stop in enumerate((700, 1_600)):
        options = {"options": {"batch_size": 100 + 37 * index}}
        jobs.build("features", str(folder), tmp_path, Share(index, 2, 1), stop_after=stop, **options).run()
    goal = goal_of(now)
    cut = records(goal["features"])
    jobs.run_all("features", str(folder), tmp_path, now, goal=goal, options={"batch_size": 50})
    assert {name: record for name, record in records(goal_of(now)["features"]).items()} == cut
    assert rescale(now, 3, lambda goal: True) is not None


def test_rows_without_a_key_are_shared_by_their_id(tmp_path: Path) -> None:
    class Click(sml.Event, id="id", time="ts"):
        id: str
        ts: int

    pipeline = sml.Pipeline("clicks", schema=Click).then(Filter(lambda event: event.ts % 2 == 0))
    clicks = [{"id": f"c{i}", "ts": i} for i in range(500)] + [{"id": None, "ts": 1}]
    found, read = [], 0
    for index in range(3):
        sink, sides = MemorySink(), {name: MemorySink() for name in pipeline.sides}
        share = Share(index, 3, 1)
        engine = LocalEngine(pipeline, {"clicks": MemorySource(clicks)}, sink, sides, share=share, clock=lambda: 1_000)
        read += engine.run().figures.events_in
        assert len(sides["rejected"].rows) == (index == 0)
        assert 30 < len(sink.rows) < 150
        found += sink.rows
    assert sorted(record["ts"] for record in found) == list(range(0, 500, 2))
    assert read == 501


def test_every_event_counts_once_in_the_sum_over_the_workers(input: Path, tmp_path: Path) -> None:
    figures = [jobs.build("features", str(input), tmp_path, Share(i, 3, 1)).run().figures for i in range(3)]
    assert sum(each.events_in for each in figures) == EVENTS
    assert all(each.events_in > EVENTS / 10 for each in figures)


def test_more_workers_than_key_groups_are_refused() -> None:
    with pytest.raises(PlanError, match=r"129 workers.*128 key groups"):
        check_share(jobs.features(), 129)


def test_each_key_group_has_one_owner_and_shares_differ_by_one_group_at_most() -> None:
    for count in range(1, 129):
        owned = [owner(group, 128, count) for group in range(128)]
        sizes = [owned.count(index) for index in range(count)]
        assert owned == sorted(owned) and max(sizes) - min(sizes) <= 1 and min(sizes) > 0


def test_a_batch_is_dealt_out_to_workers_without_rest() -> None:
    keys: list[Any] = [*(f"k{i}" for i in range(50)), *range(50), ("a", 1), b"x"]
    shared: list[Any] = []
    for index in range(4):
        n = len(keys)
        batch = Batch([None] * n, times=[0] * n, ids=[""] * n, watermarks=list(range(n)), watermark=n, keys=list(keys))
        own = Sharing(jobs.features(), Share(index, 4, 1)).own(batch)
        assert own.watermark == n and own.watermarks == [keys.index(key) for key in own.keys]
        shared += own.keys
    assert sorted(map(repr, shared)) == sorted(map(repr, keys))


def test_a_goal_cuts_what_lies_beyond_it() -> None:
    goal = Goal({"s": {"a": {"record": 3}, "b": {"record": 0}}})
    chunk = Chunk([b"0", b"1", b"2", b"3"], [("a", 2), ("b", 1), ("a", 1)], [2, 3, 0, 4], keys=[b"k", None, b"l", b"m"])
    cut = goal.cut("s", chunk)
    assert (list(cut.payloads), list(cut.offsets), cut.keys) == ([b"0"], [2], [b"k"])
    assert list(cut.runs) == [("a", 1), ("b", 0), ("a", 0)]


def test_positions_of_kafka_are_compared_by_partition() -> None:
    first = {"version": 1, "format": "kafka", "offsets": {"t-0": 5, "t-1": 9}, "until": {"t-0": 10}}
    second = {"version": 1, "format": "kafka", "offsets": {"t-0": 7, "t-2": 1}, "until": {"t-0": 12}}
    both = furthest([first, second])
    assert both["offsets"] == {"t-0": 7, "t-1": 9, "t-2": 1} and both["until"] == {"t-0": 12}
    assert held({"format": "kafka", "offsets": {"t-0": 8, "t-1": 1}}, both)["offsets"] == {"t-0": 7, "t-1": 1}


@pytest.mark.parametrize("uri", ["-", "stdout:", "stderr:late"])
def test_workers_do_not_share_standard_output(uri: str) -> None:
    assert part_uri(uri, Share()) == uri
    with pytest.raises(PlanError, match="several workers can't write to standard output"):
        part_uri(uri, Share(0, 2, 1))


def test_parts_sorted_by_name_are_in_the_order_of_generations() -> None:
    shares = [Share(index, 12, generation) for generation, index in itertools.product((1, 2, 10), (0, 1, 11))]
    names = [part_uri("scores.jsonl", share) for share in shares]
    assert names == sorted(names) and len(set(names)) == 9


def test_figures_survive_the_way_between_processes() -> None:
    figures = RunFigures(events_in=3, models=("a:1",), recent_drift=("x",), p50=0.5, progress=0.25, checkpoint=4)
    assert repr(from_plain(to_plain(figures))) == repr(figures)
    both = together([figures, RunFigures(events_in=1, p50=0.75, cpu_us_per_event=8.0)], [RunFigures(events_in=10)])
    assert (both.events_in, both.p50, both.checkpoint, both.cpu_us_per_event) == (14, 0.75, None, 8 / 14)


def test_one_job_at_a_time_runs_on_a_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamml.local.rescale._PATIENCE", 0.05)
    with locked(tmp_path), pytest.raises(StateError, match="another job runs on it"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_damaged_or_newer_list_of_workers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gen-0003").mkdir()
    (tmp_path / "workers.json").write_text("{")
    with pytest.raises(StateError, match=r"it is not whole.*gen-0003"):
        read_workers(tmp_path)
    (tmp_path / "workers.json").write_text('{"format": 2, "workers": 1, "generation": 1}')
    with pytest.raises(StateError, match="wanted format 1, got 2"):
        read_workers(tmp_path)


def test_a_drift_alarm_says_which_worker_it_is_of(tmp_path: Path) -> None:
    from streamml.drift import Profile
    from streamml.operators import DriftMonitor

    reference = Profile.fit({"amount": range(1_000)}, bins=4)
    monitor = DriftMonitor(reference, ["amount"], every="1m")
    pipeline = sml.Pipeline("p", schema=jobs.Payment).key_by("card_id").then(monitor)
    event = {"merchant": 1, "country": 1}
    events = ((f"t{i}", f"c{i}", float(i % 1500), i * 30) for i in range(2_000))
    items = [{"tx_id": id, "card_id": card, "amount": amount, "ts": ts, **event} for id, card, amount, ts in events]
    ids = []
    for share in (Share(), Share(0, 2, 1), Share(1, 2, 1)):
        drift = MemorySink()
        options = LocalOptions(fsync=False)
        source, sides = {"p": MemorySource(items)}, {"drift": drift}
        LocalEngine(pipeline, source, MemorySink(), sides, options=options, share=share).run()
        ids.append(drift.rows[0]["id"])
    assert ids == ["p/drift_monitor/amount/0", "p/drift_monitor/amount/0/worker-0", "p/drift_monitor/amount/0/worker-1"]


def test_dedupe_by_function_key_is_shared_too(input: Path) -> None:
    pipeline = sml.Pipeline("p", schema=jobs.Payment).key_by(lambda event: (event.country, event.card_id))
    pipeline = pipeline.then(Dedupe(ttl="1h"))
    found: list[list[str]] = []
    for count in (1, 2):
        rows = []
        for index in range(count):
            sink = MemorySink()
            LocalEngine(pipeline, {"p": FileSource(str(input))}, sink, share=Share(index, count, 1)).run()
            rows += [record["tx_id"] for record in sink.rows]
        found.append(sorted(rows))
    assert found[0] == found[1] and len(found[0]) > 3_000
