"""The sources of a whole job: a splittable DoFn that reads streams, and a plain one that reads bounded input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import WatermarkEstimator
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.utils.timestamp import Duration, Timestamp

from streamml.beam.functions import HostedFn
from streamml.beam.host import HostPlan
from streamml.beam.splits import END, Split, SplitReader, open_split
from streamml.beam.watermark import to_beam
from streamml.connectors.positions import ContentPositions
from streamml.ingest import Ingest
from streamml.ports import Chunk
from streamml.times import MIN_TIME
from streamml.watermarks import WatermarkTracker

__all__ = ["BoundedReadFn", "ReadFn"]

_BUNDLE = 8192
"""After so many records a reader lets the runner know its watermark, and lets others work."""
_NAP = Duration(micros=100_000)
_POLL = 0.2


class _Tracker(OffsetRestrictionTracker):
    """Claims runs of records by the last offset of each; what is left can be read elsewhere, but not beside it."""

    def try_split(self, fraction_of_remainder: float) -> Any:
        """Split off all that was not claimed, and nothing else: a split is read in order."""
        return super().try_split(0) if fraction_of_remainder == 0 else None

    def is_bounded(self) -> bool:
        """Return whether an end is known."""
        return bool(self.stop_position() < END)


class _Offsets(RestrictionProvider):
    """Offsets of a split as the restriction."""

    def initial_restriction(self, element: Split) -> OffsetRange:
        """Return all of it."""
        return OffsetRange(element.start, element.stop)

    def create_tracker(self, restriction: OffsetRange) -> _Tracker:
        """Return the tracker."""
        return _Tracker(restriction)

    def restriction_size(self, element: Split, restriction: OffsetRange) -> int:
        """Return nothing that tells splits apart: the end of most is not known."""
        return 1


class _Estimator(WatermarkEstimator):
    """The watermark of a split, and what the next reader of it has to know to go on.

    Args:
        state: watermark, when the last record came, and the tracker's snapshot.
    """

    def __init__(self, state: tuple[int, int, dict[str, Any]] | None) -> None:
        self._state = state

    def get_estimator_state(self) -> tuple[int, int, dict[str, Any]] | None:
        """Return what it was made with, or what came since."""
        return self._state

    def current_watermark(self) -> Timestamp:
        """Return the watermark."""
        return to_beam(MIN_TIME if self._state is None else self._state[0])

    def observe_timestamp(self, timestamp: Timestamp) -> None:
        """Ignore the times of elements: records on their way have times of their own."""

    def move(self, watermark: int, seen_at: int, snapshot: dict[str, Any]) -> None:
        """Go on; never back."""
        before = MIN_TIME if self._state is None else self._state[0]
        self._state = (max(before, watermark), seen_at, snapshot)


class _Watermarks(WatermarkEstimatorProvider):
    """Makes estimators."""

    def initial_estimator_state(self, element: Split, restriction: OffsetRange) -> None:
        """Return nothing: nothing was read."""

    def create_watermark_estimator(self, estimator_state: Any) -> _Estimator:
        """Return an estimator that goes on from a state."""
        return _Estimator(estimator_state)


class ReadFn(HostedFn):
    """Reads splits, decodes their records, runs the operators before the first key, and hands on rows by key group.

    The watermark is the embedded engine's, for each split: its newest event less the source's `out_of_orderness`.
    Where a split is the only one, each row takes along the watermark before it, and is judged exactly by that.
    """

    def __init__(self, plan: HostPlan) -> None:
        super().__init__(plan)
        self._open: dict[Split, SplitReader] = {}

    def setup(self) -> None:
        """See `beam.DoFn.setup`."""
        super().setup()
        self._open = {}

    def teardown(self) -> None:
        """See `beam.DoFn.teardown`."""
        for reader in self._open.values():
            reader.close()
        self._open = {}
        super().teardown()

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Split,
        restriction: Any = beam.DoFn.RestrictionParam(_Offsets()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_Watermarks()),  # noqa: B008
    ) -> Iterator[Any]:
        """Read on, until there is nothing, or enough for one bundle."""
        plan = self._host.plan
        tracker, seen_at = WatermarkTracker(), int(time.time() * 1000)
        spec = next(spec for spec in plan.sources if spec.tag == plan.tag)
        ingest = Ingest(spec, plan.pipeline, tracker, tagged=len(plan.sources) > 1)
        if (state := watermark.get_estimator_state()) is not None:
            seen_at = state[1]
        ingest.follow([element.name], seen_at)
        if state is not None:
            tracker.restore(state[2])
        reader = self._reader(element, restriction.current_restriction().start)
        left = _BUNDLE
        while left > 0:
            at = reader.offset
            records, numbers = reader.read(min(left, plan.settings.batch_size))
            now = int(time.time() * 1000)
            if reader.offset > at and not restriction.try_claim(reader.offset - 1):
                self._close(element)
                return
            if records:
                left -= len(records)
                seen_at = now
                positions = ContentPositions(records) if numbers is None else numbers
                chunk = Chunk(records, [(element.name, len(records))], positions)
                batch, bad = ingest.batch(chunk, now)
                watermark.move(tracker.current, seen_at, tracker.snapshot())
                if not element.alone:
                    batch.watermarks, batch.watermark = [MIN_TIME] * len(batch), MIN_TIME
                with self._host.lock:
                    output = self._host.template.process(batch, now)
                yield from self._outputs.of(output, bad)
            if reader.ended:
                restriction.try_claim(max(restriction.current_restriction().stop, reader.offset))
                self._close(element)
                return
            if not records:
                reached = tracker.idle(now) if element.alone else _wall(spec, tracker, seen_at, now)
                watermark.move(reached, seen_at, tracker.snapshot())
                restriction.defer_remainder(_NAP)
                return
        restriction.defer_remainder()

    def _reader(self, split: Split, offset: int) -> SplitReader:
        """Return a reader at an offset: the one of the last bundle, if it stands there."""
        reader = self._open.get(split)
        if reader is not None and reader.offset != offset:
            self._close(split)
            reader = None
        if reader is None:
            reader = self._open[split] = open_split(split, offset)
        return reader

    def _close(self, split: Split) -> None:
        self._open.pop(split).close()


def _wall(spec: Any, tracker: WatermarkTracker, seen_at: int, now: int) -> int:
    """Return the watermark of one of several splits: while it is idle the others decide, up to the wall clock."""
    return now - spec.out_of_orderness if now - seen_at >= spec.idleness else tracker.current


class BoundedReadFn(beam.DoFn):
    """Reads all of a bounded source: a file of any format, or topics up to `until=`."""

    def process(self, element: str) -> Iterator[Any]:
        """Yield the records of an address."""
        from streamml.connectors import open_source

        source = open_source(element)
        if (tell := getattr(source, "for_job", None)) is not None:
            tell("streamml", 0)
        try:
            source.open(None)
            while not source.finished:
                chunk = source.poll(1024, _POLL)
                if chunk is not None:
                    yield from chunk.payloads
        finally:
            source.close()
