"""A run that is stopped and started again at any record ends with the files of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamml as sml
from streamml.connectors.file_sink import FileSink
from streamml.connectors.files import FileSource
from streamml.errors import ConnectorError, StateError
from streamml.local import LocalEngine, LocalOptions, RunResult
from streamml.operators import Dedupe, Features, Window, count, session, total, trailing
from streamml.ports import Chunk

START = 1_800_000_000_000
# Out of order, late by the bound and by more, twice the same id, a gap, a broken one, and a clock that is days ahead.
TIMES = [0, 400, 300, 900, 100, 1_500, 1_400, 60, 2_000, 2 * 86_400_000, 1_950, 1_000, 2_700, 2_650, 9_000, 1, 8_800]


class Reading(sml.Event, id="tx", key="k", time="ts"):
    tx: str
    k: str
    ts: int
    x: float = 1.0


def features() -> sml.Pipeline:
    fields = {"n": count(), "sum": total("x")}
    return (
        sml.Pipeline("p", schema=Reading, out_of_orderness="200ms", max_future="3d")
        .key_by("k")
        .then(Dedupe(ttl="1s"))
        .then(Features(trailing("1s", tile="100ms"), fields))
    )


def windows() -> sml.Pipeline:
    return (
        sml.Pipeline("p", schema=Reading, out_of_orderness="200ms", max_future="3d")
        .key_by("k")
        .then(Window(session("300ms"), {"n": count(), "sum": total("x")}, allowed_lateness="500ms"))
    )


class Stopping(FileSource):
    """Asks for a stop after so many polls that brought records."""

    engine: LocalEngine
    left = -1

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        chunk = super().poll(limit, timeout)
        if chunk is not None and chunk.payloads:
            self.left -= 1
            if self.left == 0:
                self.engine.stop()
        return chunk


def run(pipeline: sml.Pipeline, input: Path, folder: Path, stop_after: int = -1, **options: Any) -> RunResult:
    source = Stopping(str(input))
    source.left = stop_after
    folder.mkdir(exist_ok=True)
    engine = source.engine = LocalEngine(
        pipeline,
        {"p": source},
        FileSink(str(folder / "main.jsonl")),
        {name: FileSink(str(folder / f"{name}.jsonl")) for name in pipeline.sides},
        options=LocalOptions(state_dir=folder / "state", batch_size=1, fsync=False, **options),
        clock=lambda: START + 10_000,
    )
    return engine.run()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl*")}


@pytest.fixture
def input(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"tx": f"e{n}", "k": "ab"[n % 3 == 2], "ts": START + ts, "x": n} for n, ts in enumerate(TIMES)]
    lines = [json.dumps(row) for row in rows]
    lines[6:6] = [lines[3], "{"]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("job", [features, windows])
def test_a_stop_at_any_record_changes_nothing(job: Any, input: Path, tmp_path: Path) -> None:
    assert run(job(), input, tmp_path / "whole").finished
    wanted = files(tmp_path / "whole")
    assert wanted["main.jsonl"] and wanted["late.jsonl"] and wanted["rejected.jsonl"]
    for cut in range(1, len(TIMES) + 2):
        folder = tmp_path / str(cut)
        first = run(job(), input, folder, stop_after=cut)
        assert not first.finished and first.figures.events_in == cut
        assert run(job(), input, folder).finished
        assert files(folder) == wanted, cut


def test_a_stop_after_every_record_changes_nothing(input: Path, tmp_path: Path) -> None:
    run(windows(), input, tmp_path / "whole")
    while not run(windows(), input, tmp_path / "steps", stop_after=1).finished:
        pass
    assert files(tmp_path / "steps") == files(tmp_path / "whole")


def test_the_state_of_another_pipeline_is_refused(input: Path, tmp_path: Path) -> None:
    run(features(), input, tmp_path / "x")
    other = sml.Pipeline("other", schema=Reading)
    with pytest.raises(StateError, match="belongs to pipeline 'p', not to 'other'"):
        LocalEngine(
            other,
            {"other": FileSource(str(input))},
            FileSink(str(tmp_path / "y.jsonl")),
            options=LocalOptions(state_dir=tmp_path / "x" / "state"),
        ).run()


def test_an_input_that_is_not_there_does_not_empty_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    engine = LocalEngine(
        features(), {"p": FileSource(str(tmp_path / "typo.jsonl"))}, FileSink(str(out), overwrite=True)
    )
    with pytest.raises(ConnectorError, match="No such file"):
        engine.run()
    assert out.read_text() == "precious\n"
