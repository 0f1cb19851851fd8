"""The share of one worker in a job: every worker reads all of the input and keeps the rows of its own key groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from streamml.connectors.positions import held, records
from streamml.errors import PlanError, UnsupportedError
from streamml.pipeline import Pipeline
from streamml.ports import Chunk, Source
from streamml.records import Batch
from streamml.state.table import encode_key
from streamml.state.workers import owner

__all__ = ["Goal", "Share", "Sharing", "check_share"]


@dataclass(frozen=True)
class Share:
    """Which part of a job a worker has.

    Attributes:
        index: its number, from 0.
        count: how many workers there are.
        generation: how often their number was set; 0 for a job of one process.

    >>> Share(1, 3, 2).suffix, Share().suffix
    ('-2-1', '')
    """

    index: int = 0
    count: int = 1
    generation: int = 0

    @property
    def suffix(self) -> str:
        """What tells the names of workers apart, for consumer groups and transactional ids."""
        return "" if self.generation == 0 else f"-{self.generation}-{self.index}"

    @property
    def label(self) -> str:
        """What tells records apart that each worker may make, such as drift alarms; empty for one worker."""
        return "" if self.count == 1 else f"/worker-{self.index}"


def check_share(pipeline: Pipeline, count: int) -> None:
    """Refuse a pipeline that so many workers can't share.

    Raises:
        UnsupportedError: it changes its key, so rows would have to go from one worker to another.
        PlanError: there are more workers than key groups.
    """
    if count > pipeline.key_groups:
        msg = (
            f"{count} workers: pipeline {pipeline.name!r} has {pipeline.key_groups} key groups, and a worker needs one"
        )
        raise PlanError(msg)
    keyed = [spec for spec in pipeline.stages if spec.selector is not None]
    if count > 1 and len(keyed) > 1:
        keys = ", then by ".join(spec.describe_key() for spec in keyed)
        msg = (
            f"{count} workers: pipeline {pipeline.name!r} is keyed by {keys}. Workers of the local engine send no "
            "rows to each other, so they can share one key only. Run it with --workers 1, or on the flink engine."
        )
        raise UnsupportedError(msg)


class Sharing:
    """Takes the rows of other workers out of batches.

    Rows are told apart by the key of the keyed stage; where there is none, by their id.

    Attributes:
        stage: number of the stage before which that happens.
        first: this worker also says what belongs to no key: records that can't be decoded, or have no key.
    """

    def __init__(self, pipeline: Pipeline, share: Share) -> None:
        check_share(pipeline, share.count)
        groups = pipeline.key_groups
        keyed = [number for number, spec in enumerate(pipeline.stages) if spec.selector is not None]
        self.stage = keyed[0] if keyed else 0
        self.first = share.index == 0
        self._by_id = not keyed
        self._groups = groups
        self._mine = [owner(group, groups, share.count) == share.index for group in range(groups)]
        self._all = all(self._mine)
        self._kept = self._dropped = 0

    def own(self, batch: Batch) -> Batch:
        """Return the rows of this worker."""
        rows = len(batch)
        if self._all or not rows:
            self._kept += rows
            return batch
        mine, groups, encode = self._mine, self._groups, encode_key
        keys = batch.ids if self._by_id else batch.keys
        keep = [row for row, key in enumerate(keys) if mine[crc32(encode(key)) % groups]]
        self._kept += len(keep)
        self._dropped += rows - len(keep)
        return batch if len(keep) == rows else batch.take(keep)

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
