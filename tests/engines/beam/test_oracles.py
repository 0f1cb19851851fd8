"""Beam's own transforms on the same stream say the same as our operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import streamml as sml
from streamml.operators import Dedupe, Window, count, session, tumbling

beam = pytest.importorskip("apache_beam")

from apache_beam.transforms.deduplicate import DeduplicatePerKey  # noqa: E402
from apache_beam.transforms.window import FixedWindows, Sessions  # noqa: E402
from beam_streams import stream  # noqa: E402

from streamml.beam import KeyedStage  # noqa: E402

Play = Callable[..., dict[str, list[Any]]]

# Out of order within five seconds; the last of each key closes nothing but the end of the input.
ROWS = [
    {"id": f"e{n}", "user": "ab"[n % 2], "ts": 1000 * (n * 7 % 5 + 4 * n + (30 if n > 8 else 0))} for n in range(16)
]


class Click(sml.Event, id="id", key="user", time="ts"):
    id: str
    user: str
    ts: int


class Ends(beam.DoFn):
    """Says of a count in one of Beam's windows where the window is."""

    def process(self, element: tuple[str, int], window: Any = beam.DoFn.WindowParam) -> Any:
        key, number = element
        yield key, number, window.start.micros // 1000, window.end.micros // 1000


def windows(play: Play, ours: Any, theirs: Any, **options: str) -> tuple[Any, Any]:
    def build(pipeline: Any) -> dict[str, Any]:
        events = pipeline | stream(ROWS, 5_000) | beam.Map(dict).with_output_types(dict)
        stage = events | KeyedStage([Window(ours, {"n": count()})], schema=Click, key_groups=2)
        oracle = (
            events
            | beam.Map(lambda row: (row["user"], 1)).with_output_types(tuple[str, int])
            | beam.WindowInto(theirs)
            | beam.CombinePerKey(sum)
            | beam.ParDo(Ends())
        )
        return {"ours": stage.main, "late": stage.late, "theirs": oracle}

    found = play(build, streaming=True, **options)
    assert found["late"] == []
    mine = [(row["id"].split("/")[2], row["n"], row["window_start"], row["window_end"]) for row in found["ours"]]
    return sorted(mine), sorted(found["theirs"])


def test_tumbling_windows_are_beams_fixed_windows(play: Play) -> None:
    mine, theirs = windows(play, tumbling("10s"), FixedWindows(10))
    assert mine == theirs
    assert sum(number for _, number, _, _ in mine) == len(ROWS)


def test_session_windows_are_beams_sessions(play: Play) -> None:
    # On Prism 2.77 Beam's sessions of elements that come one by one are not merged.
    mine, theirs = windows(play, session("9s"), Sessions(9), on="direct")
    assert [row[:3] for row in mine] == [row[:3] for row in theirs]
    assert len(mine) > 2


def test_dedupe_lets_through_what_beams_deduplicate_does(play: Play) -> None:
    rows = [{**row, "id": f"e{number % 6}"} for number, row in enumerate(ROWS)]

    def build(pipeline: Any) -> dict[str, Any]:
        events = pipeline | stream(rows, 5_000) | beam.Map(dict).with_output_types(dict)
        stage = events | KeyedStage([Dedupe(ttl="1h")], schema=Click, key="id", key_groups=2)
        oracle = (
            events
            | beam.Map(lambda row: (row["id"], row["ts"])).with_output_types(tuple[str, int])
            | DeduplicatePerKey(event_time_duration=3600)
        )
        return {"ours": stage.main, "others": stage.side("duplicates"), "theirs": oracle}

    found = play(build, streaming=True)
    assert Counter((row["_id"].split("/")[1], row["ts"]) for row in found["ours"]) == Counter(found["theirs"])
    assert len(found["ours"]) == 6
    assert len(found["others"]) == len(rows) - 6
