"""What can be said of a source's positions without the source: how far each partition was read, and which is further.

Positions are those of a `KafkaSource` (offsets by partition in one mapping) or of a source made of readers (a mapping
for each partition, with the number of its next record).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ContentPositions", "furthest", "held", "records"]


def records(positions: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of the next record of each partition.

    >>> records({"a.jsonl": {"version": 1, "format": "jsonl", "offset": 17, "record": 2}})
    {'a.jsonl': 2}
    >>> records({"version": 1, "format": "kafka", "offsets": {"payments-0": 5}})
    {'payments-0': 5}
    """
    if "offsets" in positions:
        return dict(positions["offsets"])
    return {name: place["record"] for name, place in positions.items()}


def furthest(all_positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return for each partition the position that was read furthest.

    >>> furthest([{"a": {"record": 2}, "b": {"record": 9}}, {"a": {"record": 3}, "b": {"record": 1}}])
    {'a': {'record': 3}, 'b': {'record': 9}}
    """
    first, *others = all_positions
    found = dict(first)
    for positions in others:
        if "offsets" in positions:
            for part in ("offsets", "until"):
                mine, theirs = found.get(part, {}), positions.get(part, {})
                both = {name: max(mine.get(name, 0), theirs.get(name, 0)) for name in {**mine, **theirs}}
                found |= {part: both} if both else {}
            continue
        for name, place in positions.items():
            if name not in found or place["record"] > found[name]["record"]:
                found[name] = place
    return found


def held(positions: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """Return positions of which no partition is further than in the target.

    >>> held({"a": {"record": 2}, "b": {"record": 9}}, {"a": {"record": 3}, "b": {"record": 8}})
    {'a': {'record': 2}, 'b': {'record': 8}}
    """
    limits = records(target)
    if "offsets" in positions:
        offsets = {name: min(at, limits.get(name, at)) for name, at in positions["offsets"].items()}
        return {**positions, "offsets": offsets}
    return {
        name: target[name] if name in limits and place["record"] >= limits[name] else place
        for name, place in positions.items()
    }


class ContentPositions(Sequence[Any]):
    """Stands in for positions where a stream does not tell them: a hash of the content, the same in a replay."""

    def __init__(self, payloads: Sequence[Any]) -> None:
        self._payloads = payloads

    def __len__(self) -> int:
        return len(self._payloads)

    def __getitem__(self, row: Any) -> str:
        payload = self._payloads[row]
        raw = payload if isinstance(payload, bytes) else repr(payload).encode()
        return hashlib.blake2b(raw, digest_size=8).hexdigest()
