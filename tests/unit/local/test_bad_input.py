"""Records that break schema, time, key, a step or the output: each is rejected with its reason; the job runs on."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.connectors.memory import MemorySink
from streamml.connectors.parts_sink import PartsSink
from streamml.errors import StateError
from streamml.operators import Dedupe, Features, Infer, Map, count, distinct, last, maximum, mean, total
from streamml.state import ValueState

NOW = 1_800_000_000_000
DAY = 86_400_000


class Reading(sml.Event, id="tx", key="key", time="ts"):
    tx: str
    key: str
    ts: int
    x: float = 0.0
    n: int = 0
    note: Any = None


class Counted(sml.Event, key="n", time="ts"):
    n: int
    ts: int


def pipeline(**options: Any) -> sml.Pipeline:
    return (
        sml.Pipeline("p", schema=Reading, out_of_orderness="1s", **options)
        .key_by("key")
        .then(Dedupe(ttl="1h"))
        .then(Features(fields={"count": count(), "sum": total("x")}))
    )


def line(id: str, key: Any = "k", ts: Any = NOW, **more: Any) -> bytes:
    return json.dumps({"tx": id, "key": key, "ts": ts, **more}).encode()


def raw(text: str) -> bytes:
    return f'{{"tx":"bad","key":"k","ts":{NOW},{text}}}'.encode()


DEEP = "[" * 100_000 + "]" * 100_000
REJECTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty payload"),
    "blank": (b"   ", "truncated"),
    "cut off": (b'{"tx":"bad","key":"k"', "truncated"),
    "no JSON": (b"hello", "malformed"),
    "two values": (line("bad") + line("bad"), "trailing"),
    "a list": (b"[1, 2]", "Expected `object`, got `array`"),
    "null": (b"null", "Expected `object`, got `null`"),
    "missing field": (b'{"tx":"bad","key":"k"}', "missing required field `ts`"),
    "text for a number": (raw('"x":"1.5 EUR"'), "Expected `float`, got `str` - at `$.x`"),
    "fraction for an integer": (raw('"n":1.5'), "Expected `int`, got `float` - at `$.n`"),
    "boolean for a number": (raw('"x":true'), "Expected `float`, got `bool` - at `$.x`"),
    "object for a number": (raw('"x":{"v":1}'), "Expected `float`, got `object` - at `$.x`"),
    "NaN": (raw('"x":NaN'), "malformed"),
    "Infinity": (raw('"x":-Infinity'), "malformed"),
    "float out of range": (raw('"x":1e999'), "out of range - at `$.x`"),
    "float of 5000 digits": (raw('"x":' + "9" * 5000), "out of range - at `$.x`"),
    "integer of 5000 digits": (raw('"n":' + "9" * 5000), "out of range - at `$.n`"),
    "huge time": (line("bad", ts=10**30), "outside the years 1 to 9999"),
    "time of 400 digits": (line("bad", ts=10**400), "outside the years 1 to 9999"),
    "huge negative time": (line("bad", ts=-(10**30)), "outside the years 1 to 9999"),
    "seconds as nanoseconds": (line("bad", ts=NOW * 10**6), "is its unit 'ms'?"),
    "the year 2100": (line("bad", ts=4_102_444_800_000), "more than 1d ahead of the clock (max_future=)"),
    "null time": (line("bad", ts=None), "Expected `int`, got `null` - at `$.ts`"),
    "null key": (line("bad", key=None), "Expected `str`, got `null` - at `$.key`"),
    "number as key": (line("bad", key=7), "Expected `str`, got `int` - at `$.key`"),
    "null id": (b'{"tx":null,"key":"k","ts":1}', "Expected `str`, got `null` - at `$.tx`"),
    "invalid UTF-8": (b'{"tx":"\xff\xfe","key":"k","ts":1}', "invalid start byte"),
    "half a surrogate": (raw('"note":"\\ud800"'), ""),
    "control character": (b'{"tx":"b\x01d","key":"k","ts":1}', ""),
    "deep in an unknown field": (raw(f'"more":{DEEP}'), "recursion"),
    "deep in a known field": (raw(f'"note":{DEEP}'), "recursion"),
    "deep outside": (DEEP.encode(), ""),
    "UTF-16": ('{"tx":"bad","key":"k","ts":1}'.encode("utf-16"), ""),
    "binary": (bytes(range(256)), ""),
}

GOOD: dict[str, bytes] = {
    "unknown fields": line("a", more=1, nested={"a": [1, {"b": None}]}),
    "a known field twice": f'{{"tx":"x","tx":"a","key":"k","ts":{NOW},"x":1,"x":2}}'.encode(),
    "an integer for a float": line("a", x=5),
    "a huge integer for a float": line("a", x=10**30),
    "minus zero": raw('"x":-0.0').replace(b"bad", b"a"),
    "an empty key": line("a", key=""),
    "a key with a null character": line("a", key="\0stage"),
    "an emoji as key": line("a", key="\U0001f4b3"),
    "an escaped surrogate pair": b'{"tx":"a","key":"\\ud83d\\udcb3","ts":%d}' % NOW,
    "the year 1": line("a", ts=-62_135_596_800_000),
    "before 1970": line("a", ts=-1),
    "within a day ahead": line("a", ts=NOW + DAY - 1),
    "a megabyte": line("a", note="y" * 1_000_000),
    "a key of a megabyte": line("a", key="y" * 1_000_000),
    "nested 500 deep": raw('"note":' + "[" * 500 + "]" * 500).replace(b"bad", b"a"),
    "spaces and carriage return": b"  " + line("a") + b" \r",
}


def frame(payload: bytes) -> list[bytes]:
    """Good records around it, some of them later in the same micro-batch."""
    return [line("g1", x=1), line("g2", x=2), payload, line("g3", x=3), line("g4", "other", NOW + 10, x=4)]


@pytest.mark.parametrize("case", REJECTED)
@pytest.mark.parametrize("batch_size", [1, 1024])
def test_a_bad_record_is_rejected_with_its_reason_and_the_others_are_as_without_it(
    run: Any, case: str, batch_size: int
) -> None:
    payload, reason = REJECTED[case]
    ran = run(pipeline(), frame(payload), batch_size=batch_size)
    without = run(pipeline(), [p for p in frame(payload) if p is not payload])
    assert ran.main == without.main and len(ran.main) == 4
    (record,) = ran.sides["rejected"]
    assert reason.lower() in record["reason"].lower() and record["reason"]
    assert record["operator"].startswith("source.p.") and record["offset"] == 2 and record["partition"] == "p/0"
    kept = record["payload"].encode() if "payload" in record else base64.b64decode(record["payload_base64"])
    assert kept == payload
    assert ran.sides["late"] == ran.sides["duplicates"] == []
    assert ran.result.figures.rejected == 1 and ran.result.figures.events_in == 5


@pytest.mark.parametrize("case", GOOD)
def test_an_odd_but_good_record_is_processed(run: Any, case: str) -> None:
    ran = run(pipeline(), [GOOD[case]])
    assert ran.reasons() == []
    assert [row["id"] for row in ran.main] == ["p/a"]


def test_the_last_one_of_a_field_that_is_there_twice_counts(run: Any) -> None:
    (row,) = run(pipeline(), [GOOD["a known field twice"]]).main
    assert (row["id"], row["sum"]) == ("p/a", 2.0)


def test_nothing_of_a_file_with_every_kind_of_record_is_lost(run: Any, tmp_path: Path) -> None:
    """Through a real file, where line ends, a byte order mark and the limit on the length of a line come in."""
    limit = 1_500_000
    lines = [b"\xef\xbb\xbf" + line("first")]
    bad = [payload for payload, _ in REJECTED.values() if b"\n" not in payload]
    good = [payload.replace(b'"a"', b'"a%d"' % n, 1) for n, payload in enumerate(GOOD.values())]
    lines += [*bad, *good, line("over", note="y" * limit)]
    lines += [line("first"), line("dup"), line("dup")]
    lines += [line("late0", "z", NOW), line("late1", "z", NOW + 7_200_000), line("late2", "z", NOW + 7_200_000)]
    lines += [line("late", "z", NOW - 1)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\r\n".join(lines))  # and no line end after the last one
    source = FileSource(str(path), max_record_bytes=limit)
    ran = run(pipeline(), source, now=NOW + DAY)
    sides = {name: len(records) for name, records in ran.sides.items()}
    assert len(lines) == len(ran.main) + sum(sides.values()) == ran.result.figures.events_in
    assert sides["duplicates"] == 2 and sides["late"] == 1 + 2  # year 1 and before 1970 came after the watermark
    over = next(record for record in ran.sides["rejected"] if "over max_record_bytes" in record.get("payload", ""))
    assert str(limit) in over["payload"] and len(over["payload"]) < 2_000
    assert {"p/first", "p/dup", "p/late1"} <= {row["id"] for row in ran.main}


def test_a_record_over_the_limit_is_rejected_with_its_length(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([line("a"), line("b", note="y" * 5_000), line("c")]))
    ran = run(pipeline(), FileSource(str(path), max_record_bytes=1_000))
    assert [row["id"] for row in ran.main] == ["p/a", "p/c"]
    assert "a line of 50" in ran.sides["rejected"][0]["payload"]


class TestClocks:
    """One record with a wrong clock must not make the others late."""

    def late(self, run: Any, times: list[int], **options: Any) -> list[str]:
        ran = run(pipeline(**options), [line(f"e{n}", ts=ts) for n, ts in enumerate(times)], batch_size=3)
        assert len(ran.main) + sum(map(len, ran.sides.values())) == len(times)
        return [record["id"] for record in ran.sides["late"]]

    def test_a_record_of_the_year_2100_is_rejected(self, run: Any) -> None:
        times = [NOW + n for n in range(20)]
        times[7] = 4_102_444_800_000
        assert self.late(run, times) == []

    @pytest.mark.parametrize("place", [0, 1, 7, 19])
    def test_a_lone_record_days_ahead_that_may_be_there_is_not_followed(self, run: Any, place: int) -> None:
        times = [NOW + n for n in range(20)]
        times[place] = NOW + 2 * DAY
        assert self.late(run, times, max_future="3d") == []

    def test_a_stream_that_jumps_ahead_is_followed(self, run: Any) -> None:
        times = [NOW, NOW + 1, NOW + 2 * DAY, NOW + 2 * DAY + 1, NOW + 2]
        assert self.late(run, times, max_future="3d") == ["p/e4"]

    def test_a_record_of_the_far_past_is_late_and_changes_nothing(self, run: Any) -> None:
        times = [NOW, NOW + 1, -62_135_596_800_000, NOW + 2]
        assert self.late(run, times) == ["p/e2"]


@pytest.mark.parametrize("batch_size", [1, 2, 1024])
def test_an_integer_key_of_more_than_64_bits_is_rejected(run: Any, batch_size: int) -> None:
    job = sml.Pipeline("p", schema=Counted).key_by("n").then(Features(fields={"count": count()}))
    keys = [1, 10**30, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 1]
    ran = run(job, [json.dumps({"n": n, "ts": NOW}).encode() for n in keys], batch_size=batch_size)
    assert [(row["n"], row["count"]) for row in ran.main] == [(1, 1), (2**64 - 1, 1), (-(2**63), 1), (1, 2)]
    assert [record["event"]["n"] for record in ran.sides["rejected"]] == [10**30, 2**64, -(2**63) - 1]
    assert all("more than 64 bits" in reason for reason in ran.reasons())


@pytest.mark.parametrize("key", [None, 1.5, [1], True, ("a", None), 10**30, object()])
def test_a_key_function_that_gives_no_key_rejects_only_that_event(run: Any, key: Any) -> None:
    job = (
        sml.Pipeline("p", schema=Reading).key_by(lambda e: key if e.tx == "bad" else e.value.key).then(Dedupe(ttl="1h"))
    )
    ran = run(job, frame(line("bad")))
    assert len(ran.main) == 4
    assert [record["id"] for record in ran.sides["rejected"]] == ["p/bad"]
    assert ran.sides["rejected"][0]["operator"].startswith("key_by.")


class Tripping(sml.KeyedOperator):
    """Counts a key's events; raises after it has counted, emitted and reported."""

    sides = ("seen",)
    kind: str = "RuntimeError"

    total = ValueState(int, default=0)

    def adds(self) -> list[str]:
        return ["number"]

    def on_event(self, event: sml.Record, ctx: sml.Context) -> None:
        self.total.set(self.total.get() + 1)
        ctx.emit(event.with_fields(number=self.total.get()))
        ctx.side("seen", event)
        if event.id == "p/bad":
            error = {"RuntimeError": RuntimeError, "RecursionError": RecursionError, "StateError": StateError}[
                self.kind
            ]
            raise error("tripped")


