"""State dealt out to another number of workers, when each store has numbered layouts, states and timers its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamml.contract import KeyedOperator
from streamml.errors import StateError
from streamml.records import Batch
from streamml.runtime import StageRuntime
from streamml.state import ListState, MapState, SetState, ValueState
from streamml.state.layout import Slot
from streamml.state.memory import MemoryStore
from streamml.state.redistribute import deal_out, merge_stages
from streamml.state.table import STAGE_KEY, StateTable, encode_key, key_group
from streamml.state.workers import WorkerFolders, owner, read_workers, remove_others, write_workers

GROUPS = 16


class Keep(KeyedOperator):
    """Keeps what it saw in every kind of state and emits it; says what its timers say."""

    seen = ListState(int)
    known = SetState(int)
    pages = MapState(int, str)
    last = ValueState(int, -1)

    def on_event(self, event: Any, ctx: Any) -> None:
        if event.x >= 0:
            self.seen.append(event.x)
            self.known.add(event.x % 700)
            self.pages.put(event.x, str(event.x))
            self.last.set(event.x)
            ctx.set_timer(1_000_000 + event.x, "due")
        else:
            pages = [(key, value) for key, value in self.pages.items()]
            seen, known, last = list(self.seen), sorted(self.known.get()), self.last.get()
            ctx.emit(event.with_fields(seen=seen, known=known, pages=pages, last=last))

    def on_timer(self, timer: Any, ctx: Any) -> None:
        ctx.emit(ctx.result(f"{self.name}/{timer.key}", timer.time, {"timer": timer.time}))


class Other(KeyedOperator):
    """Takes numbers that `Keep` would otherwise have."""

    many = ListState(str)
    table = MapState(str, int)

    def on_event(self, event: Any, ctx: Any) -> None:
        self.many.append(str(event.x))
        self.table.put(str(event.x), event.x)
        ctx.set_timer(2_000_000, "other")
        ctx.emit(event)

    def on_timer(self, timer: Any, ctx: Any) -> None:
        pass


KEYS: list[Any] = [*(f"key-{i}" for i in range(12)), *range(6), ("pair", 3), b"raw"]


def owned(index: int, count: int) -> list[Any]:
    return [key for key in KEYS if owner(key_group(encode_key(key), GROUPS), GROUPS, count) == index]


def feed(stage: StageRuntime, keys: list[Any], numbers: range) -> list[Any]:
    rows = [(key, x) for x in numbers for key in keys]
    zeros, keys = [0] * len(rows), [key for key, _ in rows]
    values = [{"x": x} for _, x in rows]
    batch = Batch(values, times=zeros, ids=["id"] * len(rows), watermarks=zeros, watermark=0, keys=keys)
    return stage.process(batch, 0).main.records()


def store_of(
    keys: list[Any], chains: list[list[Any]], number: int, names: dict[str, int]
) -> tuple[MemoryStore, dict[str, Any]]:
    """Run versions of a job one after the other on one store; each version goes on with what the last one left."""
    store, memory = MemoryStore(), None
    for at, chain in enumerate(chains):
        stage = StageRuntime(chain, store, number=number, groups=GROUPS, memory=memory)
        feed(stage, keys, range(at * 300, at * 300 + 300))
        stage.flush(0)
        memory = stage.snapshot()
    return store, {"stage_ids": names, "stages": {"main": memory}}


def answers(stage: StageRuntime, keys: list[Any]) -> dict[Any, Any]:
    """What a stage knows of each key, and the timers that are pending."""
    found = {record.key: (record.fields, []) for record in feed(stage, keys, range(-1, 0))}
    end = Batch([], times=[], ids=[], watermarks=[], watermark=3_000_000)
    for record in stage.process(end, 0).main.records():
        found[record.key][1].append(record.timer)
    return found


HISTORIES = {
    "the same": ([[Other(), Keep()], [Other(), Keep()]], 1, {"source": 0, "main": 1}),
    "an operator added": ([[Keep()], [Other(), Keep()]], 1, {"source": 0, "main": 1}),
    "another order": ([[Keep(), Other()], [Other(), Keep()]], 1, {"source": 0, "main": 1}),
    "other stages": ([[Keep()], [Other(), Keep()]], 4, {"source": 0, "gone": 1, "main": 4}),
}


@pytest.mark.parametrize("second", list(HISTORIES))
@pytest.mark.parametrize("count", [1, 3])
def test_every_key_keeps_its_state_and_timers_whatever_the_numbers_in_its_store_were(second: str, count: int) -> None:
    wanted: dict[Any, Any] = {}
    stores, manifests = [], []
    for index, history in enumerate((HISTORIES["the same"], HISTORIES[second])):
        keys = owned(index, 2)
        assert len(keys) > 3
        store, manifest = store_of(keys, *history)
        stores.append(store)
        manifests.append(manifest)
        copy = MemoryStore()
        copy.write(dict(store.scan(b"", b"\xff" * 9)))
        stage = StageRuntime(
            [Other(), Keep()], copy, number=history[1], groups=GROUPS, memory=manifest["stages"]["main"]
        )
        wanted |= answers(stage, keys)
    assert all(len(timers) == 600 and len(fields["seen"]) == 600 for fields, timers in wanted.values())
    plan = merge_stages(manifests)
    found: dict[Any, Any] = {}
    for index in range(count):
        target = MemoryStore()
        rows = deal_out(plan, stores, index, count, target)
        assert rows == target.size()["rows"]
        memory = plan.stages["main"]
        stage = StageRuntime([Other(), Keep()], target, number=plan.stage_ids["main"], groups=GROUPS, memory=memory)
        found |= answers(stage, owned(index, count))
    assert found == wanted
    if second == "the same" and count == 1:
        assert sum(store.size()["rows"] for store in stores) == target.size()["rows"]


def test_what_belongs_to_a_whole_stage_stays_with_the_worker_of_its_number() -> None:
    slot = Slot("op.count", ValueState(int, 0), None)
    key = (STAGE_KEY, "op")
    stores, manifests = [], []
    for index in range(3):
        store = MemoryStore()
        table = StateTable(store, [slot], stage=1, groups=GROUPS)
        entry = table.entries([key])[0]
        entry.cells[0] = [100 + index, 0]
        table.flush(0, 0)
        stores.append(store)
        memory = {"state": table.snapshot(), "timers": {}, "watermark": 5 + index}
        manifests.append({"stage_ids": {"main": 1}, "stages": {"main": memory}})
    plan = merge_stages(manifests)
    assert plan.stages["main"]["watermark"] == 7
    assert 0 <= key_group(encode_key(key), GROUPS) < GROUPS
    for count in (2, 5):
        kept = []
        for index in range(count):
            target = MemoryStore()
            deal_out(plan, stores, index, count, target)
            memory = plan.stages["main"]["state"]
            table = StateTable(target, [slot], stage=plan.stage_ids["main"], groups=GROUPS, memory=memory)
            cell = table.entries([key])[0].cells[0]
            kept.append(None if cell is None else cell[0])
        assert kept == [100, 101, 102, None, None][:count]


def test_checkpoints_of_different_key_groups_are_refused() -> None:
    def manifest(groups: int) -> dict[str, Any]:
        state = {"groups": groups, "layouts": {}, "slot_ids": {}}
        return {"stage_ids": {"main": 0}, "stages": {"main": {"state": state, "timers": {}, "watermark": 0}}}

    with pytest.raises(StateError, match=r"one number of key groups, got \[16, 128\]"):
        merge_stages([manifest(16), manifest(128)])


def test_old_generations_go_and_the_one_that_counts_stays(tmp_path: Path) -> None:
    for name in ("checkpoints", "live", "gen-0001", "gen-0002", "gen-0003.tmp", "inspect-x"):
        (tmp_path / name / "inner").mkdir(parents=True)
    workers = WorkerFolders(tmp_path, 2, 2)
    write_workers(workers)
    assert read_workers(tmp_path) == workers
    remove_others(workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gen-0002", "inspect-x", "workers.json"]


def test_a_job_of_one_process_keeps_its_state_when_left_overs_are_removed(tmp_path: Path) -> None:
    for name in ("checkpoints", "live", "gen-0001.tmp"):
        (tmp_path / name).mkdir()
    remove_others(read_workers(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "live"]
