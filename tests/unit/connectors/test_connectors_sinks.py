"""Sinks: two-phase commit, killed at every step and reopened."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.connectors import MemorySink, open_sink
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.connectors.parts_sink import PartsSink
from streamml.errors import ConnectorError, RecordError
from streamml.records import Batch

KINDS = ["jsonl", "jsonl.gz", "parquet", "arrow"]


def make(path: Path, kind: str, on_step: Callable[[str], None] | None = None, overwrite: bool = False) -> Any:
    if kind in ("parquet", "arrow"):
        return PartsSink(str(path), kind, on_step=on_step, overwrite=overwrite, group_rows=2)
    return FileSink(str(path), packed=kind == "jsonl.gz", on_step=on_step, overwrite=overwrite, copy_bytes=5)


def content(path: Path, kind: str) -> list[int]:
    """The numbers that a reader finds, by an independent way of reading."""
    if kind == "jsonl":
        data = path.read_bytes()
        assert data.endswith(b"\n") or not data  # only ever whole lines
        return [json.loads(line)["n"] for line in data.splitlines()]
    if kind == "jsonl.gz":
        done = subprocess.run(
            ["gzip", "-dc"], input=path.read_bytes(), capture_output=True, check=bool(path.stat().st_size)
        )
        return [json.loads(line)["n"] for line in done.stdout.splitlines()]
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[int] = []
    for part in sorted(path.glob("part-*")):
        table = pq.read_table(part, use_threads=False) if kind == "parquet" else pa.ipc.open_file(part).read_all()
        found += table.column("n").to_pylist()
    return found


def put(sink: Any, numbers: range) -> None:
    for n in numbers:
        sink.write_records([{"n": n}])


def job(path: Path, kind: str, store: Path, die_at: int) -> None:
    """Three checkpoints of three rows each and a rest; the process dies after its step number `die_at`."""
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            os._exit(7)

    last = json.loads(store.read_text()) if store.exists() else None
    sink = make(path, kind, step)
    sink.open(last["sink"] if last else None)
    for checkpoint in range(last["checkpoint"] + 1 if last else 1, 4):
        put(sink, range(checkpoint * 3 - 3, checkpoint * 3))
        prepared = sink.prepare(checkpoint)
        step("prepared")
        temporary = store.with_suffix(".tmp")
        temporary.write_text(json.dumps({"checkpoint": checkpoint, "sink": prepared}))
        os.replace(temporary, store)
        step("stored")
        sink.commit(checkpoint)
        sink.commit(checkpoint)  # idempotent
        put(sink, range(1000, 1003))  # what is written after it and never prepared is never seen
        if checkpoint < 3:
            sink.close()
            sink = make(path, kind, step)
            sink.open(prepared)
    sink.close()


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_killed_after_any_step_holds_the_committed_prefix_and_in_the_end_every_row_once(
    tmp_path: Path, kind: str
) -> None:
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    ran_through = False
    for die_at in range(1, 400):
        path, store = tmp_path / f"{die_at}.{kind}", tmp_path / f"{die_at}.store"
        codes = [forked(lambda: job(path, kind, store, die_at))]  # noqa: B023
        if codes[0] == 0:
            ran_through = True
            break
        assert codes == [7]
        assert forked(lambda: job(path, kind, store, die_at=2)) in (0, 7)  # noqa: B023 again, in the recovery
        last = json.loads(store.read_text()) if store.exists() else None
        recovered = make(path, kind)
        recovered.open(last["sink"] if last else None)
        assert content(path, kind) == list(range(3 * last["checkpoint"] if last else 0))
        put(recovered, range(2000, 2003))
        del recovered  # dropped, not closed
        assert forked(lambda: job(path, kind, store, die_at=0)) == 0  # noqa: B023
        assert content(path, kind) == list(range(9))
        left = [p.name for p in path.parent.glob(f"{path.name}.pending")] + [p.name for p in path.glob(".pending*")]
        assert left == []
    assert ran_through and die_at > 15


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("zeros", [False, True])
def test_an_append_torn_at_any_byte_is_finished(tmp_path: Path, kind: str, zeros: bool) -> None:
    path = tmp_path / f"x.{kind}"
    sink = make(path, kind)
    sink.open(None)
    put(sink, range(2))
    sink.prepare(1)
    sink.commit(1)
    put(sink, range(2, 4))
    prepared = sink.prepare(2)
    before, pending = path.read_bytes(), Path(f"{path}.pending").read_bytes()
    sink.close()  # a prepared commit outlives it
    assert len(pending) == prepared["pending_bytes"]
    for torn in range(len(pending) + 1):
        part = bytes(torn) if zeros else pending[:torn]
        path.write_bytes(before + part)
        Path(f"{path}.pending").write_bytes(pending + b"later, uncommitted")
        again = make(path, kind)
        again.open(prepared)
        assert path.read_bytes() == before + pending
        assert Path(f"{path}.pending").read_bytes() == b""
        again.close()
    assert content(path, kind) == list(range(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"{}\n"), "it has 3 bytes, fewer than the 16 that were committed"),
        (lambda path: path.unlink(), "it has 0 bytes, fewer than the 16"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:20] + b"xxxx{}\n"),
            "it has 27 bytes, and the 8 before byte 24 are not those that were committed",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:20]),
            r"it has 20 of 24 bytes, and .*\.pending \(0 bytes\) does not",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:20] + b"xxxx"),
            r"it has 24 of 24 bytes, and .*does not hold the 8",
        ),
    ],
)
def test_a_file_that_does_not_fit_the_checkpoint_is_refused_and_left_alone(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "x.jsonl"
    sink = FileSink(str(path))
    sink.open(None)
    put(sink, range(2))
    sink.prepare(1)
    sink.commit(1)
    put(sink, range(2, 3))
    prepared = sink.prepare(2)
    sink.commit(2)
    sink.close()
    change(path)
    there = path.read_bytes() if path.exists() else b""
    with pytest.raises(ConnectorError, match=f"restored checkpoint 2: {message}"):
        FileSink(str(path)).open(prepared)
    assert path.read_bytes() == there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("torn", ["committed", "appended", "prepared"])
def test_what_a_newer_checkpoint_committed_is_taken_back_with_an_older_one(
    tmp_path: Path, kind: str, torn: str
) -> None:
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{kind}"

    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        if name in ("appended", "part renamed") and torn == "appended" and len(prepared) == 3:
            raise Killed

    prepared: dict[int, Any] = {}
    sink = make(path, kind, die)
    sink.open(None)
    for checkpoint in (1, 2, 3):
        put(sink, range(checkpoint * 3 - 3, checkpoint * 3))
        prepared[checkpoint] = sink.prepare(checkpoint)
        if checkpoint < 3 or torn == "committed":
            sink.commit(checkpoint)
        elif torn == "appended":
            with pytest.raises(Killed):
                sink.commit(checkpoint)
    del sink
    steps: list[str] = []
    again = make(path, kind, steps.append)
    again.open(prepared[2])  # 3 is damaged
    assert content(path, kind) == list(range(6))
    del again
    again = make(path, kind, steps.append)
    again.open(prepared[1])  # and 2 as well
    assert content(path, kind) == list(range(3))
    assert "cut back" in steps or "later part removed" in steps
    put(again, range(3, 5))
    again.prepare(2)
    again.commit(2)
    again.close()
    assert content(path, kind) == list(range(5))


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    sink = make(tmp_path, "parquet")
    sink.open(None)
    prepared = {}
    for checkpoint in (1, 2):
        put(sink, range(1))
        prepared[checkpoint] = sink.prepare(checkpoint)
        sink.commit(checkpoint)
    sink.close()
    (tmp_path / "part-00000001.parquet").unlink()
    with pytest.raises(ConnectorError, match=r"checkpoint 2: its part part-00000001\.parquet is missing"):
        make(tmp_path, "parquet").open(prepared[2])
    with pytest.raises(ConnectorError, match="wanted a checkpoint of a arrow sink, version 1"):
        make(tmp_path, "arrow").open(prepared[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_job_overwrites_only_what_it_may(tmp_path: Path, kind: str) -> None:
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    path = tmp_path / "deep" / f"x.{kind}"
    sink = make(path, kind)
    sink.open(None)
    put(sink, range(1))
    assert content(path, kind) == []
    sink.prepare(1)
    assert content(path, kind) == []
    sink.commit(1)
    sink.close()
    assert content(path, kind) == [0]
    with pytest.raises(ConnectorError, match="overwrite=True"):
        make(path, kind).open(None)
    assert content(path, kind) == [0]
    sink = make(path, kind, overwrite=True)
    sink.open(None)
    assert content(path, kind) == []
    sink.close()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_written_between_prepare_and_commit_belong_to_the_next_commit(tmp_path: Path, kind: str) -> None:
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{kind}"
    sink = make(path, kind)
    sink.open(None)
    put(sink, range(3))
    sink.prepare(1)
    put(sink, range(3, 6))
    sink.commit(1)
    assert content(path, kind) == [0, 1, 2]
    sink.prepare(2)
    put(sink, range(6, 7))
    sink.prepare(3)  # 2 was given up: its rows go with 3
    sink.commit(2)
    assert content(path, kind) == [0, 1, 2]
    sink.commit(3)
    assert content(path, kind) == list(range(7))
    sink.close()


def test_a_large_commit_is_whole_and_a_record_error_writes_nothing_of_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    sink = FileSink(str(path))
    sink.open(None)
    batch = Batch(
        [{"x": "y" * 1000, "bad": 1}] * 4000, times=[0] * 4000, ids=["i"] * 4000, watermarks=[0] * 4000, watermark=0
    )
    sink.write(batch, ["x"])
    assert Path(f"{path}.pending").stat().st_size > 3_000_000  # not held until the commit
    poison = Batch([{"x": 1}, {"x": print}], times=[0, 0], ids=["a", "b"], watermarks=[0, 0], watermark=0)
    with pytest.raises(RecordError, match="event 'b', field 'x'"):
        sink.write(poison, ["x"])
    sink.prepare(1)
    sink.commit(1)
    sink.close()
    assert path.read_bytes() == (b'{"id":"i","x":"' + b"y" * 1000 + b'"}\n') * 4000


def test_another_process_can_not_write_to_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    sink = FileSink(str(path))
    sink.open(None)
    code = f"from streamml.connectors import open_sink; open_sink({str(path)!r}).open(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is writing to it" in done.stderr
    sink.close()


def test_a_full_disk_is_an_error_that_says_so_and_no_later_step_is_made(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    sink = FileSink(str(path))
    sink.open(None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, sink._pending)
    os.close(full)
    put(sink, range(1))
    with pytest.raises(ConnectorError, match=r"No space left on device\..*free some space"):
        sink.prepare(1)
    with pytest.raises(ConnectorError, match="an earlier write failed"):
        sink.prepare(2)
    sink.close()


@settings(max_examples=60, deadline=None)
@given(ops=st.lists(st.sampled_from(["write", "checkpoint", "crash", "crash between", "write"]), max_size=25))
def test_memory_sink_equals_a_list_that_is_cut_at_each_crash(ops: list[str]) -> None:
    sink, number = MemorySink(), 0
    sink.open(None)
    prepared: dict[str, Any] | None = None
    committed: list[int] = []
    pending: list[int] = []
    for op in ops:
        if op == "write":
            number += 1
            sink.write_records([{"n": number}])
            pending.append(number)
        elif op == "crash":
            sink.open(prepared)
            committed, pending = (committed if prepared else []), []
        else:
            prepared = sink.prepare(number)
            assert [row["n"] for row in sink.rows] == committed
            committed, pending = committed + pending, []
            if op == "crash between":
                sink.open(prepared)
            else:
                sink.commit(number)
                sink.commit(number)
        assert [row["n"] for row in sink.rows] == committed
        assert [row["n"] for row in sink.pending] == pending


def test_a_column_that_changes_its_type_begins_another_part_and_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows: list[dict[str, Any]] = [
        *({"x": x} for x in (None, 1, 2, 2.5, "text")), {"x": "more", "y": [1]}, {"x": float("inf")}, {"x": b"\xff"}
    ]  # fmt: skip
    sink = make(tmp_path, "parquet")
    sink.open(None)
    for row in rows:
        sink.write_records([row])
    with pytest.raises(RecordError, match="field 'x': wanted values of one type that Arrow knows, got int, str"):
        sink.write_records([{"x": 1}, {"x": "mixed"}])
    sink.prepare(1)
    sink.commit(1)
    sink.close()
    source = FileSource(str(tmp_path))
    source.open(None)
    found: list[Any] = []
    while not source.finished:
        if (chunk := source.poll(100, 0.0)) is not None:
            found += chunk.payloads
    assert [row["x"] for row in found] == [row["x"] for row in rows]
    assert [row.get("y") for row in found] == [row.get("y") for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_comes_back_as_it_was_written(tmp_path: Path, kind: str) -> None:
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    path = str(tmp_path / f"x.{kind}")
    sink = open_sink(path)
    sink.open(None)
    values = [{"s": f"é\n{n}", "f": n / 3, "n": None, "l": [n]} for n in range(5)]
    batch = Batch(values, times=[0] * 5, ids=[f"e{n}" for n in range(5)], watermarks=[0] * 5, watermark=0)
    for checkpoint in (1, 2):
        sink.write(batch, ["f", "s", "n", "l"])
        sink.prepare(checkpoint)
        sink.commit(checkpoint)
    sink.close()
    if kind == "jsonl.gz":
        assert gzip.decompress(Path(path).read_bytes()).count(b"\n") == 10
    source = FileSource(path)
    source.open(None)
    found: dict[str, list[Any]] = {}
    while not source.finished:
        if (chunk := source.poll(3, 0.0)) is not None:
            rows = [json.loads(p) if isinstance(p, bytes) else p for p in chunk.payloads]
            found.setdefault(chunk.runs[0][0], []).extend(rows)
    want = [{"id": f"e{n}", **value} for n, value in enumerate(values)]
    assert [row for part in sorted(found) for row in found[part]] == want * 2
