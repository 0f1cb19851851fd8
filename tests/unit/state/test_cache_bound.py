"""The cache of decoded state stays within its bound, whatever a key keeps; measured by Python's own allocator."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from streamml.state import ListState, ValueState
from streamml.state.cells import ListCell
from streamml.state.layout import Slot
from streamml.state.memory import MemoryStore
from streamml.state.table import StateTable

MB = 2**20


class Nowhere(MemoryStore):
    """Keeps nothing, so that only the cache takes memory."""

    def write(self, rows: Any) -> None:
        pass


def small(number: int) -> list[Any]:
    return [[number, 0]]


def large(number: int) -> list[Any]:
    return [ListCell([float(number + i) for i in range(60)], [1_000_000 + number + i for i in range(60)])]


@pytest.mark.slow
@pytest.mark.parametrize(("state", "cells"), [(ValueState(int, 0), small), (ListState(float), large)])
def test_the_cache_takes_about_its_bound(state: Any, cells: Any) -> None:
    bound = 8 * MB
    tracemalloc.start()
    try:
        table = StateTable(Nowhere(), [Slot("op.state", state, None)], cache_bytes=bound)
        before = tracemalloc.get_traced_memory()[0]
        taken = []
        for start in range(0, 60_000, 500):
            for entry in table.entries([f"key-{number:08d}" for number in range(start, start + 500)]):
                entry.cells[0] = cells(start)[0]
            table.trim(0, 0)
            if start % 5_000 == 4_500:
                table.flush(0, 0)
            taken.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    full = taken[len(taken) // 2 :]
    assert bound * 0.5 < max(full) < bound * 1.4
    assert len(table.cache) < 60_000
