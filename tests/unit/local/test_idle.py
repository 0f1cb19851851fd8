"""A stream that has fallen silent still closes windows and fires timers, by a clock that the test moves."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamml as sml
from streamml.connectors.files import FileSource
from streamml.connectors.memory import MemorySink
from streamml.local import LocalEngine, LocalOptions
from streamml.operators import Window, count, tumbling
from streamml.ports import Chunk, Sink, Source

START = 1_800_000_000_000
IDLENESS = 5_000


class Tick(sml.Event, id="tx", key="k", time="ts"):
    tx: str
    k: str
    ts: int


def line(tx: str, ts: int, k: str = "k") -> bytes:
    return json.dumps({"tx": tx, "k": k, "ts": ts}).encode()


class Feed:
    """A source of several partitions into which the test puts records while it is read."""

    replayable = True

    def __init__(self, *names: str) -> None:
        self.waiting: dict[str, deque[bytes]] = {name: deque() for name in names}
        self.read = dict.fromkeys(names, 0)
        self.finished = False

    def put(self, name: str, *payloads: bytes) -> None:
        self.waiting[name].extend(payloads)

    def open(self, positions: Mapping[str, Any] | None) -> None: ...

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        for name, queue in self.waiting.items():
            if queue:
                payloads = [queue.popleft() for _ in range(min(limit, len(queue)))]
                self.read[name] += len(payloads)
                last = self.read[name]
                return Chunk(payloads, [(name, len(payloads))], range(last - len(payloads), last))
        return None

    def positions(self) -> dict[str, Any]:
        return dict(self.read)

    def partitions(self) -> Sequence[str]:
        return [] if self.finished else list(self.waiting)

    def progress(self) -> float | None:
        return None

    def lag(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


class Seen(MemorySink):
    """Notes what the clock said when a row came."""

    clock: Callable[[], int]

    def write(self, batch: Any, fields: Any) -> None:
        before = len(self.pending)
        super().write(batch, fields)
        for row in self.pending[before:]:
            row["seen"] = self.clock() - START


def play(
    pipeline: sml.Pipeline, sources: dict[str, Source], script: dict[int, Callable[[], Any]], until: int
) -> list[dict[str, Any]]:
    """Run while the clock goes on by 100 ms with each look at it; `script` says what happens when."""
    now = START
    todo = sorted(script.items())

    def clock() -> int:
        nonlocal now
        now += 100
        while todo and START + todo[0][0] <= now:
            todo.pop(0)[1]()
        if now > START + until:
            engine.stop()
        return now

    sink = Seen()
    sink.clock = lambda: now
    sides: dict[str, Sink] = {name: MemorySink() for name in pipeline.sides}
    engine = LocalEngine(
        pipeline, sources, sink, sides, options=LocalOptions(poll=0, checkpoint_interval="1h"), clock=clock
    )
    assert not engine.run().finished
    return sink.rows


def windows(**options: Any) -> sml.Pipeline:
    options = {"out_of_orderness": "1s", "idleness": IDLENESS, **options}
    return sml.Pipeline("p", schema=Tick, **options).key_by("k").then(Window(tumbling("1s"), {"n": count()}))


def starts(rows: list[dict[str, Any]]) -> list[int]:
    return [row["window_start"] - START for row in rows]


def test_a_followed_file_that_is_silent_closes_its_windows_once_it_is_idle(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(line(f"e{n}", START + 100 * n) + b"\n" for n in range(15)))
    source = FileSource(str(path), follow=True)
    rows = play(windows(), {"p": source}, {}, until=30_000)
    assert [(row["window_start"] - START, row["n"]) for row in rows] == [(0, 10), (1_000, 5)]
    # The newest event is of 1.4 s, so 1.6 s of silence are still within the bound of the second window.
    assert rows[0]["seen"] >= IDLENESS and rows[1]["seen"] <= IDLENESS + 2_000


def test_without_idleness_nothing_closes(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line("a", START) + b"\n" + line("b", START + 1) + b"\n")
    assert play(windows(idleness="1h"), {"p": FileSource(str(path), follow=True)}, {}, until=60_000) == []


def test_records_that_come_after_idleness_are_judged_by_the_watermark_that_silence_reached(tmp_path: Path) -> None:
    feed = Feed("0")
    feed.put("0", line("a", START), line("b", START + 10))
    script = {
        20_000: lambda: feed.put("0", line("late", START + 500), line("c", START + 20_000), line("d", START + 20_001)),
    }
    rows = play(windows(), {"p": feed}, script, until=60_000)
    assert [(row["window_start"] - START, row["n"]) for row in rows] == [(0, 2), (20_000, 2)]


def test_a_silent_partition_holds_the_windows_back_until_it_is_idle() -> None:
    feed = Feed("slow", "busy")
    feed.put("slow", line("s0", START), line("s1", START + 1))
    script: dict[int, Callable[[], Any]] = {
        at: lambda at=at: feed.put("busy", line(f"b{at}", START + at)) for at in range(200, 12_000, 500)
    }
    rows = play(windows(), {"p": feed}, script, until=12_000)
    assert starts(rows)[:3] == [0, 1_000, 2_000]
    assert rows[0]["seen"] >= IDLENESS  # the busy one alone would have closed it at 2 s
    assert [row["n"] for row in rows[:3]] == [4, 2, 2]
    last = [row for row in rows if row["window_start"] == START + 7_000]
    assert last and last[0]["seen"] < 7_000 + 1_000 + 1_000 + 1_000  # then the busy one leads


def test_a_partition_that_wakes_up_is_waited_for_again() -> None:
    feed = Feed("slow", "busy")
    script: dict[int, Callable[[], Any]] = {
        at: lambda at=at: feed.put("busy", line(f"b{at}", START + at)) for at in range(200, 20_000, 500)
    }
    script[250] = lambda: feed.put("slow", line("s0", START), line("s1", START + 1))
    script[9_050] = lambda: feed.put("slow", line("s2", START + 9_000), line("s3", START + 9_001))
    rows = play(windows(), {"p": feed}, script, until=20_000)
    held = [row for row in rows if row["window_start"] == START + 9_000]
    assert held[0]["n"] == 4 and held[0]["seen"] >= 9_000 + IDLENESS


def test_a_source_that_has_finished_does_not_hold_the_other_one_back() -> None:
    job = (
        sml.Pipeline("p", out_of_orderness="1s", idleness="1h")
        .source("left", Tick)
        .source("right", Tick)
        .key_by("k")
        .then(Window(tumbling("1s"), {"n": count()}))
    )
    left, right = Feed("0"), Feed("0")
    left.put("0", line("l0", START), line("l1", START + 1))
    script: dict[int, Callable[[], Any]] = {
        at: lambda at=at: right.put("0", line(f"r{at}", START + at)) for at in range(200, 9_000, 500)
    }
    script[4_000] = lambda: setattr(left, "finished", True)
    rows = play(job, {"left": left, "right": right}, script, until=10_000)
    assert starts(rows)[:2] == [0, 1_000] and rows[0]["n"] == 4
    assert 4_000 <= rows[0]["seen"] <= 5_000


class Heartbeat(sml.KeyedOperator):
    """Says each second of processing time that a key is there."""

    def on_event(self, event: sml.Record, ctx: sml.Context) -> None:
        ctx.set_processing_timer(ctx.now + 1_000, "beat")

    def on_timer(self, timer: Any, ctx: sml.Context) -> None:
        ctx.emit(ctx.result(f"beat@{timer.time}", timer.time, {"due": timer.time, "now": ctx.now}))
        ctx.set_processing_timer(timer.time + 1_000, "beat")


def test_processing_time_timers_fire_without_records() -> None:
    feed = Feed("0")
    feed.put("0", line("a", START))
    job = sml.Pipeline("p", schema=Tick, idleness="1h").key_by("k").then(Heartbeat())
    rows = play(job, {"p": feed}, {}, until=10_000)
    due = [row["due"] for row in rows]
    assert len(due) >= 8 and due == list(range(due[0], due[0] + 1_000 * len(due), 1_000))
    assert all(0 <= row["now"] - row["due"] <= 300 for row in rows)
