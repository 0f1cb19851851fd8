"""The logs between workers: what is seen, what is kept, what is refused; and that rows come out as they went in."""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamml as sml
from streamml.errors import ConnectorError, RecordError
from streamml.generate.payments import payments
from streamml.keying import Keying
from streamml.local.exchange_log import Block, LogWriter, Note
from streamml.local.exchange_order import Mark, Order
from streamml.local.exchange_reader import LogReader
from streamml.local.exchange_rows import RowCodec
from streamml.local.exchange_sink import ExchangeSink
from streamml.local.exchange_source import ExchangeSource
from streamml.local.share import Share
from streamml.pipeline import StageSpec
from streamml.records import Batch
from streamml.state.workers import WorkerFolders


class Click(sml.Event, id="id", time="ts"):
    id: str
    ts: int
    shop: str | None = None


class Visit(sml.Event, id="id", time="at"):
    id: str
    at: datetime
    more: Any = None


def batch(rows: int, first: int = 0) -> Batch:
    numbers = range(first, first + rows)
    return Batch(
        [Click(f"c{n}", 10**12 + n) for n in numbers],
        times=[10**12 + n for n in numbers],
        ids=[f"p/c{n}" for n in numbers],
        watermarks=[10**12 + n // 3 for n in numbers],
        watermark=10**12 + (first + rows) // 3,
        keys=[f"k{n % 7}" for n in numbers],
        fields={"x": [n / 3 for n in numbers]},
    )


VALUES = [
    None,
    1,
    2**63,
    -(2**70),
    -0.0,
    "a",
    b"\xff",
    (1, ("b",)),
    [1, {"c": {2, 3}}],
    Decimal("1.50"),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5))),
    {1: "one"},
    Click("c", 1, None),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    codec = RowCodec([Click, Visit])
    event = Visit("v", datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5))), value)
    for made in (value, event):
        rows = batch(3)
        rows.values = [made, made, made]
        rows.fields = {"x": [0.5, made, made], "y": [1, 2, None]}
        rows.traces = ["t", None, "u"]
        rows.keys = [("a", 1), 2**64 - 1, b"k"] if made is event else ["a", 7, b"k"]
        back = codec.decode(codec.encode(rows, [b"1", b"2", b"3"]))
        assert repr(back.values) == repr(rows.values) and repr(back.fields) == repr(rows.fields)
        assert (back.times, back.ids, back.watermarks) == (rows.times, rows.ids, rows.watermarks)
        assert back.keys == rows.keys
        assert (back.traces, back.tags, back.entries) == (rows.traces, None, [b"1", b"2", b"3"])


def test_not_a_number_and_events_of_several_schemas_come_out_as_they_went_in() -> None:
    codec = RowCodec([Click, Visit])
    rows = batch(2)
    rows.values = [Click("a", 1), Visit("b", datetime(2026, 1, 1, tzinfo=UTC))]
    rows.fields, rows.tags = {"x": [math.nan, math.inf]}, ["clicks", "visits"]
    back = codec.decode(codec.encode(rows, [b"", b""]))
    assert back.values == rows.values and back.tags == rows.tags
    assert math.isnan(back.fields["x"][0]) and back.fields["x"][1] == math.inf


def test_a_row_that_no_other_process_could_read_is_refused_alone() -> None:
    rows = batch(1)
    rows.values = [lambda: None]
    with pytest.raises(RecordError, match="must be plain data or be picklable"):
        RowCodec([]).encode(rows, [b""])
    with pytest.raises(RecordError, match="can't be read"):
        RowCodec([]).decode(b"\x90")


def writer(folder: Path, consumers: int = 2, **more: Any) -> LogWriter:
    return LogWriter(folder, consumers, **{"file_bytes": 1 << 20, "fsync": False, "step": lambda name: None, **more})


def block(number: int) -> bytes:
    return Block(0, Mark(0, number, b""), [b"x" * 50, b"y" * 50]).encode()


