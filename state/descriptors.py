"""State that an operator declares, and the handles by which it reads and writes it.

A descriptor is written in the operator's class body. While the operator runs, the attribute is a handle on the state of
the current key; outside, it is the descriptor itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, overload

from streamml.errors import RecordError
from streamml.state.cells import ABSENT, Absent, ChunkIO, ListCell, MapCell, SetCell

if TYPE_CHECKING:
    from streamml.state.table import Entry

__all__ = [
    "NEVER",
    "ListHandle",
    "ListState",
    "MapHandle",
    "MapState",
    "ObjectHandle",
    "ObjectState",
    "Scope",
    "SetHandle",
    "SetState",
    "State",
    "ValueHandle",
    "ValueState",
]

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
H = TypeVar("H")
Clock = Literal["event", "processing"]
Ttl = int | str | timedelta | Callable[[Any], int | None] | None

NEVER = 3 * 2**61
"""Expiry of what has no TTL, and the time of no timer: later than `MAX_TIME`, the watermark of an ended stream."""
_DEAD = -NEVER
_NO_IO: Any = None


class Scope(Protocol):
    """What a handle needs to know of the moment: the current key's entry, the clocks, and how to undo."""

    entry: Entry
    timestamp: int
    watermark: int
    now: int
    undo: list[Callable[[], None]]

    @property
    def stage_entry(self) -> Entry: ...


class State(Generic[H]):
    """Base of state descriptors.

    Args:
        ttl: how long after it was written an entry lives; None for ever. A string, a `timedelta`, milliseconds, or a
            function of the operator (`ttl=lambda op: op.period`).
        clock: `event` (default; a replay expires the same entries) or `processing`. By event time an entry written by
            an event of time t is gone once the watermark is at or past t + ttl.
        scope: `key` (default), or (`ObjectState` only) `stage`: one for all the keys that a worker's stage sees
        together, for what is counted over the stream.
    """

    def __init__(self, *, ttl: Ttl = None, clock: Clock = "event", scope: Literal["key", "stage"] = "key") -> None:
        if clock not in ("event", "processing"):
            msg = f"state clock: wanted 'event' or 'processing', got {clock!r}"
            raise ValueError(msg)
        self.ttl = ttl
        self.clock = clock
        self.scope = scope
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> State[H]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> H: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        msg = (
            f"{owner.__name__}.{self.name}: state can be used only while the operator runs in a stage "
            "(on_event, on_timer)"
        )
        raise AttributeError(msg)

    def millis(self, operator: object) -> int | None:
        """Return the TTL of this state for one operator, in milliseconds."""
        from streamml.times import to_millis

        ttl = self.ttl(operator) if callable(self.ttl) else self.ttl
        return None if ttl is None else to_millis(ttl, where=f"{type(operator).__name__}.{self.name} ttl")

    # What the state table calls. A cell of None means: nothing stored.
    wire_type: Any = Any
    chunked = False
    """Spills chunks into rows of their own."""
    stored_in_row = True
    """False where every entry is a row of its own."""

    def describe(self) -> Any:
        """Return the stored type as plain data, compared when a job with stored state is started again."""
        raise NotImplementedError

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> H:
        """Build the handle that the running operator uses."""
        raise NotImplementedError

    def encode(self, cell: Any, io: ChunkIO) -> Any:
        """Return the part of a cell that goes into the key's row."""
        return cell

    def decode(self, wire: Any, chunks: Callable[[int, int], list[tuple[list[Any], list[int]]]]) -> Any:
        """Rebuild a cell."""
        return wire

    def written(self, cell: Any) -> int:
        """Return the newest time at which something in the cell was written."""
        return int(cell[1])


class ValueState(State["ValueHandle[T]"], Generic[T]):
    """One value per key. `default` is returned while nothing is set (a function is called for a fresh one)."""

    def __init__(self, type: type[T], default: Any = None, *, ttl: Ttl = None, clock: Clock = "event") -> None:
        super().__init__(ttl=ttl, clock=clock)
        self.type = type
        self.default = default
        self.wire_type = tuple[type | None, int]  # type: ignore[valid-type]

    def describe(self) -> Any:
        return ["value", describe_type(self.type)]

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> ValueHandle[T]:
        return ValueHandle(slot, scope, ttl, self)


