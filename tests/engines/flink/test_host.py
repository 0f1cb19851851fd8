"""The Flink host without Flink: its state in dicts, what goes in and comes out in bytes."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamml as sml
from streamml.errors import PlanError
from streamml.flink.envelope import Envelopes
from streamml.flink.host import HostPlan, StageHost
from streamml.flink.metrics import METRICS_OUTPUT, StageMeter
from streamml.flink.outputs import key_bytes
from streamml.flink.store import PREFETCH, FlinkMaps, FlinkStore
from streamml.flink.watermark import from_flink, to_flink
from streamml.flink.wire import split, unjoin
from streamml.keying import keeps_record_key, record_key
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Dedupe, Features, Window, count, total, trailing, tumbling
from streamml.pickling import dumps, loads
from streamml.pipeline import Pipeline
from streamml.records import Batch
from streamml.runtime import StageRuntime
from streamml.state.memory import MemoryStore
from streamml.testing.local import ScriptSink
from streamml.times import MAX_TIME, MIN_TIME


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    n: int
    ts: int


class FakeMap(dict[bytes, bytes]):
    """A Flink map state of one key; counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def get(self, key: bytes) -> bytes | None:  # type: ignore[override]
        self.asked += 1
        return super().get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value

    def remove(self, key: bytes) -> None:
        self.pop(key, None)


def maps() -> FlinkMaps:
    return FlinkMaps(FakeMap(), FakeMap(), FakeMap())


def joined(rows: list[dict[str, Any] | bytes], marks: list[int] | None = None) -> tuple[bytes, int]:
    records = [row if isinstance(row, bytes) else msgspec.json.encode(row) for row in rows]
    before = [mark.to_bytes(8, "big", signed=True) for mark in marks or [-(2**63)] * len(rows)]
    return b"".join([*(len(r).to_bytes(4, "big") for r in records), *before, *records]), len(records)


def host(*operators: Any, meter: StageMeter | None = None, **options: Any) -> StageHost:
    pipeline = Pipeline("clicks", schema=Click).key_by("user")
    for operator in operators:
        pipeline = pipeline.then(operator)
    made = StageHost(HostPlan("clicks", pipeline.stages[1], pipeline.sources, "clicks", **options))
    made.open(meter)
    return made