@pytest.mark.parametrize("batch_size", [1, 1024])
@pytest.mark.parametrize("kind", ["RuntimeError", "RecursionError"])
def test_an_operator_that_raises_loses_only_that_event_and_what_it_did_is_taken_back(
    run: Any, kind: str, batch_size: int
) -> None:
    job = sml.Pipeline("p", schema=Reading).key_by("key").then(Tripping(kind=kind))
    ran = run(job, frame(line("bad")), batch_size=batch_size)
    assert [(row["id"], row["number"]) for row in ran.main] == [("p/g1", 1), ("p/g2", 2), ("p/g3", 3), ("p/g4", 1)]
    assert [record["id"] for record in ran.sides["seen"]] == ["p/g1", "p/g2", "p/g3", "p/g4"]
    (record,) = ran.sides["rejected"]
    assert (record["id"], record["operator"], record["error"], record["reason"]) == (
        "p/bad",
        "tripping",
        kind,
        "tripped",
    )
    assert record["event"]["tx"] == "bad"


def test_an_error_of_the_state_is_not_taken_for_a_bad_record(run: Any) -> None:
    job = sml.Pipeline("p", schema=Reading).key_by("key").then(Tripping(kind="StateError"))
    with pytest.raises(StateError, match="tripped"):
        run(job, frame(line("bad")))


