"""How streams are read on Beam: any cut of a split, and a new reader after each, gives every record once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from apache_beam.io.restriction_trackers import OffsetRange

from streamml.beam.reading import _Estimator, _Offsets, _Tracker
from streamml.beam.splits import END, find_splits, open_split
from streamml.watermarks import WatermarkTracker

LINES = [b'{"n": %d, "text": "%b"}' % (n, b"\xc3\xa9" * (n % 5)) for n in range(50)]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
@pytest.mark.parametrize("step", [1, 7, 50])
def test_a_reader_goes_on_where_another_one_was_cut_off(tmp_path: Path, name: str, step: int) -> None:
    text = b"\n".join(LINES) + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (split,) = find_splits(f"file:{tmp_path / name}")
    found, restriction = [], OffsetRange(split.start, split.stop)
    while True:
        reader, tracker = open_split(split, restriction.start), _Tracker(restriction)
        records, _ = reader.read(step)
        if reader.offset > restriction.start:
            assert tracker.try_claim(reader.offset - 1)
        found += records
        reader.close()
        if reader.ended:
            break
        assert tracker.try_split(0.5) is None
        done, restriction = tracker.try_split(0)
        assert (done.stop, restriction.stop) == (reader.offset, END)
        tracker.check_done()
    assert found == LINES


def test_a_split_is_unbounded_until_its_end_is_known() -> None:
    assert not _Offsets().create_tracker(OffsetRange(5, END)).is_bounded()
    assert _Tracker(OffsetRange(5, 9)).is_bounded()


def test_an_estimator_goes_on_from_its_state_and_never_back() -> None:
    tracker = WatermarkTracker()
    tracker.add("p", bound=5, max_jump=100, idleness=1000, now=0)
    tracker.observe("p", [10, 30], now=0)
    first = _Estimator(None)
    first.move(tracker.current, 7, tracker.snapshot())
    second = _Estimator(first.get_estimator_state())
    assert second.current_watermark().micros == 25_000
    second.move(20, 8, tracker.snapshot())
    assert second.current_watermark().micros == 25_000
