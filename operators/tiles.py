"""The tiles of one key: partial aggregates of equal stretches of event time, from which a value as of any event is read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from streamml.operators.aggregation import Aggregation
from streamml.operators.windows import AllTimeWindow, TrailingWindow, TumblingWindow
from streamml.times import MAX_TIME, MIN_TIME

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

    __slots__ = ("accs", "base", "closed", "closed_first", "numbers")

    def __init__(self, numbers: list[int], accs: list[list[Any]], base: list[Any] | None) -> None:
        self.numbers = numbers
        self.accs = accs
        self.base = base
        self.closed: list[Any] | None = None  # what the newest tile's events see before that tile ...
        self.closed_first = MAX_TIME  # ... from this tile on; MAX_TIME: to be made again

    def step(self, plan: TilePlan, row: Sequence[Any], time: int, watermark: int) -> tuple[Any, ...]:
        """Add an event (its checked row) and return the results as of it."""
        aggregation, numbers = plan.aggregation, self.numbers
        number = time // plan.tile
        first = plan.first_tile(time)
        if not numbers or number > numbers[-1]:
            self._retire(plan, watermark)
            numbers.append(number)
            accs = aggregation.new()
            self.accs.append(accs)
            self.closed_first = MAX_TIME
        elif number == numbers[-1]:
            accs = self.accs[-1]
        else:
            return self._step_back(plan, row, time, number, first)
        aggregation.add(accs, row, time)
        if self.closed_first != first:
            self.closed = self._fold(plan, first, len(numbers) - 1)
            self.closed_first = first
        seen = accs if self.closed is None else aggregation.merge(self.closed, accs)
        return aggregation.results(seen, time, *plan.bounds(time))

    def _step_back(self, plan: TilePlan, row: Sequence[Any], time: int, number: int, first: int) -> tuple[Any, ...]:
        """Add an event that belongs before the newest tile."""
        aggregation = plan.aggregation
        at = bisect_left(self.numbers, number)
        if at == len(self.numbers) or self.numbers[at] != number:
            self.numbers.insert(at, number)
            self.accs.insert(at, aggregation.new())
        aggregation.add(self.accs[at], row, time)
        self.closed_first = MAX_TIME
        seen = self._fold(plan, first, at + 1)
        return aggregation.results(seen or (), time, *plan.bounds(time))

    def _fold(self, plan: TilePlan, first: int, stop: int) -> list[Any] | None:
        """Merge the tiles from number `first` up to position `stop`, oldest first; None if there are none."""
        merge = plan.aggregation.merge
        merged = self.base
        for accs in self.accs[bisect_left(self.numbers, first, 0, stop) : stop]:
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
