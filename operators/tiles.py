"""The tiles of one key.

Partial aggregates of equal stretches of event time, from which a value as of any event is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from streamml.operators.aggregation import Aggregation
from streamml.operators.windows import AllTimeWindow, TrailingWindow, TumblingWindow
from streamml.times import MIN_TIME

__all__ = ["TilePlan", "Tiles"]


class TilePlan:
    """What the tiles of all keys have in common.

    Args:
        aggregation: what is kept in a tile.
        window: how far back an event sees.
        lateness: how far behind the watermark an event may be, ms.
    """

    __slots__ = ("aggregation", "from_base", "lateness", "size", "tile", "tumbling", "window")

    def __init__(
        self, aggregation: Aggregation, window: AllTimeWindow | TumblingWindow | TrailingWindow, lateness: int
    ) -> None:
        self.aggregation = aggregation
        self.window = window
        self.lateness = lateness
        self.tile = window.tile
        self.size = 0 if isinstance(window, AllTimeWindow) else window.size
        self.tumbling = isinstance(window, TumblingWindow)
        self.from_base = isinstance(window, AllTimeWindow)

    def first_tile(self, time: int) -> int:
        """Return the oldest tile that an event of this time sees."""
        if self.from_base:
            return MIN_TIME
        if self.tumbling:
            return time // self.size * self.size // self.tile
        return time // self.tile - self.size // self.tile + 1

    def bounds(self, time: int) -> tuple[int, int]:
        """Return start and end of the window of an event of this time."""
        return self.window.bounds(time)

    def new(self) -> Tiles:
        """Return the tiles of a key that had no event yet."""
        return Tiles([], [], None)

    def to_wire(self, tiles: Tiles) -> list[Any]:
        """Return tiles as msgpack-able data."""
        if self.aggregation.plain:
            return [tiles.numbers, tiles.accs, tiles.base]
        to_wire = self.aggregation.to_wire
        base = None if tiles.base is None else to_wire(tiles.base)
        return [tiles.numbers, [to_wire(accs) for accs in tiles.accs], base]

    def from_wire(self, wire: Sequence[Any]) -> Tiles:
        """Return the tiles that `to_wire` gave."""
        from_wire = self.aggregation.from_wire
        numbers, accs, base = wire
        return Tiles(list(numbers), [from_wire(a) for a in accs], None if base is None else from_wire(base))

    def written(self, tiles: Tiles) -> int:
        """Return the time from which the size of the window is counted until the last tile is of no use."""
        return (tiles.numbers[-1] + 1) * self.tile if tiles.numbers else MIN_TIME


class Tiles:
    """The tiles of one key in order of time, and for windows without a beginning what was before them.

    An event sees what arrived before it, itself included, in tiles that are in its window and not after its own.
    Sums are taken from the oldest tile to the newest, so they do not depend on when old tiles were folded or dropped.
    """

    __slots__ = ("accs", "base", "closed", "high", "low", "newest", "numbers", "start", "stop")

    def __init__(self, numbers: list[int], accs: list[list[Any]], base: list[Any] | None) -> None:
        self.numbers = numbers
        self.accs = accs
        self.base = base
        # The newest tile's span [start, stop) of time, its accumulators, what its events see before it (`closed`),
        # and the bounds of their window. An empty span means: to be made again.
        self.start = self.stop = 0
        self.newest: list[Any] = []
        self.closed: list[Any] | None = None
        self.low = self.high = 0

    def step(self, plan: TilePlan, row: Sequence[Any], time: int, watermark: int) -> tuple[Any, ...]:
        """Add an event (its checked row) and return the results as of it."""
        if not self.start <= time < self.stop:
            numbers, number = self.numbers, time // plan.tile
            if numbers and number < numbers[-1]:
                return self._step_back(plan, row, time, number)
            self._open(plan, number, watermark)
        aggregation = plan.aggregation
        if self.closed is None:
            return aggregation.step(self.newest, row, time, self.low, self.high)
        aggregation.add(self.newest, row, time)
        return aggregation.results(aggregation.merge(self.closed, self.newest), time, self.low, self.high)

    def _open(self, plan: TilePlan, number: int, watermark: int) -> None:
        """Make a tile the newest one, which it is or comes after, and note what its events see."""
        numbers = self.numbers
        if not numbers or number > numbers[-1]:
            if numbers:
                self._retire(plan, watermark)
            numbers.append(number)
            self.accs.append(plan.aggregation.new())
        self.start = number * plan.tile
        self.stop = self.start + plan.tile
        self.newest = self.accs[-1]
        self.closed = self.base if len(numbers) == 1 else self._fold(plan, plan.first_tile(self.start), -1)
        self.low, self.high = plan.bounds(self.start)

    def _step_back(self, plan: TilePlan, row: Sequence[Any], time: int, number: int) -> tuple[Any, ...]:
        """Add an event that belongs before the newest tile."""
        aggregation = plan.aggregation
        at = bisect_left(self.numbers, number)
        if at == len(self.numbers) or self.numbers[at] != number:
            self.numbers.insert(at, number)
            self.accs.insert(at, aggregation.new())
        aggregation.add(self.accs[at], row, time)
        self.start = self.stop = 0  # what the newest tile's events see has changed
        seen = self._fold(plan, plan.first_tile(time), at + 1)
        return aggregation.results(seen or (), time, *plan.bounds(time))

    def _fold(self, plan: TilePlan, first: int, stop: int) -> list[Any] | None:
        """Merge the tiles from number `first` up to position `stop`, oldest first; None if there are none."""
        merge = plan.aggregation.merge
        merged = self.base
        for accs in self.accs[bisect_left(self.numbers, first) : stop]:
            merged = accs if merged is None else merge(merged, accs)
        return merged

    def _retire(self, plan: TilePlan, watermark: int) -> None:
        """Drop the tiles that no event to come can see, or fold them where all are seen for ever."""
        horizon = watermark - plan.lateness
        oldest = horizon // plan.tile if plan.from_base else plan.first_tile(horizon)
        gone = bisect_left(self.numbers, oldest)
        if gone:
            if plan.from_base:
                self.base = self._fold(plan, MIN_TIME, gone)
            del self.numbers[:gone], self.accs[:gone]
