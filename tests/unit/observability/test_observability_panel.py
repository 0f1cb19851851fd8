import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from streamml.observability.panel import Panel, RunFigures, as_json, plain_line, render, summary

FIGURES = RunFigures(
    events_in=12_345_678,
    events_out=12_001_222,
    events_per_s=52_310.4,
    p50=0.0012,
    p95=0.0034,
    p99=0.0181,
    lag_events=1200,
    lag_seconds=0.43,
    watermark_ms=1_764_022_203_000,
    late=12,
    rejected=3,
    duplicates=4410,
    drift_alarms=7,
    recent_drift=("oldest", "amount: PSI 0.310 > 0.022", "age: PSI 0.2 > 0.1", "city: PSI 0.041 > 0.022"),
    models=("fraud@prod v7", "fraud@shadow v8"),
    checkpoint=41,
    checkpoint_seconds=0.034,
    checkpoint_bytes=12_345_678,
    cpu_us_per_event=14.2,
    elapsed=236.0,
    progress=0.62,
)
SHOWN = [
    "fraud-scoring",
    "52,310 events/s",
    "in 12,345,678",
    "out 12,001,222",
    "p50 1.2 ms",
    "p95 3.4 ms",
    "p99 18.1 ms",
    "1,200 events, 430 ms",
    "2025-11-24 22:10:03Z",
    "late 12",
    "rejected 3",
    "duplicates 4,410",
    "14.2 us/event",
    "fraud@prod v7, fraud@shadow v8",
    "#41, 34.0 ms, 12.3 MB",
    "7 alarms",
    "amount: PSI 0.310 > 0.022",
    "62%",
    "0:03:56",
]


def draw(figures: RunFigures, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(render(figures, "fraud-scoring", width))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_shown_in_whole_and_nothing_is_too_wide(width: int) -> None:
    text = draw(FIGURES, width)
    assert [part for part in SHOWN if part not in text] == []
    assert "oldest" not in text
    assert "…" not in text
    assert {len(line) for line in text.splitlines()} == {width}


def test_a_wide_terminal_has_two_columns() -> None:
    narrow, wide = (draw(FIGURES, width).splitlines() for width in (80, 120))
    assert len(wide) <= 12 < len(narrow) <= 20
    assert "Rate" in wide[1]
    assert "Set aside" in wide[1]


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_an_empty_run_and_a_narrow_terminal_can_be_drawn(width: int) -> None:
    text = draw(RunFigures(), width)
    assert "nan" not in text
    assert {len(line) for line in text.splitlines()} == {width}


@pytest.mark.parametrize("watermark", [-(2**63), 2**63 - 1])
def test_a_watermark_beyond_the_calendar_is_a_dash(watermark: int) -> None:
    assert "watermark=-" in plain_line(replace(FIGURES, watermark_ms=watermark))
    draw(replace(FIGURES, watermark_ms=watermark), 80)


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2Jx\n[red]y[/]"
    figures = replace(FIGURES, models=(evil,), recent_drift=(evil,))
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(render(figures, evil, 80), summary(figures, evil))
    text = console.export_text()
    assert "\x1b" not in text
    assert text.count("[red]y[/]") == 6


def test_one_line_of_ascii() -> None:
    line = plain_line(FIGURES)
    assert line.isascii()
    assert line == (
        "0:03:56 done=62% in=12,345,678 out=12,001,222 rate=52,310/s p50=1.2ms p95=3.4ms p99=18.1ms lag=1,200 "
        "behind=430ms watermark=2025-11-24T22:10:03Z late=12 rejected=3 duplicates=4,410 drift=7 checkpoint=41"
    )


def test_json_has_every_figure() -> None:
    found = json.loads(as_json(RunFigures(events_in=5)))
    assert found["events_in"] == 5
    assert found["p99"] is None
    assert set(found) == set(RunFigures.__dataclass_fields__)


def test_a_pipe_gets_a_plain_line_a_second_and_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None)
    with Panel(console, "fraud") as panel:
        for tenth in range(31):
            panel.update(replace(FIGURES, elapsed=tenth / 10))
        panel.finish(FIGURES)
    text = file.getvalue()
    assert "\x1b" not in text
    assert text.count("rate=52,310/s") == 4
    assert text.splitlines()[4] == "fraud"
    assert text.splitlines()[0] == plain_line(replace(FIGURES, elapsed=0.0))


def test_a_terminal_is_redrawn_and_left_clean() -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, height=30, force_terminal=True, color_system="standard")
    with Panel(console, "fraud", frames_per_s=10, live=True) as panel:
        for tenth in range(31):
            panel.update(replace(FIGURES, elapsed=tenth / 10))
            panel.update(replace(FIGURES, elapsed=tenth / 10))
        panel.finish(FIGURES)
    text = file.getvalue()
    assert text.count("╭") == 32  # 31 frames, and the last one again when it stops
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")
    assert text.rindex("╭") < text.rindex("on average")


def test_the_cursor_comes_back_after_an_error() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    with pytest.raises(RuntimeError), Panel(console, "fraud", live=True) as panel:
        panel.update(FIGURES)
        raise RuntimeError
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_the_summary_has_the_average_rate() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(summary(FIGURES, "fraud"))
    assert "0:03:56, 52,312 events/s on average" in console.export_text()
