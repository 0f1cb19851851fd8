"""Give the key groups of a job to another number of workers: the rows of their checkpoints are dealt out anew.

All checkpoints must be of one cut of the input. Stages, layouts, states and timers are numbered in each store as they
came up, so where the numbers of two stores differ, rows are translated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamml.errors import StateError
from streamml.state.layout import HEADER
from streamml.state.rows import key_in
from streamml.state.store import Store
from streamml.state.table import STAGE_KEY, encode_key
from streamml.state.workers import owner

__all__ = ["Plan", "deal_out", "merge_stages"]

_ROUTE = struct.Struct(">HBc")  # key group, stage, kind
_SLOT = struct.Struct(">H")
_CHUNK_NUMBER = 8  # bytes at the end of the key of a chunk row
_TIMER = 11  # bytes of operator, clock and time before the key of a timer row
_STAGE_PREFIX = encode_key((STAGE_KEY, ""))[:-1]
_BATCH = 4096


@dataclass
class _Numbers:
    """How the numbers of one stage of one store are called in the new stores; a number that is missing stays."""

    stage: int
    layouts: dict[int, int] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    timers: dict[int, int] = field(default_factory=dict)

    def same(self, stage: int) -> bool:
        parts = (self.layouts, self.slots, self.timers)
        return stage == self.stage and all(old == new for part in parts for old, new in part.items())


@dataclass
class Plan:
    """What the new stores have in common.

    Attributes:
        stage_ids: number of each stage by its name.
        stages: memory of each stage, as `StageRuntime.snapshot` gives it.
        groups: number of key groups.
    """

    stage_ids: dict[str, int]
    stages: dict[str, Any]
    groups: int
    numbers: list[dict[int, _Numbers]]


def merge_stages(manifests: Sequence[Mapping[str, Any]]) -> Plan:
    """Find numbers for the new stores from what the checkpoints say of theirs.

    Raises:
        StateError: they do not have the same number of key groups.
    """
    counts = {memory["state"]["groups"] for manifest in manifests for memory in manifest["stages"].values()}
    if len(counts) != 1:
        msg = f"workers: wanted checkpoints of one number of key groups, got {sorted(counts)}; are they of one job?"
        raise StateError(msg)
    ids: dict[str, int] = {}
    stages: dict[str, Any] = {}
    numbers: list[dict[int, _Numbers]] = []
    for manifest in manifests:
        mine: dict[int, _Numbers] = {}
        for name, number in sorted(manifest["stage_ids"].items(), key=lambda item: item[1]):
            found = mine[number] = _Numbers(ids.setdefault(name, len(ids)))
            if name in manifest["stages"]:
                empty = {
                    "state": {"groups": counts.copy().pop(), "layouts": {}, "slot_ids": {}},
                    "timers": {},
                    "watermark": None,
                }
                _merge(stages.setdefault(name, empty), manifest["stages"][name], found)
        numbers.append(mine)
    return Plan(ids, stages, counts.pop(), numbers)


def _merge(into: dict[str, Any], memory: Mapping[str, Any], numbers: _Numbers) -> None:
    layouts = into["state"]["layouts"]
    for text, layout in sorted(memory["state"]["layouts"].items(), key=lambda item: int(item[0])):
        known = next((number for number, other in layouts.items() if other == layout), None)
        if known is None:
            known = text if text not in layouts else str(max(map(int, layouts)) + 1)
            layouts[known] = layout
        numbers.layouts[int(text)] = int(known)
    for mine, theirs, translated in (
        (into["state"]["slot_ids"], memory["state"]["slot_ids"], numbers.slots),
        (into["timers"], memory["timers"], numbers.timers),
    ):
        for name, number in sorted(theirs.items(), key=lambda item: item[1]):
            translated[number] = mine.setdefault(name, len(mine) + 1)
    into["watermark"] = (
        memory["watermark"] if into["watermark"] is None else max(into["watermark"], memory["watermark"])
    )


def deal_out(
    plan: Plan,
    stores: Sequence[Store],
    index: int,
    count: int,
    target: Store,
    step: Callable[[str], None] = lambda name: None,
) -> int:
    """Write the rows of one new worker's key groups into its store; returns how many.

    What belongs to a whole stage (`scope="stage"`) goes with the worker of the same index, so of a worker that is no
    more it is dropped.

    Args:
        plan: what `merge_stages` gave for these stores.
        stores: of all workers before, by index.
        index: of the new worker.
        count: how many workers there are now.
        target: its empty store.
        step: called after each write.
    """
    rows: dict[bytes, bytes | None] = {}
    written = 0
    for group in range(plan.groups):
        if owner(group, plan.groups, count) != index and len(stores) <= index:
            continue
        for number, store in enumerate(stores):
            mine = owner(group, plan.groups, count) == index and owner(group, plan.groups, len(stores)) == number
            if not mine and number != index:
                continue
            for key, row in _rows(store, group, plan.numbers[number], keys=mine, whole_stage=number == index):
                rows[key] = row
                if len(rows) == _BATCH:
                    target.write(rows)
                    written += len(rows)
                    rows = {}
                    step("rows written")
    target.write(rows)
    step("rows written")
    return written + len(rows)


def _rows(
    store: Store, group: int, numbers: Mapping[int, _Numbers], *, keys: bool, whole_stage: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of a key group: those of keys, those of whole stages, or both; only of stages with numbers."""
    same = all(found.same(stage) for stage, found in numbers.items())
    start, stop = _SLOT.pack(group), _SLOT.pack(group) + b"\xff" * 8
    prefix, size = _STAGE_PREFIX, len(_STAGE_PREFIX)
    for key, row in store.scan(start, stop):
        at = _ROUTE.size + (_TIMER if key[3:4] == b"t" else 0)
        if key[2] not in numbers or not (whole_stage if key[at : at + size] == prefix else keys):
            continue
        yield (key, row) if same else _translated(key, row, numbers)


def _translated(key: bytes, row: bytes, numbers: Mapping[int, _Numbers]) -> tuple[bytes, bytes]:
    group, stage, kind = _ROUTE.unpack_from(key)
    found = numbers[stage]
    rest = key[_ROUTE.size :]
    if kind == b"t":
        (timer,) = _SLOT.unpack_from(rest)
        rest = _SLOT.pack(found.timers.get(timer, timer)) + rest[_SLOT.size :]
    else:
        if kind in b"cm":
            at = len(rest) - _CHUNK_NUMBER - _SLOT.size if kind == b"c" else len(key_in(key, kind))
            (slot,) = _SLOT.unpack_from(rest, at)
            rest = rest[:at] + _SLOT.pack(found.slots.get(slot, slot)) + rest[at + _SLOT.size :]
        version, layout, event, processing = HEADER.unpack_from(row)
        row = HEADER.pack(version, found.layouts.get(layout, layout), event, processing) + row[HEADER.size :]
    return _ROUTE.pack(group, found.stage, kind) + rest, row
