"""`keyed_stage` on streams of dicts, rows, tuples and events, in one job: each as the embedded engine."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamml as sml
from streamml.errors import PlanError, RecordError
from streamml.operators import Dedupe, Features, count, total, trailing

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pyflink") is None, reason="PyFlink is not installed"),
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Click(sml.Event, id="n", key="user", time="ts", rename={"amount": "paid"}):
    n: str
    user: str
    ts: int
    amount: float | None = None


NAMES = ["n", "user", "ts", "paid"]
DATA = [(f"c{n % 84}", f"u{n % 7}", 1_700_000_000_000 + n * 1000, n / 4) for n in range(100)]


def operators() -> list[Any]:
    return [Dedupe(ttl="1h"), Features(trailing("20s", tile="1s"), {"sum": total("amount"), "rows": count()})]


def embedded(lines: list[bytes], folder: Path) -> dict[str, Counter[bytes]]:
    """What the embedded engine makes of these records."""
    from streamml.connectors.uris import open_sink, open_source
    from streamml.local import LocalEngine, LocalOptions

    (folder / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    pipeline = sml.Pipeline("clicks", schema=Click).key_by("user")
    for operator in operators():
        pipeline = pipeline.then(operator)
    places = {side: folder / f"{side}.jsonl" for side in ("main", *pipeline.sides)}
    main, *sides = [open_sink(f"file:{place}") for place in places.values()]
    source = {"clicks": open_source(f"file:{folder / 'in.jsonl'}")}
    options = LocalOptions(state_dir=folder / "state")
    LocalEngine(pipeline, source, main, dict(zip(pipeline.sides, sides, strict=True)), options=options).run()
    return {side: Counter(place.read_bytes().splitlines()) for side, place in places.items() if place.exists()}


def test_every_kind_of_stream_gives_what_the_embedded_engine_gives(flink: None, tmp_path: Path) -> None:
    from pyflink.common import Configuration, Row, Types
    from pyflink.datastream import StreamExecutionEnvironment

    from streamml.flink import keyed_stage

    configuration = Configuration()
    configuration.set_string("python.executable", sys.executable)
    configuration.set_string("python.pythonpath", str(Path(__file__).parents[3]))  # this module, by its name
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(1)
    kinds = [Types.STRING(), Types.STRING(), Types.LONG(), Types.DOUBLE()]
    dicts: list[Any] = [dict(zip(NAMES, row, strict=True)) for row in DATA]
    lines = list(map(msgspec.json.encode, dicts))
    odd: list[Any] = [{**dicts[0], "paid": object}, {"n": "x"}, 7, "{broken", ("a", "b", 1, 2.0, "too many")]
    streams = {
        "text": env.from_collection([line.decode() for line in lines], Types.STRING()),
        "bytes": env.from_collection(lines),
        "dicts": env.from_collection([*dicts, *odd]),
        "named": env.from_collection([Row(*row) for row in DATA], Types.ROW_NAMED(NAMES, kinds)),
        "rows": env.from_collection([Row(*row) for row in DATA], Types.ROW(kinds)),
        "tuples": env.from_collection(DATA, Types.TUPLE(kinds)),
        "pickled": env.from_collection([Row(**row) if n % 2 else Row(*row.values()) for n, row in enumerate(dicts)]),
        "events": env.from_collection([Click(*row) for row in DATA]),
    }
    outputs: list[Any] = []
    for name, stream in streams.items():
        stage = keyed_stage(stream, operators(), schema=Click, name=name)
        for side in ("main", "duplicates", "rejected", "late"):
            out = stage.main if side == "main" else stage.side(side)
            outputs.append(out.map(Labelled(f"{name} {side} "), Types.STRING()))
        if name == "tuples":
            types = {"n": Types.STRING(), "rows": Types.LONG(), "sum": Types.DOUBLE(), "none": Types.LIST(Types.INT())}
            outputs.append(stage.rows(types).map(Labelled("typed main "), Types.STRING()))
            outputs.append(stage.rows({"n": Types.STRING()}, "duplicates").map(Labelled("typed side "), Types.STRING()))
    found: dict[tuple[str, str], Counter[bytes]] = {}
    with outputs[0].union(*outputs[1:]).execute_and_collect("inputs") as results:
        for line in results:
            name, side, record = line.split(" ", 2)
            found.setdefault((name, side), Counter())[record.encode()] += 1

    wanted = embedded(lines, tmp_path)
    assert wanted["main"].total() == 84
    assert wanted["duplicates"].total() == 16
    for name in streams:
        mine = {side: named(found.get((name, side), Counter()), name) for side in ("main", "duplicates", "late")}
        assert mine == {side: wanted.get(side, Counter()) for side in mine}, name
    rejected = [msgspec.json.decode(record) for record in found["dicts", "rejected"].elements()]
    assert sorted(record["reason"].partition(" - at")[0] for record in rejected) == [
        "Expected `float | null`, got `object`",
        "Expected `object`, got `array`",
        "Expected `object`, got `int`",
        "JSON is malformed: object keys must be strings (byte 1)",
        "Object missing required field `user`",
    ]
    assert {name for name, side in found if side == "rejected"} == {"dicts"}
    main = [msgspec.json.decode(record) for record in wanted["main"].elements()]
    assert found["typed", "main"] == Counter(
        str(Row(n=row["n"], rows=row["rows"], sum=row["sum"], none=None)).encode() for row in main
    )
    assert found["typed", "side"].total() == 16


class Labelled:
    """Adds where a record comes from."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __call__(self, value: Any) -> str:
        return f"{self._label}{value}"


