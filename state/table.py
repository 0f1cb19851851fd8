"""The keyed state of one stage: decoded entries in a bounded write-back cache, in front of a store."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import msgspec

from streamml.errors import StateError
from streamml.state.cells import ABSENT, MapCell
from streamml.state.descriptors import NEVER
from streamml.state.footprint import footprint
from streamml.state.layout import HEADER, Layout, Slot, expired, pack_header
from streamml.state.store import Store

__all__ = ["KEY_GROUPS", "STAGE_KEY", "Entry", "StateTable", "encode_key", "key_group"]

KEY_GROUPS = 128
"""Default number of key groups of a pipeline; fixed for the life of its state."""

STAGE_KEY = "\0stage"
"""First part of the key under which an operator keeps what belongs to the whole stage."""

_ROUTE = struct.Struct(">HBc")  # key group, stage, kind
_CHUNK = struct.Struct(">HQ")  # slot id, chunk number
_SLOT = struct.Struct(">H")
_INT = struct.Struct(">Q")
_KEY_OVERHEAD = 300  # bytes of a cached key beside cells, key and encoded key: its entry, its place in dicts and lists
_FIRST_GUESS = 1_000  # bytes of cells, key and encoded key, before any was measured
_SAMPLE_EVERY = 16  # micro-batches
_SAMPLES = 16  # about so many of the last samples count
_WRITE_ROWS = 8_192
_LEAST = 1_000  # keys that are cached in any case

encode_key: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""Encode a key; the result is self-delimiting and the same in every process."""
_decode_key = msgspec.msgpack.Decoder().decode


def key_group(key_bytes: bytes, groups: int) -> int:
    """Return the key group of an encoded key: a stable hash, the same in every process and on every engine.

    >>> key_group(encode_key("card-1"), 128)
    29
    """
    return crc32(key_bytes) % groups


class Entry:
    """The states of one key: one cell for each slot, None where there is nothing."""

    __slots__ = ("cells", "dirty", "key", "key_bytes", "stored", "table", "used")

    def __init__(self, table: StateTable, key: Any, key_bytes: bytes, cells: list[Any]) -> None:
        self.table = table
        self.key = key
        self.key_bytes = key_bytes
        self.cells = cells
        self.dirty = False
        self.stored = False
        self.used = True

    def row(self, kind: bytes, rest: bytes = b"") -> bytes:
        """Return the store's key for a row of kind `k` (small states), `c` (chunk) or `m` (map entry)."""
        table = self.table
        return _ROUTE.pack(key_group(self.key_bytes, table.groups), table.stage, kind) + self.key_bytes + rest

    def chunk_io(self, slot: int) -> _ChunkIO:
        """Return where a slot's chunks go."""
        return _ChunkIO(self, slot)


class _ChunkIO:
    __slots__ = ("_entry", "_slot")

    def __init__(self, entry: Entry, slot: int) -> None:
        self._entry = entry
        self._slot = slot

    def put(self, number: int, values: list[Any], times: list[int]) -> None:
        table = self._entry.table
        head = table.header(self._slot, max(times))
        table.pending[self._key(number)] = head + msgspec.msgpack.encode([values, times])

    def drop(self, first: int, stop: int) -> None:
        for number in range(first, stop):
            self._entry.table.pending[self._key(number)] = None

    def _key(self, number: int) -> bytes:
        return self._entry.row(b"c", _CHUNK.pack(self._entry.table.slot_ids[self._slot], number))


