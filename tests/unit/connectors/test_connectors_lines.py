"""JSON lines from files: what is a record, resuming at every position, refusing what is not the same file any more."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.connectors.files import FileSource
from streamml.errors import ConnectorError

LINES = st.lists(st.sampled_from([b"", b"{}", b'{"x": 1}', "é\u2028ü".encode(), b"\r", b"a\rb", b"long" * 9, b"\xff"]))
ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    text = b"".join(line + draw(ENDS) for line in draw(LINES))
    return text + draw(st.sampled_from([b"", b"tail", b"\r", "é".encode()]))


def expected(content: bytes) -> list[bytes]:
    """The records of a file, found with nothing but bytes.split."""
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line[:-1] if line.endswith(b"\r") else line for line in lines]


def drain(source: FileSource, limit: int = 3) -> list[bytes]:
    found: list[bytes] = []
    while not source.finished:
        if (chunk := source.poll(limit, 0.0)) is not None:
            assert len(chunk.payloads) <= limit
            assert len(chunk.offsets) == len(chunk.payloads) == sum(count for _, count in chunk.runs)
            found += chunk.payloads
    return found


def stored(positions: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(positions))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(max_examples=120, deadline=None)
@given(content=contents(), block=st.integers(1, 40), packed=st.booleans(), cut=st.integers(0, 60))
def test_a_file_resumes_at_every_position_with_exactly_the_rest(
    folder: Path, content: bytes, block: int, packed: bool, cut: int
) -> None:
    path = folder / ("x.jsonl.gz" if packed else "x.jsonl")
    members = (content[:cut], content[cut:])  # gzip: two members, cut anywhere
    path.write_bytes(b"".join(map(gzip.compress, members)) if packed else content)
    want = expected(content)
    for taken in range(len(want) + 1):
        first = FileSource(str(path), block_bytes=block)
        first.open(None)
        found: list[bytes] = []
        while len(found) < taken:
            chunk = first.poll(min(2, taken - len(found)), 0.0)
            assert chunk is not None
            found += chunk.payloads
        assert found == want[:taken]
        positions = stored(first.positions())
        first.close()
        second = FileSource(str(path), block_bytes=block)
        second.open(positions)
        assert drain(second) == want[taken:]
        assert second.progress() == 1.0
        assert second.partitions() == []


def test_position_is_byte_offset_and_record_number(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a":1}\r\n\nx')
    source = FileSource(str(tmp_path / "x.jsonl"))
    source.open(None)
    chunk = source.poll(2, 0.0)
    assert chunk is not None and (chunk.runs, list(chunk.offsets)) == ([("x.jsonl", 2)], [0, 1])
    place = source.positions()["x.jsonl"]
    assert (place["offset"], place["record"]) == (10, 2)
    assert source.lag() == {"x.jsonl": 1}


def test_a_byte_order_mark_is_not_part_of_the_first_record_and_counts_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\n\xef\xbb\xbf\n")
    source = FileSource(str(path))
    source.open(None)
    assert source.poll(1, 0.0).payloads == [b"{}"]  # type: ignore[union-attr]
    assert source.positions()["x.jsonl"]["offset"] == 6
    assert source.poll(1, 0.0).payloads == [b"\xef\xbb\xbf"]  # type: ignore[union-attr]


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_an_over_long_line_is_replaced_by_what_is_rejected_and_says_why(tmp_path: Path, block: int, end: bytes) -> None:
    path = tmp_path / "x.jsonl"
    long = b'{"x": "' + b"a" * 3000 + b'"}'
    path.write_bytes(b"{}\n" + long + b"\n" + b"[1]\n" + long + end)
    source = FileSource(str(path), max_record_bytes=50, block_bytes=block)
    source.open(None)
    found = drain(source, 1)
    assert source.positions()["x.jsonl"]["offset"] == path.stat().st_size
    assert found[0::2] == [b"{}", b"[1]"]
    for payload in found[1::2]:
        assert payload.startswith(
            b"(a line of 3009 bytes, over max_record_bytes = 50, not kept; it starts:) " + long[:50]
        )
        assert len(payload) < 1200
        with pytest.raises(msgspec.DecodeError, match="malformed"):
            msgspec.json.decode(payload)
    resumed = FileSource(str(path), max_record_bytes=50, block_bytes=block)
    resumed.open(None)
    resumed.poll(1, 0.0)
    resumed.poll(1, 0.0)
    again = FileSource(str(path), max_record_bytes=50, block_bytes=block)
    again.open(stored(resumed.positions()))
    assert drain(again) == found[2:]


def test_an_over_long_line_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(b"a" * (1 << 20))
        file.write(b"\n{}\n")
    source = FileSource(str(path), max_record_bytes=1 << 20, block_bytes=1 << 18)
    source.open(None)
    tracemalloc.start()
    found = drain(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[1:] == [b"{}"] and peak < 6 << 20


def test_partitions_are_read_in_turn_in_sorted_order_and_resume_with_the_same_turn(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{name}{n}\n" for n in range(4)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.jsonl").write_text("d0\n")
    glob = f"{tmp_path}/**/*.jsonl"

    def runs(source: FileSource, polls: int) -> list[tuple[str, list[bytes]]]:
        found = []
        for _ in range(polls):
            if (chunk := source.poll(2, 0.0)) is not None:
                found.append((chunk.runs[0][0], list(chunk.payloads)))
        return found

    whole = FileSource(glob)
    whole.open(None)
    assert list(whole.partitions()) == ["a.jsonl", "b.jsonl", "c.jsonl", "sub/d.jsonl"]
    order = runs(whole, 20)
    assert [name for name, _ in order] == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
        "sub/d.jsonl",
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]
    for cut in range(len(order) + 1):
        first = FileSource(glob)
        first.open(None)
        before = runs(first, cut)
        second = FileSource(glob)
        second.open(stored(first.positions()))
        assert before + runs(second, 20) == order


def test_a_file_that_is_new_at_a_restart_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("a0\na1\n")
    first = FileSource(f"{tmp_path}/*.jsonl")
    first.open(None)
    first.poll(1, 0.0)
    (tmp_path / "b.jsonl").write_text("b0\n")
    second = FileSource(f"{tmp_path}/*.jsonl")
    second.open(stored(first.positions()))
    assert sorted(drain(second)) == [b"a1", b"b0"]


def finished_positions(path: Path) -> dict[str, Any]:
    source = FileSource(str(path))
    source.open(None)
    drain(source)
    return stored(source.positions())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"a\nb\n", b"a\n", "its first 4 bytes are not those"),
        (b"a\nb\n", b"a\nX\nc\n", "its first 4 bytes are not those"),
        (b"a\nb", b"a\nbc\n", "a last line without line end, at byte 3; since then that line was continued"),
        (b"a\n" * 40_000, b"a\n" * 33_000, "continues at byte 80000 of its text, but it ends before that"),
    ],
)
def test_a_file_that_is_not_the_one_of_the_checkpoint_is_refused(
    tmp_path: Path, before: bytes, after: bytes, message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(before)
    positions = finished_positions(path)
    path.write_bytes(after)
    with pytest.raises(
        ConnectorError, match=f"{re.escape(str(path))}.*{re.escape(message)}.*start without the checkpoint"
    ):
        FileSource(str(path)).open(positions)


@pytest.mark.parametrize(("before", "added"), [(b"a\n", b"b\n"), (b"a", b"\nb\n")])
def test_a_file_that_has_grown_by_whole_lines_goes_on(tmp_path: Path, before: bytes, added: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(before)
    positions = finished_positions(path)
    with path.open("ab") as file:
        file.write(added)
    source = FileSource(str(path))
    source.open(positions)
    assert drain(source) == [b"b"]


def test_a_file_that_is_gone_or_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a\n")
    positions = finished_positions(path)
    (tmp_path / "y.jsonl").write_bytes(b"a\n")
    with pytest.raises(ConnectorError, match=r"position in 'x\.jsonl', which is not there any more; found: y\.jsonl"):
        FileSource(str(tmp_path / "y.jsonl")).open(positions)
    with pytest.raises(ConnectorError, match=r"of a 'jsonl' input, this one is 'jsonl\.gz'"):
        FileSource(str(path), format="jsonl.gz").open(positions)
    positions["x.jsonl"]["version"] = 2
    with pytest.raises(ConnectorError, match="wanted a position of version 1"):
        FileSource(str(path)).open(positions)
    path.unlink()
    with pytest.raises(ConnectorError, match=r"can't open it: No such file or directory\. Check the path\."):
        FileSource(str(path)).open(None)
    with pytest.raises(ConnectorError, match=r"no file is there\. Relative paths start at"):
        FileSource(f"{tmp_path}/*.parquet").open(None)


def test_a_pipe_is_refused_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    holder = os.open(tmp_path / "x.jsonl", os.O_RDWR)
    with pytest.raises(ConnectorError, match=r"got a pipe or device\. Read it as `-`"):
        FileSource(str(tmp_path / "x.jsonl")).open(None)
    os.close(holder)


@pytest.mark.parametrize("damage", ["cut", "garbage behind", "flipped", "not gzip"])
def test_damaged_gzip_gives_the_records_before_the_damage_and_then_an_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.jsonl.gz"
    good = gzip.compress(b"a\nb\n")
    data = good + gzip.compress(os.urandom(50_000).hex().encode() + b"\n")
    flipped = bytearray(data)
    flipped[len(good) + 3000] ^= 0xFF
    path.write_bytes(
        {"cut": data[:-5000], "garbage behind": good + b"garbage!", "flipped": bytes(flipped), "not gzip": b"a\nb\n"}[
            damage
        ]
    )
    source = FileSource(str(path))
    source.open(None)
    found: list[bytes] = []
    with pytest.raises(ConnectorError, match=r"wanted whole gzip members, but after record \d+: .*damaged"):
        while not source.finished:
            if (chunk := source.poll(1, 0.0)) is not None:
                found += chunk.payloads
    if (
        damage == "flipped"
    ):  # what a flipped byte unpacks to is noise until the member's checksum tells, and may hold a line end
        found = found[:2]
    assert found == ([] if damage == "not gzip" else [b"a", b"b"])


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def following(path: Path) -> tuple[FileSource, Clock]:
    source, clock = FileSource(str(path), follow=True), Clock()
    source._clock, source._sleep = lambda: clock.now, clock.sleep
    return source, clock


def test_a_followed_file_brings_what_is_added_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a\nb")
    source, clock = following(path)
    source.open(None)
    assert source.poll(10, 0.0).payloads == [b"a"]  # type: ignore[union-attr]
    assert source.poll(10, 0.5) is None
    assert clock.now == pytest.approx(0.5)
    assert not source.finished and list(source.partitions()) == ["x.jsonl"]
    with path.open("ab") as file:
        file.write(b"c\nd\n")
    assert source.poll(10, 0.0).payloads == [b"bc", b"d"]  # type: ignore[union-attr]
    second, _ = following(path)
    second.open(stored(source.positions()))
    assert second.poll(10, 0.0) is None


def test_a_followed_file_that_is_cut_or_replaced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a\nb\n")
    source, _ = following(path)
    source.open(None)
    source.poll(10, 0.0)
    (tmp_path / "new").write_bytes(b"c\n")
    os.replace(tmp_path / "new", path)
    with pytest.raises(ConnectorError, match="was replaced by another file while it was followed"):
        source.poll(10, 0.0)
    source, _ = following(path)
    source.open(None)
    source.poll(10, 0.0)
    path.write_bytes(b"")
    with pytest.raises(ConnectorError, match="was cut while it was followed"):
        source.poll(10, 0.0)
    with pytest.raises(ConnectorError, match=r"only plain JSON lines can be followed, this is jsonl\.gz"):
        FileSource(str(path), format="jsonl.gz", follow=True).open(None)


def test_progress_rises_from_0_to_1(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"1234\n" * 10)
    source = FileSource(str(path), block_bytes=10)
    source.open(None)
    seen = [source.progress()]
    while not source.finished:
        source.poll(1, 0.0)
        seen.append(source.progress())
    assert seen == [pytest.approx(n / 10) for n in range(11)]