def named(records: Counter[bytes], name: str) -> Counter[bytes]:
    """Put the embedded pipeline's name into ids."""
    return Counter({record.replace(f'"{name}/'.encode(), b'"clicks/'): n for record, n in records.items()})


def test_what_is_no_record_of_the_schema_is_refused_when_the_job_is_built(flink: None) -> None:
    from pyflink.common import Row, Types
    from pyflink.datastream import StreamExecutionEnvironment

    from streamml.flink import keyed_stage

    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)

    def stage(values: list[Any], kind: Any) -> Any:
        return keyed_stage(env.from_collection(values, kind), operators(), schema=Click)

    with pytest.raises(PlanError, match=r"a stream of Long; wanted JSON as Types.STRING\(\)"):
        stage([1], Types.LONG())
    two = [Types.STRING(), Types.STRING()]
    with pytest.raises(PlanError, match=r"rows \(n, usr\) lack user, ts of Click. Did you mean 'usr'\?"):
        stage([Row("a", "b")], Types.ROW_NAMED(["n", "usr"], two))
    with pytest.raises(PlanError, match=r"rows \(n, user\) lack ts of Click"):
        stage([("a", "b")], Types.TUPLE(two))
    with pytest.raises(PlanError, match=r"5 fields by position, but Click has 4 \(n, user, ts, paid\)"):
        stage([Row("a", "b", 1, 2, 3)], Types.ROW([*two, Types.LONG(), Types.LONG(), Types.LONG()]))
    made = stage(["{}"], Types.STRING())
    with pytest.raises(PlanError, match=r"field 'when': wanted a type that JSON has .* got TimestampTypeInfo"):
        made.rows({"when": Types.SQL_TIMESTAMP()})
    with pytest.raises(PlanError, match="'lat'"):
        made.rows({"n": Types.STRING()}, "lat")


def test_objects_become_json_and_what_json_cannot_hold_fits_no_field() -> None:
    from pyflink.common import Row, RowKind

    from streamml.flink.inputs import ToJson
    from streamml.flink.rows import ToRow

    to_json = ToJson(NAMES).map
    when = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    assert to_json({"n": when, "user": b"\1"}) == b'{"n":"2024-01-01T00:00:00Z","user":"AQ=="}'
    assert to_json(Row(n="a", user=Row(deep=1))) == b'{"n":"a","user":{"deep":1}}'
    assert to_json(Row("a", Row("b"))) == b'{"n":"a","user":["b"]}'
    assert ToJson(NAMES, by_position=True).map(Row(f0="a", f1="b")) == b'{"n":"a","user":"b"}'
    assert to_json(Row.of_kind(RowKind.DELETE, "a")).startswith(b'"-D of a changelog')
    loop: list[Any] = []
    loop.append(loop)
    assert to_json({"n": loop, "big": 2**70}).startswith(b'"{')
    to_row = ToRow({"n": int}, "clicks, main")
    to_row.open(None)
    with pytest.raises(RecordError, match=r"clicks, main: Expected `int \| null`, got `str` .*declare its type"):
        to_row.map('{"n":"a"}')
