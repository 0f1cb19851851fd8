"""Our operators in a Beam pipeline: what goes in, what comes out, in which order, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import streamml as sml
from streamml.errors import PlanError, UnsupportedError
from streamml.operators import (
    Dedupe,
    Features,
    Filter,
    Map,
    Session,
    Window,
    count,
    since_last,
    total,
    trailing,
    tumbling,
)
from streamml.testing import advance, event
from streamml.testing import run as run_locally

beam = pytest.importorskip("apache_beam")

from apache_beam.transforms.window import FixedWindows  # noqa: E402
from beam_streams import stream  # noqa: E402

from streamml.beam import KeyedStage, transform  # noqa: E402

ROOT = Path(__file__).parents[3]
Play = Callable[..., dict[str, list[Any]]]


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    ts: int


class Named(NamedTuple):
    tx_id: str
    card_id: str
    amount: float
    ts: int


@dataclasses.dataclass
class Plain:
    tx_id: str
    card_id: str
    amount: float
    ts: int


ROWS = [{"tx_id": f"t{n}", "card_id": f"c{n % 3}", "amount": float(n), "ts": 1_000 * n} for n in range(12)]
FORMS: dict[str, tuple[Callable[[dict[str, Any]], Any], Any]] = {
    "dict": (dict, dict[str, Any]),
    "bytes": (msgspec.json.encode, bytes),
    "str": (lambda row: msgspec.json.encode(row).decode(), str),
    "named tuple": (lambda row: Named(**row), Named),
    "dataclass": (lambda row: Plain(**row), Plain),
    "row": (lambda row: beam.Row(**row), beam.Row),
    "event": (lambda row: Payment(**row), Payment),
}
CHAIN = [
    Dedupe(ttl="1h"),
    Features(trailing("5s", tile="500ms"), {"n": count(), "spent": total("amount")}),
    Session(gap="4s", fields={"idle": since_last()}),
]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the embedded engine makes of the rows, when they come in order and the watermark is right behind each."""
    script: list[Any] = []
    for row in sorted(rows, key=lambda row: (row["ts"], row["tx_id"])):
        script += [advance(row["ts"]), event(row["card_id"], t=row["ts"], id=row["tx_id"], amount=row["amount"])]
    pipeline = sml.Pipeline("payment", schema=Payment).key_by("card_id")
    for operator in CHAIN:
        pipeline = pipeline.then(operator)
    made = run_locally(pipeline, script).main
    return [{"id": record.id, **msgspec.to_builtins(record.value), **record.fields} for record in made]


def ordered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: (record["card_id"], record["ts"], record["id"]))


def test_a_bounded_read_in_any_order_gives_what_a_stream_in_order_gives(play: Play) -> None:
    rows = [*ROWS, *ROWS[3:6]]
    random.Random(5).shuffle(rows)

    def build(pipeline: Any) -> dict[str, Any]:
        stage = pipeline | beam.Create(rows) | KeyedStage(CHAIN, schema=Payment)
        return {"main": stage.main, "duplicates": stage.side("duplicates"), "late": stage.late}

    found = play(build)
    assert ordered(found["main"]) == ordered(in_order(rows))
    assert [len(found[name]) for name in ("duplicates", "late")] == [3, 0]


def test_a_stream_that_is_sorted_by_event_time_gives_the_same_although_rows_come_out_of_order(play: Play) -> None:
    rows = list(ROWS)
    for at in range(0, len(rows), 4):
        rows[at : at + 4] = reversed(rows[at : at + 4])

    def build(pipeline: Any) -> dict[str, Any]:
        events = pipeline | stream(rows, 5_000) | beam.Map(dict).with_output_types(dict)
        stage = events | KeyedStage(CHAIN, schema=Payment, order="event_time", key_groups=2)
        return {"main": stage.main, "late": stage.late, "rejected": stage.rejected}

    found = play(build, streaming=True)
    assert (found["late"], found["rejected"]) == ([], [])
    assert ordered(found["main"]) == ordered(in_order(rows))