class ListState(State["ListHandle[T]"], Generic[T]):
    """Values in the order in which they were appended, each with its own TTL."""

    chunked = True

    def __init__(self, type: type[T], *, ttl: Ttl = None, clock: Clock = "event") -> None:
        super().__init__(ttl=ttl, clock=clock)
        self.type = type
        self.wire_type = tuple[int, list[int], list[type], list[int]]  # type: ignore[valid-type]

    def describe(self) -> Any:
        return ["list", describe_type(self.type)]

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> ListHandle[T]:
        return ListHandle(slot, scope, ttl, self)

    def encode(self, cell: ListCell, io: ChunkIO) -> Any:
        return cell.wire(io)

    def decode(self, wire: Any, chunks: Callable[[int, int], list[tuple[list[Any], list[int]]]]) -> ListCell:
        first, sizes, tail, tail_times = wire
        values: list[Any] = []
        times: list[int] = []
        kept: list[int] = []
        for found_values, found_times in chunks(first, first + len(sizes)):
            values += found_values
            times += found_times
            kept.append(len(found_values))
        first += len(sizes) - len(kept)  # the oldest ones may have expired and been swept
        return ListCell(values + tail, times + tail_times, first, kept)

    def written(self, cell: ListCell) -> int:
        return max(cell.times, default=_DEAD)


class SetState(State["SetHandle[T]"], Generic[T]):
    """Distinct values, each with its own TTL; membership in constant time."""

    chunked = True

    def __init__(self, type: type[T], *, ttl: Ttl = None, clock: Clock = "event") -> None:
        super().__init__(ttl=ttl, clock=clock)
        self.type = type
        self.wire_type = tuple[int, list[int], list[type], list[int]]  # type: ignore[valid-type]

    def describe(self) -> Any:
        return ["set", describe_type(self.type)]

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> SetHandle[T]:
        return SetHandle(slot, scope, ttl, self)

    def encode(self, cell: SetCell, io: ChunkIO) -> Any:
        return cell.wire(io)

    def decode(self, wire: Any, chunks: Callable[[int, int], list[tuple[list[Any], list[int]]]]) -> SetCell:
        first, newest, tail_values, tail_times = wire
        times: dict[Any, int] = {}
        found = chunks(first, first + len(newest))
        for values, stamps in found:
            times.update(zip(values, stamps, strict=True))
        gone = len(newest) - len(found)  # the oldest ones may have expired and been swept
        for value, time in zip(tail_values, tail_times, strict=True):
            times.pop(value, None)  # added again after it had expired in a chunk
            times[value] = time
        return SetCell(times, len(tail_values), first + gone, newest[gone:])

    def written(self, cell: SetCell) -> int:
        return cell.newest()


class MapState(State["MapHandle[K, V]"], Generic[K, V]):
    """A map per key, stored entry by entry, so that it may be larger than memory; ranges are read in key order.

    Map keys are `str`, `int` or `bytes`.
    """

    stored_in_row = False

    def __init__(self, key_type: type[K], value_type: type[V], *, ttl: Ttl = None, clock: Clock = "event") -> None:
        super().__init__(ttl=ttl, clock=clock)
        if key_type not in (str, int, bytes):
            msg = f"MapState: map keys must be str, int or bytes (they are stored in order), got {key_type!r}"
            raise ValueError(msg)
        self.key_type = key_type
        self.type = value_type

    def describe(self) -> Any:
        return ["map", describe_type(self.key_type), describe_type(self.type)]

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> MapHandle[K, V]:
        return MapHandle(slot, scope, ttl, self)


