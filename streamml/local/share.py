"""The share of one worker in a job: each reads all of the input and keeps the rows of its own key groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from streamml.connectors.positions import held, records
from streamml.errors import PlanError
from streamml.local.exchange_order import Order
from streamml.pipeline import Pipeline
from streamml.ports import Chunk, Source
from streamml.records import Batch
from streamml.state.table import encode_key
from streamml.state.workers import owner

__all__ = ["Drain", "Goal", "Share", "Sharing", "check_share"]


@dataclass(frozen=True)
class Share:
    """Which part of a job a worker has.

    Attributes:
        index: its number, from 0.
        count: how many workers there are.
        generation: how often their number was set; 0 for a job of one process.
        segment: which part of the pipeline it runs, from 0: a change of the key begins another one.
        segments: how many parts there are; each has `count` workers.

    >>> Share(1, 3, 2).suffix, Share(1, 3, 2, 1, 2).suffix, Share().suffix
    ('-2-1', '-2-s1-1', '')
    """

    index: int = 0
    count: int = 1
    generation: int = 0
    segment: int = 0
    segments: int = 1

    @property
    def number(self) -> int:
        """Its number among the workers of all segments."""
        return self.segment * self.count + self.index

    @property
    def suffix(self) -> str:
        """What tells the names of workers apart, for consumer groups and transactional ids."""
        if self.generation == 0:
            return ""
        return f"-{self.generation}-{f's{self.segment}-' if self.segment else ''}{self.index}"

    @property
    def label(self) -> str:
        """What tells records apart that each worker may make, such as drift alarms; empty for one worker."""
        return "" if self.count == 1 else f"/worker-{self.index}"


def check_share(pipeline: Pipeline, count: int) -> None:
    """Refuse more workers than a pipeline has key groups.

    Raises:
        PlanError: there are more.
    """
    if count > pipeline.key_groups:
        msg = (
            f"{count} workers: pipeline {pipeline.name!r} has {pipeline.key_groups} key groups, and a worker needs one"
        )
        raise PlanError(msg)


class Sharing:
    """Takes the rows of other workers out of batches.

    Rows are told apart by the key of the keyed stage; where there is none, by their id. Those of an exchange are this
    worker's already.

    Args:
        pipeline: this worker's segment, with one keyed stage at most.
        share: which part of the job it has.
        order: is told the places of the rows in the input, where they go through an exchange afterwards.

    Raises:
        PlanError: more workers than key groups, or a pipeline that changes its key and was not cut into segments.

    Attributes:
        stage: number of the stage before which that happens.
        first: this worker also says what belongs to no key: records that can't be decoded, or have no key.
    """

    def __init__(self, pipeline: Pipeline, share: Share, order: Order | None = None) -> None:
        check_share(pipeline, share.count)
        groups = pipeline.key_groups
        keyed = [number for number, spec in enumerate(pipeline.stages) if spec.selector is not None]
        if share.count > 1 and len(keyed) > 1:
            msg = f"pipeline {pipeline.name!r} changes its key: its segments run apart, so give the engine exchange="
            raise PlanError(msg)
        dealt = share.segment > 0
        self.stage = keyed[0] if keyed else 0
        self.first = share.index == 0 or dealt
        self._order = None if dealt else order
        self._by_id = not keyed
        self._groups = groups
        self._mine = [owner(group, groups, share.count) == share.index for group in range(groups)]
        self._all = dealt or all(self._mine)
        self._kept = self._dropped = 0

    def own(self, batch: Batch) -> Batch:
        """Return the rows of this worker."""
        rows = len(batch)
        if self._all or not rows:
            self._kept += rows
            if self._order is not None:
                self._order.number(batch, range(rows), rows)
            return batch
        mine, groups, encode = self._mine, self._groups, encode_key
        keys = batch.ids if self._by_id else batch.keys
        keep = [row for row, key in enumerate(keys) if mine[crc32(encode(key)) % groups]]
        self._kept += len(keep)
        self._dropped += rows - len(keep)
        own = batch if len(keep) == rows else batch.take(keep)
        if self._order is not None:
            self._order.number(own, keep, rows)
        return own

    def read(self, records: int) -> int:
        """Return how many of the records that were read count as this worker's, since the last call.

        The first worker counts those that never came to have a key, so that the sum over the workers is right.
        """
        kept, dropped, self._kept, self._dropped = self._kept, self._dropped, 0, 0
        return records - dropped if self.first else kept


class Goal:
    """Where in the input a run ends: at these positions, in every partition.

    Before the key groups go to another number of workers, those that there are read on to where the furthest of them
    is.
    """

    def __init__(self, target: Mapping[str, Mapping[str, Any]]) -> None:
        self._target = target
        self._limits = {tag: records(positions) for tag, positions in target.items()}

    def cut(self, tag: str, chunk: Chunk) -> Chunk:
        """Return the records of a chunk that lie before the goal."""
        limits, keep, runs, start = self._limits[tag], [], [], 0
        for partition, count in chunk.runs:
            stop = limits.get(partition, 0)
            inside = [row for row in range(start, start + count) if chunk.offsets[row] < stop]
            runs.append((partition, len(inside)))
            keep += inside
            start += count
        if len(keep) == start:
            return chunk
        columns = (chunk.keys, chunk.times, chunk.traces)
        keys, times, traces = (None if column is None else [column[row] for row in keep] for column in columns)
        payloads, offsets = [chunk.payloads[row] for row in keep], [chunk.offsets[row] for row in keep]
        return Chunk(payloads, runs, offsets, keys, times, traces)  # type: ignore[arg-type]

    def positions(self, tag: str, source: Source) -> dict[str, Any]:
        """Return the positions of a source, in no partition beyond the goal."""
        return held(source.positions(), self._target[tag])

    def reached(self, sources: Mapping[str, Source]) -> bool:
        """Return whether every partition was read up to there."""
        for tag, limits in self._limits.items():
            there = records(sources[tag].positions())
            if any(there.get(partition, 0) < limit for partition, limit in limits.items()):
                return False
        return True


class Drain(Goal):
    """The goal of a worker that reads an exchange: all that is there, once the workers before have reached theirs."""

    def __init__(self) -> None:
        super().__init__({})

    def cut(self, tag: str, chunk: Chunk) -> Chunk:
        """Return the whole chunk."""
        return chunk

    def positions(self, tag: str, source: Source) -> dict[str, Any]:
        """Return the positions of the source."""
        return source.positions()

    def reached(self, sources: Mapping[str, Source]) -> bool:
        """Return false: the source itself says when there is no more."""
        return False
