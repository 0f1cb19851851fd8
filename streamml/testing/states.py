"""What a store holds for a key, decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamml.pipeline import Pipeline, StageSpec
from streamml.state import MapHandle
from streamml.state.layout import Slot
from streamml.state.memory import MemoryStore
from streamml.state.store import Store
from streamml.state.table import STAGE_KEY, StateTable

__all__ = ["StoredState"]


class _Moment:
    """A moment at which state is read; nothing is written in it."""

    def __init__(self, table: StateTable, key: Any, operator: str, watermark: int, now: int) -> None:
        self.entry = table.entries([key])[0]
        self.stage_entry = table.entries([(STAGE_KEY, operator)])[0]
        self.timestamp = self.watermark = watermark
        self.now = now
        self.undo: list[Callable[[], None]] = []


class StoredState:
    """A copy of the state of a pipeline, taken from a store right after a checkpoint.

    Args:
        pipeline: whose state it is.
        store: where it is.
        manifest: what the engine stored with the checkpoint.
        now: the wall clock.
    """

    def __init__(self, pipeline: Pipeline, store: Store, manifest: Mapping[str, Any], now: int) -> None:
        self.watermark: int = manifest["watermarks"]["current"]
        self._now = now
        self._store = MemoryStore()
        self.rows = dict(store.scan(b"", b"\xff" * 16))
        self._store.write(dict(self.rows))
        self._tables = [
            (spec, self._table(spec, manifest, pipeline.key_groups))
            for spec in pipeline.stages
            if spec.selector is not None and spec.operators
        ]

    def _table(self, spec: StageSpec, manifest: Mapping[str, Any], groups: int) -> StateTable:
        slots = [
            Slot(f"{operator.name}.{name}", state, state.millis(operator))
            for operator in spec.operators
            for name, state in operator.bound_states().items()
        ]
        memory = manifest["stages"][spec.name]["state"]
        return StateTable(self._store, slots, stage=manifest["stage_ids"][spec.name], groups=groups, memory=memory)

    def of(self, key: Any) -> dict[str, Any]:
        """Return the states of a key by `operator.state`; what has expired is not there any more."""
        found: dict[str, Any] = {}
        for _, table in self._tables:
            for number, slot in enumerate(table.slots):
                moment = _Moment(table, key, slot.name.rpartition(".")[0], self.watermark, self._now)
                handle = slot.state.handle(number, moment, slot.ttl)
                found[slot.name] = dict(handle.items()) if isinstance(handle, MapHandle) else handle.get()
        return found
