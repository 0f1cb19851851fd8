"""The rows of a stage, decoded by the names and types that its checkpoint holds, without the operators' code."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamml.errors import StateError
from streamml.state.descriptors import NEVER
from streamml.state.layout import FORMAT, HEADER
from streamml.state.store import Store
from streamml.state.table import STAGE_KEY, encode_key, key_group

__all__ = ["KINDS", "KeyState", "StageRows", "TimerState", "is_stage_key", "key_in", "route"]

KINDS = {b"k": "states", b"c": "chunks", b"m": "maps", b"t": "timers"}
"""What a row holds, by the letter in its key: small states of a key, part of a long list or set, map entry, timer."""

_ROUTE = struct.Struct(">HBc")  # key group, stage, kind
_CHUNK = struct.Struct(">HQ")  # state id, chunk number
_SLOT = struct.Struct(">H")
_TIMER = struct.Struct(">HBQ")  # operator, clock, time
_INT = struct.Struct(">Q")
_BIAS = 2**63
_CLOCKS = ("event", "processing")
_decode = msgspec.msgpack.decode


@dataclass(frozen=True)
class TimerState:
    """A pending timer."""

    operator: str
    name: str
    time: int
    """Milliseconds since the epoch."""
    clock: str


@dataclass(frozen=True)
class KeyState:
    """What a stage keeps for a key.

    Attributes:
        stage: name of the stage.
        key: the key.
        states: by `operator.state`: what is stored, as plain data (bytes that are map keys as hexadecimal text); what
            has outlived its TTL may still be there.
        timers: pending timers.
        expires: event time in ms at which all that is in the key's row has expired, None for never.
        bytes: size of the key's rows.
    """

    stage: str
    key: Any
    states: dict[str, Any] = field(default_factory=dict)
    timers: list[TimerState] = field(default_factory=list)
    expires: int | None = None
    bytes: int = 0


def route(key: bytes) -> tuple[int, int, bytes]:
    """Return key group, number of the stage, and kind of a row, from its key in the store.

    >>> route(bytes([0, 7, 1]) + b"k" + encode_key("card-1"))
    (7, 1, b'k')
    """
    group, stage, kind = _ROUTE.unpack_from(key)
    return group, stage, kind


def key_in(row_key: bytes, kind: bytes) -> bytes:
    """Return the encoded key in the key of a row.

    >>> msgspec.msgpack.decode(key_in(bytes([0, 7, 1]) + b"m" + encode_key(("a", 1)) + b"xx12345678", b"m"))
    ['a', 1]
    """
    start = _ROUTE.size + (_TIMER.size if kind == b"t" else 0)
    return row_key[start : _end(row_key, start)]


def is_stage_key(key: Any) -> bool:
    """Return whether a decoded key is the place where an operator keeps what belongs to its whole stage."""
    return isinstance(key, list) and len(key) == 2 and key[0] == STAGE_KEY


class StageRows:
    """Reads the rows of one stage.

    Args:
        name: name of the stage.
        number: its number in the store.
        memory: what the checkpoint holds of it (`StageRuntime.snapshot`).
        store: the opened copy.
    """

    def __init__(self, name: str, number: int, memory: dict[str, Any], store: Store) -> None:
        self.name = name
        self.number = number
        state = memory["state"]
        self.watermark: int = memory["watermark"]
        self._groups: int = state["groups"]
        self.layouts: dict[int, list[list[Any]]] = {int(n): layout for n, layout in state["layouts"].items()}
        self._ids: dict[str, int] = state["slot_ids"]
        self._operators = {number: operator for operator, number in memory.get("timers", {}).items()}
        self._store = store

    @property
    def states(self) -> dict[str, Any]:
        """The states of the newest layout: name to stored type."""
        return dict(map(tuple, self.layouts[max(self.layouts)])) if self.layouts else {}

    def get(self, key: Any) -> KeyState | None:
        """Return what is stored for a key, None if nothing is."""
        raw = encode_key(key)
        states: dict[str, Any] = {}
        expires: int | None = None
        size = 0
        row_key = self._row_key(raw, b"k")
        row = self._store.get_many([row_key])[0]
        if row is not None:
            size += len(row_key) + len(row)
            states, expires = self._states(raw, row)
        for kind in (b"c", b"m"):
            size += sum(len(k) + len(v) for k, v in self._under(self._row_key(raw, kind)))
        for name, described in self._maps():
            if entries := dict(self._map(raw, name, described)):
                states[name] = entries
        timers = []
        for timer, timer_size in self._timers(raw):
            timers.append(timer)
            size += timer_size
        if not size:
            return None
        return KeyState(self.name, key, states, timers, expires, size)

    def _states(self, raw: bytes, row: bytes) -> tuple[dict[str, Any], int | None]:
        version, number, event, processing = HEADER.unpack_from(row)
        if version != FORMAT or number not in self.layouts:
            msg = (
                f"stage {self.name!r}: a row of format {version}, layout {number}, which this streamml can't "
                "read. Use the version that wrote it."
            )
            raise StateError(msg)
        wires = _decode(memoryview(row)[HEADER.size :])
        found = {}
        for (name, described), wire in zip(self.layouts[number], wires, strict=True):
            if wire is not None:
                found[name] = self._plain(raw, name, described[0], wire)
        expires = max(event, processing)
        return found, None if expires >= NEVER else expires

    def _plain(self, raw: bytes, name: str, kind: str, wire: Any) -> Any:
        if kind == "value":
            return wire[0]
        if kind in ("list", "set"):
            first, chunks, tail, _ = wire
            values: list[Any] = []
            prefix = self._row_key(raw, b"c")
            keys = [prefix + _CHUNK.pack(self._ids[name], number) for number in range(first, first + len(chunks))]
            for part in self._store.get_many(keys):
                if part is not None:  # the oldest ones may have expired and been swept
                    values += _decode(memoryview(part)[HEADER.size :])[0]
            return values + tail
        return wire

    def _maps(self) -> Iterator[tuple[str, Any]]:
        known: dict[str, Any] = {}
        for number in sorted(self.layouts):
            known.update({name: described for name, described in self.layouts[number] if described[0] == "map"})
        yield from known.items()

    def _map(self, raw: bytes, name: str, described: list[Any]) -> Iterator[tuple[Any, Any]]:
        prefix = self._row_key(raw, b"m") + _SLOT.pack(self._ids[name])
        for row_key, row in self._under(prefix):
            part = row_key[len(prefix) :]
            map_key: Any = part.hex()
            if described[1] == "str":
                map_key = part.decode("utf-8", "surrogatepass")
            elif described[1] == "int":
                map_key = _INT.unpack(part)[0] - _BIAS
            yield map_key, _decode(memoryview(row)[HEADER.size :])[0]

    def _timers(self, raw: bytes) -> Iterator[tuple[TimerState, int]]:
        start = _ROUTE.pack(key_group(raw, self._groups), self.number, b"t")
        for row_key, row in self._under(start):
            if key_in(row_key, b"t") == raw:
                operator, clock, time = _TIMER.unpack_from(row_key, _ROUTE.size)
                name = row_key[_ROUTE.size + _TIMER.size + len(raw) :].decode()
                owner = self._operators.get(operator, f"operator number {operator}")
                yield TimerState(owner, name, time - _BIAS, _CLOCKS[clock]), len(row_key) + len(row)

    def _row_key(self, raw: bytes, kind: bytes) -> bytes:
        return _ROUTE.pack(key_group(raw, self._groups), self.number, kind) + raw

    def _under(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows whose key starts with a prefix."""
        yield from self._store.scan(prefix, prefix + b"\xff" * 64)


_SHORT = {
    0xC0: 1,
    0xC2: 1,
    0xC3: 1,
    0xCA: 5,
    0xCB: 9,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: bytes of the length
_COUNTED = {0xDC: 2, 0xDD: 4}  # array: bytes of the count


def _end(data: bytes, at: int) -> int:
    """Return where the msgpack value that starts at `at` ends; for the types that keys have."""
    tag = data[at]
    if tag <= 0x7F or tag >= 0xE0:
        return at + 1
    if 0xA0 <= tag <= 0xBF:
        return at + 1 + (tag & 0x1F)
    if tag in _SHORT:
        return at + _SHORT[tag]
    if tag in _SIZED:
        width = _SIZED[tag]
        return at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if 0x90 <= tag <= 0x9F:
        count, at = tag & 0x0F, at + 1
    elif tag in _COUNTED:
        width = _COUNTED[tag]
        count, at = int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width
    else:
        msg = f"a stored key has a type (msgpack {tag:#x}) that keys can't have; is this the state of another program?"
        raise StateError(msg)
    for _ in range(count):
        at = _end(data, at)
    return at