def read(reader: LogReader) -> list[int]:
    found = []
    while (found_block := reader.next()) is not None:
        found.append(found_block.mark.watermark)
    return found


def test_a_block_is_seen_once_it_is_committed_and_not_before(tmp_path: Path) -> None:
    log, reader = writer(tmp_path / "log"), LogReader(tmp_path / "log", 0, 2)
    assert read(reader) == []  # not even the folder is there
    log.open(0, 0)
    log.append(block(1))
    end = log.prepare()
    assert read(reader) == []
    log.commit(end, 1)
    log.append(block(2))
    log.prepare()
    assert read(reader) == [1]
    log.close()
    again = writer(tmp_path / "log")  # it goes on from its checkpoint: block 2 was never committed
    again.open(end, 1)
    again.append(block(3))
    again.commit(again.prepare(), 2)
    assert read(reader) == [3]
    again.close()
    reader.close()


def test_a_commit_that_was_cut_off_is_finished_by_the_next_start(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.open(0, 0)
    log.append(block(1))
    end = log.prepare()
    log.close()
    log = writer(tmp_path)
    log.open(end, 1)
    reader = LogReader(tmp_path, 0, 2)
    assert read(reader) == [1]
    log.close()
    reader.close()
    next(tmp_path.glob("*.log")).write_bytes(b"")
    with pytest.raises(ConnectorError, match=f"it ends at byte 0, and {end} were committed"):
        writer(tmp_path).open(end, 1)


def test_files_go_when_no_checkpoint_of_any_consumer_needs_them(tmp_path: Path) -> None:
    log = writer(tmp_path, file_bytes=300)
    log.open(0, 0)
    ends = [0]
    for number in range(12):
        log.append(block(number))
        ends.append(log.prepare())
        log.commit(ends[-1], number)
    files = sorted(int(path.stem) for path in tmp_path.glob("*.log"))
    assert len(files) > 3 and set(files) <= set(ends)
    first, second = (LogReader(tmp_path, me, 2) for me in (0, 1))
    assert read(first) == list(range(12))
    first.tell(ends[-1])
    assert sorted(int(path.stem) for path in tmp_path.glob("*.log")) == files  # the other has read nothing
    log.close()
    log = writer(tmp_path, file_bytes=300)
    log.open(ends[-1], 11)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.log")) == files
    second.at = files[2] - 1
    second.tell(files[2] - 1)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.log")) == files[1:]
    second.at = 0
    assert log.unread() == ends[-1] - files[2] + 1
    second.at = ends[-1]
    second.tell(ends[-1])
    assert sorted(int(path.stem) for path in tmp_path.glob("*.log")) == files[-1:]
    for item in (log, first, second):
        item.close()


@pytest.mark.parametrize("at", [0, 5, 9, 40, -1])
def test_a_damaged_block_is_refused(tmp_path: Path, at: int) -> None:
    log = writer(tmp_path)
    log.open(0, 0)
    log.append(block(1))
    log.commit(log.prepare(), 1)
    log.close()
    path = next(tmp_path.glob("*.log"))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    reader = LogReader(tmp_path, 0, 2)
    with pytest.raises(ConnectorError, match=r"the block at byte 0 is damaged.*from a backup"):
        reader.next()
    reader.close()


def test_a_note_that_is_not_whole_says_nothing(tmp_path: Path) -> None:
    note = Note(tmp_path / "end")
    note.write(7, 3)
    data = (tmp_path / "end").read_bytes()
    for damaged in (b"", data[:-1], b"\0" + data[1:-1] + b"\1"):
        (tmp_path / "end").write_bytes(damaged)
        assert note.read() is None
    note.close()


def sink(folder: Path, **more: Any) -> ExchangeSink:
    order = Order(0)
    keying = Keying(StageSpec("stage2", {"clicks": lambda event: event.id}, ()))
    options = {"groups": 8, "workers": 2, "most_unread": 1 << 30, "file_bytes": 1 << 20, "fsync": False, **more}
    return ExchangeSink(folder, keying, RowCodec([Click]), order, **options)


def send(out: ExchangeSink, rows: Batch) -> None:
    out._order.number(rows, range(len(rows)), len(rows))
    keyed, bad = out.key(rows)
    assert not bad
    out.write(keyed, None)
    out.passed(rows.watermark)


def received(folder: Path, workers: int = 1) -> list[str]:
    """What both consumers get."""
    found = []
    for me in (0, 1):
        source = ExchangeSource(folder, me, workers, RowCodec([Click]), None, ended=lambda: True, keep=3)
        if workers == 1:
            source._channels[0].reader = LogReader(folder / "worker-0000", me, 2)
            source._channels[0]._me = me
        source.open(None)
        while source.poll(100, 0.0) is not None:
            found += source.batch.ids
        source.close()
    return sorted(found)


def test_rows_that_the_log_has_are_left_out_when_an_older_checkpoint_is_restored(tmp_path: Path) -> None:
    folder = tmp_path / "worker-0000"
    out = sink(folder)
    out.open(None)
    taken = []
    for number in range(4):
        send(out, batch(10, 10 * number))
        taken.append(out.prepare(number + 1))
        out.commit(number + 1)
    out.close()
    again = sink(folder)
    again.open(taken[1])
    send(again, batch(13, 20))  # cut into micro-batches in another way
    again.prepare(3)
    again.commit(3)
    send(again, batch(17, 33))
    again.prepare(4)
    again.commit(4)
    again.close()
    assert received(tmp_path) == sorted(f"p/c{n}" for n in range(50))


def test_a_worker_that_is_too_far_ahead_waits_for_the_slowest_consumer(tmp_path: Path) -> None:
    folder = tmp_path / "worker-0000"
    out = sink(folder, most_unread=2_000)
    out.open(None)
    readers = [LogReader(folder, me, 2) for me in (0, 1)]
    number = 0
    while not out.full(0.0):
        send(out, batch(10, 10 * number))
        out.prepare(number)
        out.commit(number)
        number += 1
    assert 2 < number < 40
    read(readers[0])
    readers[0].tell()
    assert out.full(0.02)  # the other one has read nothing
    waited = threading.Event()

    def wait() -> None:
        assert not out.full(60.0)
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    read(readers[1])
    readers[1].tell()
    thread.join(60)
    assert waited.is_set()
    for item in (out, *readers):
        item.close()


def load_jobs() -> ModuleType:
    path = Path(__file__).parents[2] / "faults" / "exchange_job.py"
    spec = importlib.util.spec_from_file_location("exchange_job", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["exchange_job"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_damaged_checkpoint_of_a_worker_that_writes_or_reads_an_exchange_changes_nothing(tmp_path: Path) -> None:
    jobs = load_jobs()
    input = tmp_path / "in.jsonl"
    lines = list(payments(1_500, cards=100, max_disorder="1s", late=0.03, late_by="5s", malformed=0.01))
    input.write_bytes(b"".join(line + b"\n" for line in lines))
    alone = tmp_path / "alone"
    alone.mkdir()
    jobs.run_all("shops", str(input), alone, WorkerFolders(alone / "state"))
    there = WorkerFolders(tmp_path / "state", 2, 1, 2)
    options = {"batch_size": 50, "checkpoint_interval": "0s"}
    jobs.run_all("shops", str(input), tmp_path, there, stops=[1_000, 900], options=options)
    for segment in (0, 1):
        newest = max(there.folder(0, segment).glob("checkpoints/chk-*"))
        manifest = next(path for path in newest.iterdir() if path.is_file())
        manifest.write_bytes(manifest.read_bytes()[:-10])
    for segment, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        result = jobs.build("shops", str(input), tmp_path, Share(index, 2, 1, segment, 2), options=options).run()
        assert len(result.problems) == (index == 0)
    assert jobs.results(tmp_path) == jobs.results(alone)