@pytest.mark.parametrize("batch_size", [1, 1024])
def test_a_map_that_raises_rejects_only_that_event(run: Any, batch_size: int) -> None:
    def inverse(event: sml.Record) -> sml.Record:
        return event.with_fields(inverse=1 / event.x)

    job = sml.Pipeline("p", schema=Reading).then(Map(inverse))
    ran = run(job, frame(line("bad", x=0)), batch_size=batch_size)
    assert [row["inverse"] for row in ran.main] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [(r["id"], r["error"]) for r in ran.sides["rejected"]] == [("p/bad", "ZeroDivisionError")]


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError


def circular() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


UNWRITABLE: dict[str, Any] = {
    "object": Opaque(),
    "hostile": Hostile(),
    "circular": circular(),
    "odd key": {(1, 2): Opaque()},
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("what", UNWRITABLE)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("batch_size", [1, 1024])
def test_a_value_that_the_output_can_not_hold_rejects_only_its_rows(
    run: Any, tmp_path: Path, what: str, format: str, batch_size: int
) -> None:
    if format == "parquet":
        if what == "circular":
            pytest.skip("pyarrow crashes on a list that contains itself")
        pq = pytest.importorskip("pyarrow.parquet")
    value = UNWRITABLE[what]
    job = sml.Pipeline("p", schema=Reading).then(
        Map(lambda e: e.with_fields(made=value if e.x == 0 else e.x), name="make")
    )
    path = tmp_path / f"out.{format}"
    main: Any = FileSink(str(path)) if format == "jsonl" else PartsSink(str(path), "parquet")
    sides = {"late": MemorySink(), "rejected": FileSink(str(tmp_path / "rejected.jsonl"))}
    items = [line("g1", x=1), line("bad1", x=0), line("g2", x=2), line("bad2", x=0), line("g3", x=3)]
    ran = run(job, items, sink=main, sides=sides, batch_size=batch_size)
    if format == "jsonl":
        rows = [json.loads(text) for text in path.read_text().splitlines()]
    else:
        rows = [
            row for part in sorted(path.glob("part-*")) for row in pq.read_table(part, use_threads=False).to_pylist()
        ]
    rejected = [json.loads(text) for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["made"] for row in rows] == [1.0, 2.0, 3.0]
    assert [(r["id"], r["operator"]) for r in rejected] == [("p/bad1", "sink"), ("p/bad2", "sink")]
    assert all("'made'" in r["reason"] for r in rejected)
    assert all(r["event"]["x"] == 0 for r in rejected)  # the rest of the event is there as it is
    figures = ran.result.figures
    assert (figures.events_out, figures.rejected) == (3, 2)


@pytest.mark.parametrize("missing", [False, True])
def test_a_row_that_a_model_can_not_score_is_rejected_and_the_rest_of_its_batch_scored(
    run: Any, tmp_path: Path, missing: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", float_, ["n", 1])],
        [helper.make_tensor_value_info("y", float_, ["n", 1])],
    )
    path = tmp_path / "same.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    job = sml.Pipeline("p", schema=Reading).then(Infer(str(path), inputs=["note"], missing=missing))
    notes = [1, None, "text", 2, 1e39, 3]
    ran = run(job, [line(f"e{n}", note=note) for n, note in enumerate(notes)])
    assert [row["score"] for row in ran.main] == [1.0, 2.0, 3.0]
    assert [record["id"] for record in ran.sides["rejected"]] == ["p/e1", "p/e2", "p/e4"]


class Keeps(sml.KeyedOperator):
    newest = ValueState(int)

    def on_event(self, event: sml.Record, ctx: sml.Context) -> None:
        self.newest.set(event.n)
        ctx.emit(event)


class KeepsInside(sml.KeyedOperator):
    newest = ValueState(list)

    def on_event(self, event: sml.Record, ctx: sml.Context) -> None:
        self.newest.set([event.n])
        ctx.emit(event)


@pytest.mark.parametrize("stored", [False, True])
def test_aggregates_take_a_huge_integer(run: Any, tmp_path: Path, stored: bool) -> None:
    fields = {"last": last("n"), "sum": total("n"), "max": maximum("n"), "distinct": distinct("n"), "mean": mean("n")}
    job = sml.Pipeline("p", schema=Reading).key_by("key").then(Features(fields=fields))
    items = [line("a", n=1), line("b", n=10**30), line("c", n=-(10**30)), line("d", n=10**400), line("e", n=2)]
    ran = run(job, items, state_dir=tmp_path / "state" if stored else None)
    assert [row["id"] for row in ran.main] == ["p/a", "p/b", "p/c", "p/e"]
    assert [record["id"] for record in ran.sides["rejected"]] == ["p/d"]  # it is no finite number


def test_a_value_that_state_can_not_hold_ends_the_run_with_the_key_and_the_state(run: Any, tmp_path: Path) -> None:
    job = sml.Pipeline("p", schema=Reading).key_by("key").then(KeepsInside())
    with pytest.raises(StateError, match=r"state of key 'k': a value in keeps_inside\.newest can't be stored.*64 bits"):
        run(job, [line("a", n=10**30)], state_dir=tmp_path / "state")


def test_an_event_whose_integer_state_can_not_hold_is_rejected(run: Any, tmp_path: Path) -> None:
    job = sml.Pipeline("p", schema=Reading).key_by("key").then(Keeps())
    ran = run(job, [line("a", n=10**30), line("b", n=1)], state_dir=tmp_path / "state")
    assert [row["id"] for row in ran.main] == ["p/b"]
    assert ["64 bits" in record["reason"] for record in ran.sides["rejected"]] == [True]


@pytest.mark.parametrize("batch_size", [1, 1024])
def test_a_null_among_the_keys_rejects_only_its_own_row_whatever_the_field_is_called(run: Any, batch_size: int) -> None:
    class Loose(sml.Event, time="ts"):
        key: str | None
        ts: int

    job = sml.Pipeline("p", schema=Loose).key_by("key").then(Features(fields={"count": count()}))
    keys = ["a", None, "a", "b"]
    ran = run(job, [json.dumps({"key": key, "ts": NOW}).encode() for key in keys], batch_size=batch_size)
    assert [(row["key"], row["count"]) for row in ran.main] == [("a", 1), ("a", 2), ("b", 1)]
    assert ["the key is null" in reason for reason in ran.reasons()] == [True]
