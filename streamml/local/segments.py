"""A pipeline that changes its key, cut where it does: each segment is shared by workers, with an exchange between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streamml.errors import PlanError
from streamml.ingest import Ingest
from streamml.keying import Keying
from streamml.local.exchange_order import Order
from streamml.local.exchange_rows import RowCodec
from streamml.local.exchange_sink import ExchangeSink
from streamml.local.exchange_source import ExchangeIngest, ExchangeSource, ExchangeTracker
from streamml.local.options import LocalOptions
from streamml.local.share import Share
from streamml.pipeline import Pipeline, StageSpec
from streamml.ports import Sink, Source
from streamml.watermarks import WatermarkTracker

__all__ = ["SOURCE", "Exchange", "Wired", "cut", "stage_names", "wire"]

SOURCE = "exchange"
"""Tag of the source of a segment that reads an exchange."""


@dataclass(frozen=True)
class Exchange:
    """Where the logs between the segments of a job are.

    Attributes:
        home: the folder that holds `exchange-0001` (between segments 0 and 1) and so on.
        ended: whether all workers of the segment before have ended in order.
    """

    home: Path
    ended: Callable[[], bool] = lambda: False

    def folder(self, segment: int) -> Path:
        """Return the folder of the logs that a segment reads.

        >>> Exchange(Path("state/gen-0001")).folder(1).as_posix()
        'state/gen-0001/exchange-0001'
        """
        return self.home / f"exchange-{segment:04d}"


def cut(pipeline: Pipeline) -> list[tuple[StageSpec, ...]]:
    """Return the stages of each segment: a keyed stage begins one, except for the first keyed one.

    >>> from streamml import Event, Pipeline
    >>> class Payment(Event, id="id", time="ts"):
    ...     id: str
    ...     card: str
    ...     shop: str
    ...     ts: int
    >>> pipeline = Pipeline("p", schema=Payment).key_by("card").key_by("shop")
    >>> [[stage.name for stage in stages] for stages in cut(pipeline)]
    [['source', 'stage1'], ['stage2']]
    """
    segments: list[list[StageSpec]] = [[]]
    for stage in pipeline.stages:
        if stage.selector is not None and any(other.selector is not None for other in segments[-1]):
            segments.append([])
        segments[-1].append(stage)
    return [tuple(stages) for stages in segments]


def stage_names(pipeline: Pipeline) -> list[list[str]]:
    """Return the names of the stages of each segment."""
    return [[stage.name for stage in stages] for stages in cut(pipeline)]


@dataclass
class Wired:
    """What the engine of one worker runs.

    Attributes:
        pipeline: its segment.
        sources, sink, sides: what that reads and writes.
        tracker, ingest: follow the watermark and decode, where it reads an exchange; else None.
        onward: the sink, where it is an exchange.
        order: of the rows that go there.
    """

    pipeline: Pipeline
    sources: dict[str, Source]
    sink: Sink
    sides: dict[str, Sink]
    tracker: WatermarkTracker | None = None
    ingest: dict[str, Ingest | ExchangeIngest] | None = None
    onward: ExchangeSink | None = None
    order: Order | None = None


def wire(
    pipeline: Pipeline,
    sources: Mapping[str, Source],
    sink: Sink,
    sides: Mapping[str, Sink],
    share: Share,
    exchange: Exchange,
    options: LocalOptions,
    step: Callable[[str], None],
) -> Wired:
    """Cut out the segment of one worker, and put exchanges where it begins and ends.

    Raises:
        PlanError: the pipeline has other segments than the job was started with.
    """
    segments = cut(pipeline)
    if len(segments) != share.segments:
        msg = f"pipeline {pipeline.name!r}: wanted {share.segments} segments, as the job was started with, got "
        raise PlanError(msg + str(len(segments)))
    last = share.segment == len(segments) - 1
    selected = pipeline.selected if last else None
    part = dataclasses.replace(pipeline, schema=None, stages=segments[share.segment], selected=selected, side_uris={})
    found = Wired(part, dict(sources), sink, {name: side for name, side in sides.items() if name in part.sides})
    codec = RowCodec([spec.schema for spec in pipeline.sources])
    if not last:
        found.order = Order(share.segment)
        found.sink = found.onward = ExchangeSink(
            exchange.folder(share.segment + 1) / f"worker-{share.index:04d}",
            Keying(segments[share.segment + 1][0]),
            codec,
            found.order,
            groups=pipeline.key_groups,
            workers=share.count,
            most_unread=options.exchange_mb << 20,
            file_bytes=min(options.exchange_mb << 18, 64 << 20),
            fsync=options.fsync,
            on_step=step,
        )
    if share.segment:
        spec = dataclasses.replace(pipeline.sources[0], tag=SOURCE, uri=None)
        found.pipeline = dataclasses.replace(part, schema=None, sources=(spec,))
        source = ExchangeSource(
            exchange.folder(share.segment),
            share.index,
            share.count,
            codec,
            found.order,
            ended=exchange.ended,
            keep=options.keep_checkpoints,
        )
        found.sources = {SOURCE: source}
        found.tracker = tracker = ExchangeTracker(source)
        found.ingest = {SOURCE: ExchangeIngest(source, tracker)}
    return found
