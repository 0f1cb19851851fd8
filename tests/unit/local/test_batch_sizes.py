"""What comes out does not depend on how the stream is cut into micro-batches, nor on where the state is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.generate.payments import payments
from streamml.local import LocalEngine, LocalOptions, RunResult
from streamml.operators import (
    Dedupe,
    Features,
    Session,
    Window,
    count,
    maximum,
    mean,
    since_last,
    sliding,
    total,
    trailing,
)
from streamml.state import ListState, ValueState

pytestmark = pytest.mark.slow


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int


def scores() -> sml.Pipeline:
    recent = {"n": count(), "sum": total("amount"), "mean": mean("amount"), "max": maximum("amount")}
    return (
        sml.Pipeline("scores", schema=Payment, out_of_orderness="2s")
        .key_by("card_id")
        .then(Dedupe(ttl="1h"))
        .then(Features(trailing("2s", tile="100ms"), recent))
        .then(Session(gap="1s", fields={"n_session": count(), "idle_ms": since_last()}))
    )


def windows() -> sml.Pipeline:
    """Timers, corrections, early results, and a second key."""
    fields = {"n": count(), "sum": total("amount")}
    window = Window(sliding("2s", "500ms"), fields, allowed_lateness="1s", early="300ms", name="by_card")
    return (
        sml.Pipeline("windows", schema=Payment, out_of_orderness="500ms")
        .key_by("card_id")
        .then(Dedupe(ttl="10s"))
        .key_by("merchant", name="merchants")
        .then(window)
    )


class Quiet(sml.KeyedOperator):
    """Says of each key when it has been quiet for a while; event by event, with timers that are moved."""

    sides = ("seen",)

    newest = ValueState(int)
    events = ListState(str)

    def on_event(self, event: sml.Record, ctx: sml.Context) -> None:
        before = self.newest.get()
        self.events.append(event.id)
        ctx.side("seen", event, so_far=len(list(self.events)))
        if before is not None and before >= event.timestamp:
            return
        if before is not None:
            ctx.delete_timer(before + 400)
        self.newest.set(event.timestamp)
        ctx.set_timer(event.timestamp + 400)

    def on_timer(self, timer: Any, ctx: sml.Context) -> None:
        events = list(self.events)
        ctx.emit(ctx.result(f"{timer.key}@{timer.time}", timer.time, {"card": timer.key, "events": events}))
        self.events.clear()
        self.newest.clear()


def quiet() -> sml.Pipeline:
    return (
        sml.Pipeline("quiet", schema=Payment, out_of_orderness="200ms")
        .key_by("card_id")
        .then(Dedupe(ttl="2s"))
        .then(Quiet())
    )


@pytest.fixture(scope="module")
def input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = payments(4_000, cards=300, max_disorder="1s", late=0.03, late_by="5s", malformed=0.01)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def run(
    pipeline: sml.Pipeline, input: Path, folder: Path, *, stored: bool = True, **options: Any
) -> tuple[RunResult, dict[str, bytes]]:
    folder.mkdir()
    if stored:
        options["state_dir"] = folder / "state"
    engine = LocalEngine(
        pipeline,
        {spec.tag: FileSource(str(input)) for spec in pipeline.sources},
        FileSink(str(folder / "main.jsonl")),
        {name: FileSink(str(folder / f"{name}.jsonl")) for name in pipeline.sides},
        options=LocalOptions(fsync=False, **options),
    )
    result = engine.run()
    return result, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("job", [scores, windows, quiet])
def test_every_batch_size_gives_the_same_files(job: Any, input: Path, tmp_path: Path) -> None:
    result, wanted = run(job(), input, tmp_path / "1024", batch_size=1024)
    assert result.figures.events_in == 4_000
    assert all(wanted[f"{name}.jsonl"].count(b"\n") > 20 for name in ("main", "duplicates", "rejected", "late"))
    for size in (1, 7, 256, 5000):
        _, found = run(job(), input, tmp_path / str(size), batch_size=size)
        assert found.keys() == wanted.keys()
        for name, data in wanted.items():
            assert found[name].splitlines() == data.splitlines(), f"{name}, batches of {size}"


@pytest.mark.parametrize("job", [scores, windows, quiet])
@pytest.mark.parametrize("size", [7, 512])
def test_state_in_memory_gives_the_same_files(job: Any, size: int, input: Path, tmp_path: Path) -> None:
    _, wanted = run(job(), input, tmp_path / "rocks", batch_size=size)
    _, found = run(job(), input, tmp_path / "memory", batch_size=size, stored=False)
    assert found == wanted


@pytest.mark.parametrize("job", [scores, windows, quiet])
@pytest.mark.parametrize("interval", ["0s", "1h"])
def test_a_cache_that_is_too_small_and_checkpoints_at_any_time_give_the_same_files(
    job: Any, interval: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more keys than the cache may hold: entries are dropped and read again, with what they hold."""
    from streamml.state.table import StateTable

    input = tmp_path / "in.jsonl"
    lines = payments(6_000, cards=4_000, zipf=0.3, max_disorder="1s", late=0.03, late_by="3s")
    input.write_bytes(b"".join(line + b"\n" for line in lines))
    _, wanted = run(job(), input, tmp_path / "roomy", batch_size=256)
    evicted = reloaded = 0
    gone: set[Any] = set()
    trim, load = StateTable.trim, StateTable._load

    def counted_trim(table: StateTable, watermark: int, now: int) -> None:
        nonlocal evicted
        before = set(table.cache)
        trim(table, watermark, now)
        evicted += len(before) - len(table.cache)
        gone.update(before - set(table.cache))

    def counted_load(table: StateTable, keys: dict[Any, None]) -> None:
        nonlocal reloaded
        load(table, keys)
        reloaded += sum(key in gone and table.cache[key].stored for key in keys)

    monkeypatch.setattr(StateTable, "trim", counted_trim)
    monkeypatch.setattr(StateTable, "_load", counted_load)
    _, found = run(job(), input, tmp_path / "tight", batch_size=256, cache_mb=1, checkpoint_interval=interval)
    assert found == wanted
    if job is scores:
        assert evicted > 500 and reloaded > 100