class ObjectState(State["ObjectHandle[T]"], Generic[T]):
    """One mutable object per key, for operators that lay out their own bytes.

    Every argument is a function of the operator's configuration.

    Args:
        new: gives the function that makes the object of a key that has none.
        to_wire, from_wire: give the functions to msgpack-able data and back.
        signature: gives the text that names the layout; stored state of another signature is refused.
        written: gives the function that returns the newest time that an object holds; the TTL counts from there.
    """

    def __init__(
        self,
        new: Callable[[Any], Callable[[], T]],
        *,
        to_wire: Callable[[Any], Callable[[T], Any]] | None = None,
        from_wire: Callable[[Any], Callable[[Any], T]] | None = None,
        signature: Callable[[Any], str],
        written: Callable[[Any], Callable[[T], int]] | None = None,
        ttl: Ttl = None,
        clock: Clock = "event",
        scope: Literal["key", "stage"] = "key",
    ) -> None:
        super().__init__(ttl=ttl, clock=clock, scope=scope)
        self.new = new
        self.to_wire = to_wire
        self.from_wire = from_wire
        self.signature = signature
        self.written_by = written
        self._written: Callable[[T], int] | None = None
        self.factory: Callable[[], T] | None = None
        self._encode: Callable[[T], Any] | None = None
        self._decode: Callable[[Any], T] | None = None
        self._signature = ""

    def for_operator(self, operator: Any) -> ObjectState[T]:
        """Return this descriptor with its functions taken from one operator's configuration."""
        bound: ObjectState[T] = ObjectState(
            self.new,
            to_wire=self.to_wire,
            from_wire=self.from_wire,
            signature=self.signature,
            written=self.written_by,
            ttl=self.ttl,
            clock=self.clock,
            scope=self.scope,
        )
        bound.name = self.name
        bound.factory = self.new(operator)
        bound._encode = self.to_wire(operator) if self.to_wire else None
        bound._decode = self.from_wire(operator) if self.from_wire else None
        bound._signature = self.signature(operator)
        bound._written = self.written_by(operator) if self.written_by else None
        return bound

    def describe(self) -> Any:
        return ["object", self._signature]

    def handle(self, slot: int, scope: Scope, ttl: int | None) -> ObjectHandle[T]:
        return ObjectHandle(slot, scope, ttl, self)

    def encode(self, cell: T, io: ChunkIO) -> Any:
        return cell if self._encode is None else self._encode(cell)

    def decode(self, wire: Any, chunks: Any) -> T:
        return wire if self._decode is None else self._decode(wire)

    def written(self, cell: T) -> int:
        return NEVER if self._written is None else self._written(cell)


def _storable(value: T) -> T:
    """Refuse an integer that the stored form can't hold, while it is one event's problem."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        msg = f"state holds integers of 64 bits, got {str(value)[:40]}...; store it as text or as a float"
        raise RecordError(msg)
    return value


class _Handle:
    __slots__ = ("_event_clock", "_scope", "_stage", "_state", "_ttl", "slot")

    def __init__(self, slot: int, scope: Scope, ttl: int | None, state: Any) -> None:
        self.slot = slot
        self._scope = scope
        self._ttl = ttl
        self._state = state
        self._event_clock = state.clock == "event"
        self._stage = state.scope == "stage"

    def _stamp(self) -> int:
        """Time that a write gets."""
        return self._scope.timestamp if self._event_clock else self._scope.now

    def _horizon(self) -> int:
        """Latest time of writing that has expired by now."""
        if self._ttl is None:
            return _DEAD
        return (self._scope.watermark if self._event_clock else self._scope.now) - self._ttl

    def _cell(self) -> Any:
        return self._scope.entry.cells[self.slot]

    def _put(self, cell: Any) -> None:
        cells = self._scope.entry.cells
        slot, old = self.slot, cells[self.slot]
        self._scope.undo.append(lambda: cells.__setitem__(slot, old))
        cells[slot] = cell


class ValueHandle(_Handle, Generic[T]):
    """The current key's value."""

    __slots__ = ()

    def get(self) -> T:
        """Return the value, or the default when there is none or it has expired."""
        cell = self._cell()
        if cell is None or cell[1] <= self._horizon():
            default = self._state.default
            result: T = default() if callable(default) else default
            return result
        value: T = cell[0]
        return value

    def set(self, value: T) -> None:
        """Put a value. Do not change a mutable value in place: set it again."""
        self._put((_storable(value), self._stamp()))

    def clear(self) -> None:
        """Remove the value."""
        self._put(None)

    def __bool__(self) -> bool:
        cell = self._cell()
        return cell is not None and cell[1] > self._horizon()