def test_elements_of_every_form_are_the_same_events(play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        made = {}
        for name, (form, kind) in FORMS.items():
            events = pipeline | f"{name} rows" >> beam.Create([form(row) for row in ROWS])
            typed = events | f"{name} typed" >> beam.Map(_same).with_output_types(kind)
            made[name] = (typed | name >> KeyedStage(CHAIN, schema=Payment, name="payment")).main
        return made

    found = play(build)
    for name in FORMS:
        assert ordered(found[name]) == ordered(in_order(ROWS)), name


def test_a_watermark_that_is_followed_by_steps_tells_the_late_from_the_early(play: Play) -> None:
    """A long way behind: late. Within a step: perhaps. In time: never late."""
    rows = [*ROWS, {**ROWS[0], "tx_id": "old", "ts": 1_000}, {**ROWS[0], "tx_id": "early", "ts": 9_500}]

    def build(pipeline: Any) -> dict[str, Any]:
        events = pipeline | stream(rows, 2_000) | beam.Map(dict).with_output_types(dict)
        operators = [Session(gap="4s", fields={"n": count()})]
        stage = events | KeyedStage(operators, schema=Payment, watermark_step="500ms", key_groups=1)
        return {"main": stage.main, "late": stage.late}

    found = play(build, streaming=True)
    assert [record["id"] for record in found["late"]] == ["payment/old"]
    assert {record["id"] for record in found["main"]} >= {"payment/early", "payment/t11"}


def test_results_keep_their_event_time_so_that_beams_windows_may_follow(play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        stage = (
            pipeline
            | beam.Create(ROWS)
            | KeyedStage([Window(tumbling("4s"), {"n": count()})], schema=Payment, form="json")
        )
        sizes = (
            stage.main
            | beam.Map(lambda line: ("all", msgspec.json.decode(line)["n"])).with_output_types(tuple[str, int])
            | beam.WindowInto(FixedWindows(4))
            | beam.CombinePerKey(sum)
        )
        return {"main": stage.main, "sizes": sizes}

    found = play(build)
    assert all(isinstance(line, bytes) for line in found["main"])
    assert found["sizes"] == [("all", 4)] * 3


def test_rows_with_a_schema_go_on_into_beams_relational_transforms(play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        stage = (
            pipeline
            | beam.Create(ROWS)
            | KeyedStage(
                [Map(lambda e: {"doubled": e.amount * 2}, adding=["doubled"])],
                schema=Payment,
                select=["card_id", "doubled"],
                form="row",
                types={"doubled": float},
            )
        )
        sums = stage.main | beam.GroupBy("card_id").aggregate_field("doubled", sum, "total")
        return {"sums": sums}

    found = play(build)
    assert sorted((row.card_id, row.total) for row in found["sums"]) == [("c0", 36.0), ("c1", 44.0), ("c2", 52.0)]


def test_one_operator_alone_is_a_transform_with_a_key_or_without(play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        events = pipeline | beam.Create([*ROWS, ROWS[0], {"tx_id": "broken"}])
        unique = events | transform(Dedupe(ttl="1h"), schema=Payment)
        large = events | transform(Filter(lambda e: e.amount > 9), schema=Payment)
        return {"unique": unique.main, "large": large.main, "rejected": large.rejected}

    found = play(build)
    assert len(found["unique"]) == len(ROWS)
    assert [record["tx_id"] for record in found["large"]] == ["t10", "t11"]
    assert [record["reason"] for record in found["rejected"]] == ["Object missing required field `card_id`"]


def test_a_row_that_can_not_travel_is_rejected_alone(play: Play) -> None:
    def build(pipeline: Any) -> dict[str, Any]:
        from streamml.beam.graph import Stages
        from streamml.beam.settings import StageSettings

        opened = Map(lambda e: {"lock": threading.Lock() if e.tx_id == "t3" else None}, adding=["lock"])
        plan = sml.Pipeline("payment", schema=Payment).then(opened).key_by("card_id").then(Dedupe())
        graph = pipeline | beam.Create(ROWS) | Stages(plan.select("tx_id"), StageSettings(), "test")
        return {"main": graph.main, "rejected": graph.side("rejected")}

    found = play(build)
    assert len(found["main"]) == len(ROWS) - 1
    assert [(record["id"], record["operator"]) for record in found["rejected"]] == [("payment/t3", "encode")]


def test_what_makes_no_sense_is_refused_when_the_pipeline_is_built() -> None:
    pipeline = beam.Pipeline()
    rows = pipeline | beam.Create(ROWS)
    with pytest.raises(PlanError, match=r"not known.*with_output_types"):
        _ = rows | "any" >> beam.Map(_same) | "untyped" >> KeyedStage(CHAIN, schema=Payment)
    with pytest.raises(PlanError, match="wanted elements that are bytes"):
        _ = rows | "n" >> beam.Map(len).with_output_types(int) | "numbers" >> KeyedStage(CHAIN, schema=Payment)
    with pytest.raises(PlanError, match="GlobalWindows"):
        _ = rows | beam.WindowInto(FixedWindows(1)) | "windowed" >> KeyedStage(CHAIN, schema=Payment)
    with pytest.raises(UnsupportedError, match="bounded"):
        _ = rows | "arrival" >> KeyedStage(CHAIN, schema=Payment, order="arrival")
    with pytest.raises(PlanError, match="rejected"):
        (rows | "side" >> KeyedStage(CHAIN, schema=Payment)).side("rejcted")
    with pytest.raises(PlanError, match="no_such"):
        KeyedStage(CHAIN, schema=Payment, key="no_such")
    with pytest.raises(PlanError, match="xml"):
        KeyedStage(CHAIN, schema=Payment, form="xml")
    with pytest.raises(PlanError, match="batch_size"):
        KeyedStage(CHAIN, schema=Payment, bach_size=5)
    with pytest.raises(PlanError, match="select="):
        KeyedStage(CHAIN, schema=Payment, form="row")
    with pytest.raises(PlanError, match="types="):
        KeyedStage(CHAIN, schema=Payment, form="row", select=["spent"])


def _same(element: Any) -> Any:
    return element


def test_the_example_flags_what_a_count_by_hand_flags(tmp_path: Path) -> None:
    rows = [
        {"tx_id": f"t{n}", "card_id": f"c{n % 5}", "amount": 1.5, "ts": 1_000 * (n + 30 * (n // 25))}
        for n in range(100)
    ]
    lines = [msgspec.json.encode(row) for row in rows]
    lines.insert(50, lines[49])
    lines.append(b"{broken")
    path = tmp_path / "payments.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "beam_custom_pipeline.py"), str(path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = done.stdout.splitlines()
    times: dict[Any, list[int]] = {}
    bursts = []
    for row in rows:
        mine = times.setdefault(row["card_id"], [])
        mine.append(row["ts"])  # type: ignore[arg-type]
        if sum(row["ts"] - 60_000 < t <= row["ts"] for t in mine) > 3:  # type: ignore[operator]
            bursts.append(row["tx_id"])
    found = [line.removeprefix("burst> ") for line in shown if line.startswith("burst> ")]
    assert sorted(msgspec.json.decode(line)["tx_id"] for line in found) == sorted(bursts)
    assert 10 < len(bursts) < 90
    assert sum(line.startswith("duplicate> ") for line in shown) == 1
    assert sum(line.startswith("rejected> ") for line in shown) == 1