def outputs(plan: HostPlan, pieces: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for piece in pieces:
        number, records = unjoin(piece)
        found[("main", *plan.sides)[number]] += [msgspec.json.decode(record) for record, _, _ in records]
    return dict(found)


def click(number: int, user: str = "a", ts: int = 1000) -> dict[str, Any]:
    return {"id": f"c{number}", "user": user, "n": number, "ts": ts}


def test_a_batch_gives_main_and_side_outputs() -> None:
    h = host(Dedupe(ttl="1h"))
    rows = [click(1), click(2, "b"), click(1), b"{", {**click(3), "user": None}]
    found = outputs(h.plan, h.batch(h.group(maps()), *joined(rows), MIN_TIME, 0))
    assert [row["_id"] for row in found["main"]] == ["clicks/c1", "clicks/c2"]
    assert [row["id"] for row in found["duplicates"]] == ["clicks/c1"]
    assert [row["operator"] for row in found["rejected"]] == ["source.clicks.decode"] * 2


def test_the_answer_is_that_of_one_runtime_over_all_keys_wherever_batches_are_cut() -> None:
    rows = [click(n % 40, f"u{n % 7}", 1000 * n) for n in range(100)]
    operators = [Dedupe("n", ttl="20s"), Features(trailing("10s", tile="1s"), {"sum": total("n"), "rows": count()})]
    expected = reference(operators, rows)
    for size in (1, 7, 100):
        h, state = host(*operators), maps()
        found: list[dict[str, Any]] = []
        for start in range(0, len(rows), size):
            group = h.group(state)  # as after a restore: everything comes from the maps
            cut = rows[start : start + size]
            found += outputs(h.plan, h.batch(group, *joined(cut), MIN_TIME, 0)).get("main", [])
        assert found == expected


def keyed(key: bytes | None, record: dict[str, Any]) -> bytes:
    length = -1 if key is None else len(key)
    return length.to_bytes(4, "big", signed=True) + (key or b"") + msgspec.json.encode(record)


def test_the_key_of_a_stage_is_that_of_the_record_where_the_pipeline_says_so() -> None:
    pipeline = Pipeline("clicks", schema=Click).key_by(record_key).then(Dedupe("n", ttl="1h")).select("key", "n")
    plan = HostPlan("clicks", pipeline.stages[1], pipeline.sources, "clicks", selected=pipeline.selected, keyed=True)
    h = StageHost(plan)
    h.open()
    keys = [b"a", b"b", b"a", None, b"\xff", b"", b"\xff"]
    rows: list[Any] = [keyed(key, click(1)) for key in keys]
    found = outputs(plan, h.batch(h.group(maps()), *joined(rows), MIN_TIME, 0))
    assert [row["key"] for row in found["main"]] == ["a", "b", "/w==", ""]
    assert [row["key"] for row in found["duplicates"]] == ["a", "/w=="]
    assert [row["reason"] for row in found["rejected"]] == [
        "the record has no key; wanted one, as records of a Kafka topic have"
    ]


def test_a_record_has_its_key_only_up_to_the_first_stage_with_a_key(tmp_path: Path) -> None:
    pipeline = Pipeline("clicks", schema=Click).key_by("user").then(Dedupe("n", ttl="1h")).key_by(record_key)
    with pytest.raises(PlanError, match=r"stage 'stage2': .* must be the first key_by"):
        LocalEngine(pipeline, {}, ScriptSink(), options=LocalOptions(state_dir=tmp_path))
    assert keeps_record_key(Pipeline("clicks", schema=Click).key_by(record_key).stages, "clicks")
    assert not keeps_record_key(pipeline.stages[:2], "clicks")


def reference(operators: list[Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    runtime = StageRuntime(operators, MemoryStore())
    values = [Click(**row) for row in rows]
    batch = Batch(
        values,
        times=[v.ts for v in values],
        ids=[f"clicks/{v.id}" for v in values],
        watermarks=[MIN_TIME] * len(rows),
        watermark=MIN_TIME,
        keys=[v.user for v in values],
    )
    from streamml.connectors.encode import output_rows

    return output_rows(runtime.process(batch, 0).main, None)


def test_timers_outlive_the_group_and_fire_at_the_watermark() -> None:
    h, state = host(Window(tumbling("10s"), {"sum": total("n")})), maps()
    group = h.group(state)
    assert list(h.batch(group, *joined([click(1), click(2)]), MIN_TIME, 0)) == []
    assert group.next_event_time == 10_000
    group = h.group(state)
    assert group.next_event_time == 10_000
    assert list(h.advance(group, 9_999, 0)) == []
    found = outputs(h.plan, h.advance(group, 10_000, 0))
    assert [row["sum"] for row in found["main"]] == [3]
    assert h.group(state).next_event_time > 10_000


def test_figures_come_after_the_outputs_of_a_batch_and_operators_count_into_them() -> None:
    class Counts(sml.KeyedOperator):
        def open(self, opening: Any) -> None:
            object.__setattr__(self, "seen", opening.metrics.counter("streamml_retries_total", operator=self.name))

        def on_event(self, event: Any, ctx: Any) -> None:
            self.seen.inc()
            ctx.emit(event)

    h = host(Counts(), meter=StageMeter())
    *outputs_, frame = h.batch(h.group(maps()), *joined([click(1), b"{", click(2)]), MIN_TIME, 0)
    assert frame[:1] == METRICS_OUTPUT
    assert all(output[:1] != METRICS_OUTPUT for output in outputs_)
    lines = frame[1:].decode().split("\n")
    names = [line.split("\t")[1:] for line in lines if line.startswith(("counter", "gauge"))]
    found = {"/".join(names[int(n)]): v for n, v in (line.split("\t")[:2] for line in lines) if n.isdigit()}
    assert found["streamml_events_total"] == "3"
    assert found["streamml_emitted_total"] == "2"
    assert found["streamml_retries_total/operator/counts"] == "2"
    assert [v for name, v in found.items() if name.startswith("streamml_rejected_total/error/DecodeError/")] == ["1"]


def test_a_restored_group_does_not_fall_behind_its_watermark() -> None:
    h, state = host(Window(tumbling("10s"), {"sum": total("n")})), maps()
    list(h.batch(h.group(state), *joined([click(1, ts=60_000)]), 50_000, 0))
    found = outputs(h.plan, h.batch(h.group(state), *joined([click(2, ts=5_000)]), MIN_TIME, 0))
    assert [row["late_by_ms"] for row in found["late"]] == [45_000]


def test_a_record_is_judged_by_the_watermark_before_it_where_all_come_in_order() -> None:
    rows = [click(1, ts=20_000), click(2, ts=5_000), click(3, ts=5_000), b"{"]
    marks = [-(2**63), -(2**63), 14_999, 14_999]
    for ordered, late in ((True, ["clicks/c3"]), (False, [])):
        h = host(Window(tumbling("10s"), {"sum": total("n")}), ordered=ordered)
        found = outputs(h.plan, h.batch(h.group(maps()), *joined(rows, marks), MIN_TIME, 0))
        assert [row["id"] for row in found.get("late", [])] == late
        assert [row["sum"] for row in found.get("main", [])] == ([2] if ordered else [])


def test_absent_keys_of_a_new_group_cost_no_question_twice() -> None:
    state = maps()
    store = FlinkStore(state)
    key = b"\0\0\0k" + b"x"
    store.write({key: b"1"})
    assert store.get_many([key, b"\0\0\0kz"]) == [b"1", None]
    assert state.rows.asked == 2


def test_a_scan_of_map_entries_is_in_order_and_sees_what_is_written_afterwards() -> None:
    store = FlinkStore(maps())
    rows = {b"\0\0\0m" + bytes([n]): bytes([n]) for n in (5, 1, 3)}
    store.write(rows)
    assert [value[0] for _, value in store.scan(b"\0\0\0m", b"\0\0\0n")] == [1, 3, 5]
    store.write({b"\0\0\0m\x02": b"\x02", b"\0\0\0m\x03": None})
    assert [value[0] for _, value in store.scan(b"\0\0\0m\x01", b"\0\0\0m\x05")] == [1, 2]


def test_expired_rows_are_swept_once_in_a_while_and_not_with_each_batch() -> None:
    h, state = host(Dedupe(ttl="10m")), maps()
    group = h.group(state)
    list(h.batch(group, *joined([click(1, "gone")]), 1_000, 0))
    list(h.batch(group, *joined([click(2, "here", ts=700_000)]), 602_000, 0))
    assert len(state.rows) == 1
    list(h.batch(group, *joined([click(3, "gone", ts=700_000)]), 603_000, 0))
    list(h.batch(group, *joined([click(4, "here", ts=700_000)]), 700_000, 0))
    assert len(state.rows) == 2


def test_rows_that_json_cannot_hold_are_rejected_alone() -> None:
    h = host(sml_map())
    found = outputs(h.plan, h.batch(h.group(maps()), *joined([click(1), click(2)]), MIN_TIME, 0))
    assert [row["n"] for row in found["main"]] == [1]
    assert [row["operator"] for row in found["rejected"]] == ["encode"]


def sml_map() -> Any:
    from streamml.operators import Map

    return Map(lambda e: {"bad": object() if e.n == 2 else None})


def test_rows_keep_all_they_carry_between_two_stages() -> None:
    batch = Batch(
        [Click("1", "a", 5, 9), {"x": [1, 2]}, None],
        times=[9, 10, 11],
        ids=["i1", "i2", "i3"],
        watermarks=[1, 1, 1],
        watermark=1,
        keys=["a", 7, ("b", 1)],
        tags=["s", "t", ""],
        fields={"y": [0.5, None, {"z": 1}]},
    )
    envelopes = Envelopes([Click])
    copied = envelopes.decode(envelopes.encode(batch), [0, 0, 0], carried=True)
    for name in ("values", "times", "ids", "keys", "tags", "fields", "watermarks"):
        assert getattr(copied, name) == getattr(batch, name), name


def test_watermarks_and_timers_are_one_apart() -> None:
    assert from_flink(999) == 1000
    assert from_flink(to_flink(1000)) == 1000  # a timer's Flink time is the watermark that reaches it
    assert (from_flink(-(2**63)), from_flink(2**63 - 1)) == (MIN_TIME, MAX_TIME)


def test_keys_of_output_records() -> None:
    assert key_bytes("ä") == "ä".encode()
    assert split(*joined([b"a", b"", b"ccc"], [1, 2, 3])) == ([b"a", b"", b"ccc"], (1, 2, 3))
    assert PREFETCH > 0


MAIN = """
import sys, streamml as sml, msgspec
class Deep(sml.Event, id="i", key="k", time="t", rename="camel"):
    i: str
    k: str
    t: int
    more_than: list[int] = []
    def twice(self) -> int:
        return 2 * self.t
from streamml.pickling import dumps
sys.stdout.buffer.write(dumps((Deep, lambda e: e.twice())))
"""


def test_a_schema_of_the_main_script_travels_with_its_methods_and_roles() -> None:
    data = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, check=True, timeout=60).stdout
    schema, function = loads(data)
    value = msgspec.json.decode(b'{"i":"1","k":"a","t":4,"moreThan":[1]}', type=schema)
    assert (value.more_than, function(value), schema("1", "a", 1).more_than) == ([1], 8, [])
    assert schema.__streamml_roles__.time == "t"
    assert loads(dumps(Click)) is Click


@pytest.mark.parametrize("size", [1, 1000])
def test_a_stage_shares_its_opened_operators_among_groups(size: int) -> None:
    opened: list[int] = []

    class Opens(sml.KeyedOperator):
        def open(self, opening: Any) -> None:
            opened.append(1)

        def on_event(self, event: Any, ctx: Any) -> None:
            ctx.emit(event)

    h = host(Opens(), cache_bytes=size)
    for _ in range(3):
        list(h.batch(h.group(maps()), *joined([click(1)]), MIN_TIME, 0))
    assert opened == [1]