class ListHandle(_Handle, Generic[T]):
    """The current key's list."""

    __slots__ = ()

    def _own(self) -> ListCell:
        cell = self._cell()
        if cell is None:
            cell = ListCell([], [])
            self._put(cell)
        return cell  # type: ignore[no-any-return]

    def append(self, value: T) -> None:
        """Add a value at the end."""
        cell = self._own()
        if self._ttl is not None and cell.times and cell.times[0] <= self._horizon():
            cell.expire(self._horizon(), self._scope.entry.chunk_io(self.slot))
        cell.append(_storable(value), self._stamp())
        self._scope.undo.append(cell.remove_newest)

    def get(self) -> list[T]:
        """Return the values that have not expired, oldest first."""
        cell = self._cell()
        if cell is None:
            return []
        if self._ttl is None:
            return list(cell.values)
        horizon = self._horizon()
        return [value for value, time in zip(cell.values, cell.times, strict=True) if time > horizon]

    def __iter__(self) -> Iterator[T]:
        return iter(self.get())

    def __len__(self) -> int:
        return len(self.get())

    def replace(self, values: list[T]) -> None:
        """Put other values in place of all."""
        cell = self._own()
        fresh = ListCell(list(values), [self._stamp()] * len(values), cell.first + len(cell.chunks))
        if cell.chunks:
            self._scope.entry.chunk_io(self.slot).drop(cell.first, fresh.first)
            self._scope.undo.append(lambda: cell.forget_chunks())
        self._put(fresh)

    def clear(self) -> None:
        """Remove all values."""
        self.replace([])


class SetHandle(_Handle, Generic[T]):
    """The current key's set."""

    __slots__ = ()

    def add(self, value: T) -> bool:
        """Add a value; returns whether it was not there (or had expired)."""
        cell: SetCell = self._cell()
        if cell is None:
            cell = SetCell({}, 0)
            self._put(cell)
        horizon = self._horizon()
        if cell.times.get(value, _DEAD) > horizon:
            return False
        if cell.oldest <= horizon:
            cell.expire(horizon, self._scope.entry.chunk_io(self.slot))
        cell.add(_storable(value), self._stamp())
        self._scope.undo.append(lambda: cell.remove_newest(value))
        return True

    def __contains__(self, value: object) -> bool:
        cell = self._cell()
        return cell is not None and cell.times.get(value, _DEAD) > self._horizon()

    def get(self) -> list[T]:
        """Return the values that have not expired."""
        cell = self._cell()
        horizon = self._horizon()
        return [] if cell is None else [value for value, time in cell.times.items() if time > horizon]

    def __len__(self) -> int:
        return len(self.get())


class MapHandle(_Handle, Generic[K, V]):
    """The current key's map."""

    __slots__ = ()

    def get(self, map_key: K, default: Any = None) -> Any:
        """Return the value at a map key, or the default."""
        found = self._cell().get(map_key)
        return default if found is None or found[1] <= self._horizon() else found[0]

    def put(self, map_key: K, value: V) -> None:
        """Put a value at a map key."""
        self._change(_storable(map_key), (_storable(value), self._stamp()))

    def delete(self, map_key: K) -> None:
        """Remove a map key; nothing happens when it is not there."""
        self._change(map_key, None)

    def items(self, low: K | Absent = ABSENT, high: K | Absent = ABSENT) -> Iterator[tuple[K, V]]:
        """Yield the entries with low <= map key < high in order."""
        horizon = self._horizon()
        for map_key, (value, time) in self._cell().scan(low, high):
            if time > horizon:
                yield map_key, value

    def __contains__(self, map_key: object) -> bool:
        return self.get(map_key, ABSENT) is not ABSENT  # type: ignore[arg-type]

    def _change(self, map_key: K, new: tuple[Any, int] | None) -> None:
        cell: MapCell = self._cell()
        old = cell.get(map_key)
        self._scope.undo.append(lambda: cell.put(map_key, old))
        cell.put(map_key, new)


class ObjectHandle(_Handle, Generic[T]):
    """The current key's object, changed in place; validate before you change, there is no undo."""

    __slots__ = ()

    def get(self) -> T:
        """Return the object, a new one if the key has none."""
        cells = (self._scope.stage_entry if self._stage else self._scope.entry).cells
        cell = cells[self.slot]
        if cell is None:
            cell = cells[self.slot] = self._state.factory()
        return cell  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Forget the object."""
        (self._scope.stage_entry if self._stage else self._scope.entry).cells[self.slot] = None


def describe_type(kind: Any) -> Any:
    """Return a stored type as plain data: structs by field (with whether it has a default), others by name."""
    import msgspec

    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {
            "struct": {
                f.name: [
                    describe_type(f.type),
                    f.default is not msgspec.NODEFAULT or f.default_factory is not msgspec.NODEFAULT,
                ]
                for f in msgspec.structs.fields(kind)
            }
        }
    return (
        getattr(kind, "__name__", str(kind))
        if isinstance(kind, type) and not getattr(kind, "__args__", None)
        else str(kind)
    )
