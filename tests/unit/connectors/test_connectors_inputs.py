"""Standard input, memory, Parquet and Arrow as sources."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamml.connectors import MemorySource
from streamml.connectors.files import FileSource
from streamml.connectors.stdin import StdinSource
from streamml.errors import ConnectorError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def test_idle_stdin_does_not_block_and_a_partial_line_waits(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    source = StdinSource(reading)
    source.open(None)
    assert source.poll(10, 0.0) is None
    os.write(writing, b"a\nb\nc")
    first = source.poll(1, 10.0)
    assert first is not None and (first.payloads, list(first.offsets)) == ([b"a"], [0])
    assert source.poll(10, 0.0).payloads == [b"b"]  # type: ignore[union-attr]
    assert source.poll(10, 0.01) is None
    assert not source.finished and list(source.partitions()) == ["stdin"]
    os.close(writing)
    assert source.poll(10, 10.0).payloads == [b"c"]  # type: ignore[union-attr]
    assert source.finished and list(source.partitions()) == []


def test_stdin_is_not_replayable_and_counts_on_after_a_restart(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    source = StdinSource(reading)
    source.open(None)
    os.write(writing, b"a\nb\n")
    source.poll(2, 1.0)
    assert source.replayable is False
    again = StdinSource(reading)
    again.open(json.loads(json.dumps(source.positions())))
    os.write(writing, b"c\n")
    assert list(again.poll(1, 1.0).offsets) == [2]  # type: ignore[union-attr]


def test_stdin_of_a_real_process_ends_with_it() -> None:
    code = (
        "from streamml.connectors import open_source\n"
        "source = open_source('-'); source.open(None); found = []\n"
        "while not source.finished:\n"
        "    chunk = source.poll(2, 5.0)\n"
        "    found += chunk.payloads if chunk else []\n"
        "print(found)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"a\n\nb", capture_output=True, check=True)
    assert done.stdout == b"[b'a', b'', b'b']\n"


def rest(source: Any, limit: int = 2) -> list[tuple[str, Any]]:
    found = []
    while not source.finished:
        if (chunk := source.poll(limit, 0.0)) is not None:
            found += [(chunk.runs[0][0], payload) for payload in chunk.payloads]
    return found


@pytest.mark.parametrize("items", [[b"1", {"x": 2}, b"3", b"4", b"5"], {"p": [b"1", b"2"], "q": [], "r": [b"3"]}])
def test_memory_resumes_at_every_position(items: Any) -> None:
    def make() -> MemorySource:
        return MemorySource(items, partitions=2)

    whole = make()
    whole.open(None)
    want = rest(whole, 1)
    assert len(want) == (len(items) if isinstance(items, list) else 3)
    for taken in range(len(want) + 1):
        first = make()
        first.open(None)
        for _ in range(taken):
            first.poll(1, 0.0)
        second = make()
        second.open(json.loads(json.dumps(first.positions())))
        assert rest(second, 1) == want[taken:]


def test_memory_refuses_a_position_behind_its_end() -> None:
    source = MemorySource([b"1", b"2"])
    source.open(None)
    source.poll(2, 0.0)
    with pytest.raises(ConnectorError, match="continues at record 2, but there are 1"):
        MemorySource([b"1"]).open(source.positions())


pa = pytest.importorskip("pyarrow")
ROWS = [
    {
        "x": n,
        "y": None if n == 3 else n / 2,
        "s": f"é{n}",
        "maybe": None if n % 2 else "t",
        "b": n > 3,
        "t": datetime.datetime(2026, 1, 1 + n, tzinfo=datetime.UTC),
        "raw": b"\xff",
        "list": [n, n],
    }
    for n in range(7)
]


def write(path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        new = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_a_table_resumes_at_every_row_with_equal_values(tmp_path: Path, kind: str, limit: int) -> None:
    path = tmp_path / f"x.{kind.split()[0]}"
    write(path, ROWS, kind)
    for taken in range(len(ROWS) + 1):
        first = FileSource(str(path))
        first.open(None)
        found: list[Any] = []
        while len(found) < taken:
            found += first.poll(min(limit, taken - len(found)), 0.0).payloads  # type: ignore[union-attr]
        assert found == ROWS[:taken]
        second = FileSource(str(path))
        second.open(json.loads(json.dumps(first.positions())))
        assert [payload for _, payload in rest(second, limit)] == ROWS[taken:]


def test_values_of_a_table_are_plain_python_values(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", ROWS, "parquet")
    source = FileSource(str(tmp_path / "x.parquet"))
    source.open(None)
    first = source.poll(1, 0.0).payloads[0]  # type: ignore[union-attr]
    assert [type(value) for value in first.values()] == [int, float, str, str, bool, datetime.datetime, bytes, list]


def test_a_folder_is_read_part_by_part_without_hidden_files(tmp_path: Path) -> None:
    for name in ("part-1.parquet", "part-0.parquet", ".pending-part-2.parquet", "_SUCCESS"):
        write(tmp_path / name, ROWS[:2], "parquet")
    source = FileSource(str(tmp_path))
    source.open(None)
    assert list(source.partitions()) == ["part-0.parquet", "part-1.parquet"]
    assert (source.progress(), source.lag()) == (0.0, {"part-0.parquet": 2, "part-1.parquet": 2})
    assert len(rest(source)) == 4 and source.progress() == 1.0


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_table_is_an_error_that_says_so(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"x.{kind}"
    write(path, ROWS, kind)
    path.write_bytes({"empty": b"", "text": b'{"x": 1}\n' * 99, "cut": path.read_bytes()[:-40]}[damage])
    source = FileSource(str(path))
    with pytest.raises(ConnectorError, match=f"wanted a {kind} file, but at row 0.*damaged, still being written"):
        source.open(None)
        rest(source)


def test_a_table_that_was_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, ROWS, "parquet")
    source = FileSource(str(path))
    source.open(None)
    source.poll(2, 0.0)
    write(path, ROWS[1:], "parquet")
    with pytest.raises(ConnectorError, match="It was replaced"):
        FileSource(str(path)).open(source.positions())


def test_nanoseconds_are_cut_and_doubled_columns_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"t": pa.array([1_000_001], pa.timestamp("ns", "UTC"))}), tmp_path / "ns.parquet")
    source = FileSource(str(tmp_path / "ns.parquet"))
    source.open(None)
    assert rest(source)[0][1] == {"t": datetime.datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=datetime.UTC)}
    pq.write_table(pa.table([[1], [2]], names=["x", "x"]), tmp_path / "two.parquet")
    with pytest.raises(ConnectorError, match="got 'x' twice"):
        FileSource(str(tmp_path / "two.parquet")).open(None)


def test_without_pyarrow_the_error_names_the_extra_and_other_formats_work(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    (tmp_path / "x.jsonl").write_bytes(b"{}\n")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from streamml.connectors import open_source, open_sink\n"
        "open_source('x.jsonl').open(None); open_sink('y.jsonl').open(None)\n"
        "for thing in (open_source('x.parquet'), open_sink('y.parquet')):\n"
        "    try: thing.open(None)\n"
        "    except RuntimeError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert done.stdout.count("pip install 'streamml[arrow]'") == 2