class _MapIO:
    __slots__ = ("_decode", "_entry", "_prefix", "_slot")

    def __init__(self, entry: Entry, slot: int) -> None:
        self._entry = entry
        self._slot = slot
        self._prefix = entry.row(b"m", _SLOT.pack(entry.table.slot_ids[slot]))
        self._decode = entry.table.map_decoders[slot]

    def key(self, map_key: Any) -> bytes:
        return self._prefix + _order(map_key)

    def get(self, map_key: Any) -> tuple[Any, int] | None:
        row = self._entry.table.read([self.key(map_key)])[0]
        return None if row is None else self._decode(memoryview(row)[HEADER.size :])

    def scan(self, low: Any, high: Any) -> Iterator[tuple[Any, tuple[Any, int]]]:
        start = self._prefix if low is ABSENT else self.key(low)
        stop = _after(self._prefix) if high is ABSENT else self.key(high)
        kind = self._entry.table.slots[self._slot].state.key_type  # type: ignore[attr-defined]
        cut = len(self._prefix)
        for key, row in self._entry.table.scan(start, stop):
            yield _unorder(key[cut:], kind), self._decode(memoryview(row)[HEADER.size :])


class StateTable:
    """Keyed state of one stage.

    Args:
        store: where rows are kept.
        slots: the states of the stage's operators.
        stage: number of the stage within its store.
        groups: number of key groups.
        memory: what said `snapshot` when the restored checkpoint was taken, None for a new state.
        cache_bytes: bound of the cache; the size of cached Python objects is an estimate from samples.
    """

    def __init__(
        self,
        store: Store,
        slots: Sequence[Slot],
        *,
        stage: int = 0,
        groups: int = KEY_GROUPS,
        memory: dict[str, Any] | None = None,
        cache_bytes: int = 512 << 20,
    ) -> None:
        memory = memory or {}
        if memory.get("groups", groups) != groups:
            msg = (
                f"key groups: the stored state has {memory['groups']}, the pipeline asks for {groups}; keep "
                "the stored number"
            )
            raise StateError(msg)
        self.store = store
        self.stage = stage
        self.groups = groups
        self.slots = tuple(slots)
        self.layout = Layout(slots, {int(n): layout for n, layout in memory.get("layouts", {}).items()})
        self._ids: dict[str, int] = dict(memory.get("slot_ids", {}))
        for slot in slots:
            self._ids.setdefault(slot.name, len(self._ids) + 1)
        self.slot_ids = [self._ids[slot.name] for slot in slots]
        self.map_slots = [n for n, slot in enumerate(slots) if not slot.state.stored_in_row]
        self.map_decoders = {n: _decoder_of(tuple[_type_of(slots[n]), int]) for n in self.map_slots}  # type: ignore[misc]
        self._has_rows = len(self.map_slots) < len(self.slots)
        self.cache: dict[Any, Entry] = {}
        self.pending: dict[bytes, bytes | None] = {}
        self._dirty: list[Entry] = []
        self._cache_bytes = cache_bytes
        self._mean_size = float(_FIRST_GUESS)
        self._samples = self._trims = 0
        self._swept_to = b""

    def entries(self, keys: list[Any]) -> list[Entry]:
        """Return the entry of each key, read in bulk where it is not cached; each counts as changed from now on."""
        cache = self.cache
        try:
            found = list(map(cache.__getitem__, keys))
        except KeyError:
            self._load(dict.fromkeys(key for key in keys if key not in cache))
            found = list(map(cache.__getitem__, keys))
        for entry in [entry for entry in found if not entry.dirty]:
            if not entry.dirty:
                entry.dirty = entry.used = True
                self._dirty.append(entry)
        return found

    def _load(self, keys: dict[Any, None]) -> None:
        made = [Entry(self, key, encode_key(key), []) for key in keys]
        rows: list[bytes | None] = (
            self.read([entry.row(b"k") for entry in made]) if self._has_rows else [None] * len(made)
        )
        for entry, row in zip(made, rows, strict=True):
            if row is None:
                entry.cells = [None] * len(self.slots)
            else:
                entry.stored = True
                entry.cells = self.layout.decode(row, partial(self._chunks, entry))
            for slot in self.map_slots:
                entry.cells[slot] = MapCell(_MapIO(entry, slot))
            self.cache[entry.key] = entry

    def _chunks(self, entry: Entry, slot: int, first: int, stop: int) -> list[tuple[list[Any], list[int]]]:
        io = entry.chunk_io(slot)
        rows = self.read([io._key(number) for number in range(first, stop)])
        decode = _decoder_of(tuple[list[_type_of(self.slots[slot])], list[int]])  # type: ignore[misc]
        return [decode(memoryview(row)[HEADER.size :]) for row in rows if row is not None]

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        """Read rows, those not yet written included."""
        if not self.pending:
            return self.store.get_many(keys)
        pending = self.pending
        missing = [key for key in keys if key not in pending]
        stored = dict(zip(missing, self.store.get_many(missing), strict=True)) if missing else {}
        return [pending[key] if key in pending else stored[key] for key in keys]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Scan rows in order, those not yet written included."""
        merged: dict[bytes, bytes | None] = dict(self.store.scan(start, stop))
        merged.update((key, row) for key, row in self.pending.items() if start <= key < stop)
        for key in sorted(merged):
            row = merged[key]
            if row is not None:
                yield key, row

    def header(self, slot: int, written: int) -> bytes:
        """Return the header of a row that belongs to one slot alone (a chunk, a map entry)."""
        info = self.slots[slot]
        expiry = NEVER if info.ttl is None else written + info.ttl
        if info.state.clock == "event":
            return pack_header(self.layout.number, expiry, -NEVER)
        return pack_header(self.layout.number, -NEVER, expiry)

    def flush(self, watermark: int, now: int) -> int:
        """Write every changed entry to the store and drop some expired rows; returns how many rows were written."""
        written = 0
        for entry in self._dirty:
            entry.dirty = False
            self._encode(entry, watermark, now)
            if len(self.pending) >= _WRITE_ROWS:  # all of them at once would be a second copy of the cache
                written += len(self.pending)
                self.store.write(self.pending)
                self.pending = {}
        self._dirty.clear()
        written += len(self.pending)
        self._sweep(watermark, now, budget=1_000 + written // 2)
        self.store.write(self.pending)
        self.pending = {}
        return written

    def _encode(self, entry: Entry, watermark: int, now: int) -> None:
        try:
            self._put_rows(entry, watermark, now)
        except (TypeError, ValueError, OverflowError, RecursionError, struct.error, msgspec.MsgspecError) as exc:
            names = ", ".join(slot.name for slot, cell in zip(self.slots, entry.cells, strict=True) if cell is not None)
            msg = (
                f"state of key {entry.key!r}: a value in {names} can't be stored: {exc}. An operator put it there: "
                "have it keep values of the declared type, ints of at most 64 bits. The newest checkpoint is intact."
            )
            raise StateError(msg) from exc

    def _put_rows(self, entry: Entry, watermark: int, now: int) -> None:
        pending = self.pending
        for slot in self.map_slots:
            cell: MapCell = entry.cells[slot]
            if cell.changes:
                io: _MapIO = cell.io  # type: ignore[assignment]
                for map_key, value in cell.changes.items():
                    head = b"" if value is None else self.header(slot, value[1])
                    pending[io.key(map_key)] = None if value is None else head + msgspec.msgpack.encode(value)
                cell.changes = {}
                cell.known = {}
        if not self._has_rows:
            return
        row = self.layout.encode(entry.cells, entry.chunk_io)
        key_bytes = entry.key_bytes
        key = _ROUTE.pack(crc32(key_bytes) % self.groups, self.stage, b"k") + key_bytes
        if not expired(row, watermark, now):
            pending[key] = row
            entry.stored = True
        elif entry.stored:
            pending[key] = None
            entry.stored = False

    def _sweep(self, watermark: int, now: int, budget: int) -> None:
        """Go on through the store's rows and drop the expired ones, so that keys that never come back do not stay."""
        if all(slot.ttl is None for slot in self.slots):
            return
        limit = getattr(self.store, "sweep_budget", None)  # a store on which scanning is dear says when
        if limit is not None:
            budget = limit(watermark, now)
        if budget == 0:
            return
        last = b""
        for key, row in self.store.scan(self._swept_to, b"\xff\xff\xff\xff\xff"):
            if budget == 0:
                break
            budget -= 1
            last = key
            if key[2] == self.stage and key[3:4] in b"kmc" and key not in self.pending and expired(row, watermark, now):
                self.pending[key] = None
        self._swept_to = last + b"\x00" if budget == 0 else b""

    def _measure(self) -> None:
        """Look how much memory some entry of late takes."""
        if self._dirty:
            entry = self._dirty[self._trims * 7_919 % len(self._dirty)]
            size = footprint((entry.key, entry.key_bytes, *entry.cells, entry.cells), (Entry, StateTable, _MapIO))
            self._samples += 1
            self._mean_size += (size - self._mean_size) / min(self._samples, _SAMPLES)

    def trim(self, watermark: int, now: int) -> None:
        """Keep the cache within its bound; call between micro-batches."""
        if len(self.cache) <= _LEAST:
            return
        self._trims += 1
        if self._trims % _SAMPLE_EVERY == 0:
            self._measure()
        limit = max(_LEAST, int(self._cache_bytes / (_KEY_OVERHEAD + self._mean_size)))
        if len(self.cache) <= limit:
            return
        drop = len(self.cache) - limit + limit // 10
        kept: list[Entry] = []
        victims: list[Entry] = []
        for entry in self.cache.values():
            if len(victims) == drop:
                break
            if entry.used:
                entry.used = False
                kept.append(entry)
            else:
                victims.append(entry)
        victims += kept[: drop - len(victims)]
        for entry in kept:  # seen once more before they go
            self.cache[entry.key] = self.cache.pop(entry.key)
        for entry in victims:
            del self.cache[entry.key]
            if entry.dirty:
                entry.dirty = False
                self._encode(entry, watermark, now)
                if len(self.pending) >= _WRITE_ROWS:
                    self.store.write(self.pending)
                    self.pending = {}
        gone = set(map(id, victims))
        self._dirty = [entry for entry in self._dirty if id(entry) not in gone]
        self.store.write(self.pending)
        self.pending = {}

    def snapshot(self) -> dict[str, Any]:
        """Return what a restored table has to know, plain JSON; call after `flush`."""
        return {
            "groups": self.groups,
            "layouts": {str(n): layout for n, layout in self.layout.known.items()},
            "slot_ids": self._ids,
        }

    def keys(self) -> Iterator[tuple[Any, int]]:
        """Yield each stored key and the size of its row in bytes."""
        for group in range(self.groups):
            start = _ROUTE.pack(group, self.stage, b"k")
            for key, row in self.store.scan(start, _after(start)):
                yield _decode_key(key[_ROUTE.size :]), len(row)


def _type_of(slot: Slot) -> Any:
    """Return the type of a slot's values."""
    return slot.state.type  # type: ignore[attr-defined]


def _decoder_of(kind: Any) -> Callable[[Any], Any]:
    return msgspec.msgpack.Decoder(kind).decode


def _order(map_key: Any) -> bytes:
    """Encode a map key so that bytes compare as the keys do."""
    if isinstance(map_key, str):
        return map_key.encode("utf-8", "surrogatepass")
    if isinstance(map_key, int):
        return _INT.pack(map_key + 2**63)
    return bytes(map_key)


def _unorder(raw: bytes, kind: type) -> Any:
    if kind is str:
        return raw.decode("utf-8", "surrogatepass")
    return _INT.unpack(raw)[0] - 2**63 if kind is int else raw


def _after(prefix: bytes) -> bytes:
    """Return the first key after all keys with this prefix."""
    number = int.from_bytes(prefix, "big") + 1
    return (
        number.to_bytes(len(prefix) + 1, "big")[-len(prefix) :]
        if number >> (8 * len(prefix)) == 0
        else prefix + b"\xff" * 64
    )
