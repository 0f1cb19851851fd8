"""How the small states of one key are packed into one row, and how rows of an older layout are read.

A row is a header (format version, layout number, expiry by event time, expiry by processing time) and a msgpack array
with one element a state. The layouts that a store has seen are numbered and kept with its checkpoints, so a row says
how it is to be read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from streamml.errors import StateError
from streamml.state.descriptors import NEVER, State

__all__ = ["FORMAT", "HEADER", "Layout", "Slot", "expired", "pack_header"]

FORMAT = 1
"""Version of the row format."""
HEADER = struct.Struct("<BHqq")
"""Format, layout, expiry by event time, expiry by processing time."""
_NOT_HERE = -(2**62)
_NO_CHUNKS: Any = None

Chunks = Callable[[int, int, int], list[tuple[list[Any], list[int]]]]


def pack_header(layout: int, event_expiry: int, processing_expiry: int) -> bytes:
    """Return the header of a row."""
    return HEADER.pack(FORMAT, layout, event_expiry, processing_expiry)


def expired(row: bytes, watermark: int, now: int) -> bool:
    """Return whether everything in a row has outlived its TTL."""
    _, _, event_expiry, processing_expiry = HEADER.unpack_from(row)
    return bool(event_expiry <= watermark and processing_expiry <= now)


@dataclass(frozen=True, slots=True)
class Slot:
    """One declared state of one operator of a stage."""

    name: str
    """`operator.state`: the identity that outlives a change of the pipeline."""
    state: State[Any]
    ttl: int | None
    """Milliseconds, None for ever."""


class Layout:
    """Packs and unpacks the cells of a key for the current slots; reads rows of older layouts too.

    Args:
        slots: the states of the stage in order.
        known: layouts that the store has seen, by number: a list of [slot name, type description].

    Raises:
        StateError: a slot's stored type can't become its present one.
    """

    def __init__(self, slots: Sequence[Slot], known: dict[int, list[list[Any]]] | None = None) -> None:
        self.slots = tuple(slots)
        self.known = dict(known or {})
        mine: list[list[Any]] = [[slot.name, slot.state.describe()] for slot in slots]
        for old in self.known.values():
            for name, description in old:
                now = next((d for n, d in mine if n == name), None)
                if now is not None and (why := _misfit(description, now)):
                    msg = (
                        f"state {name!r}: what is stored does not fit the pipeline: {why}. Give the "
                        "operator another name= to start "
                        f"with empty state, or change it back, or start with a new --state-dir."
                    )
                    raise StateError(msg)
        plain = msgspec.to_builtins(mine)
        number = next((n for n, old in self.known.items() if old == plain), None)
        self.number = number if number is not None else max(self.known, default=0) + 1
        self.known[self.number] = plain
        self._encoder = msgspec.msgpack.Encoder()
        self._writers = [
            (
                number,
                slot.state.encode if slot.state.stored_in_row else None,
                slot.state.chunked,
                slot.ttl,
                slot.state.clock == "event",
                slot.state.written,
            )
            for number, slot in enumerate(slots)
        ]
        wires = tuple(slot.state.wire_type | None for slot in slots)
        self._decoder = msgspec.msgpack.Decoder(tuple[wires] if wires else tuple[()])  # type: ignore[valid-type]
        self._raw = msgspec.msgpack.Decoder(tuple[msgspec.Raw, ...])
        self._by_name = {
            slot.name: (i, msgspec.msgpack.Decoder(slot.state.wire_type | None)) for i, slot in enumerate(slots)
        }
        self._plain_decode = [type(slot.state).decode is State.decode for slot in slots]

    def encode(self, cells: list[Any], io: Callable[[int], Any]) -> bytes:
        """Return the row of a key; `io(slot)` takes the chunks that are spilled."""
        event = processing = _NOT_HERE
        wires: list[Any] = []
        put = wires.append
        for cell, (number, encode, chunked, ttl, by_event, written) in zip(cells, self._writers, strict=True):
            if cell is None or encode is None:
                put(None)
                continue
            put(encode(cell, io(number) if chunked else _NO_CHUNKS))
            expiry = NEVER if ttl is None else written(cell) + ttl
            if by_event:
                if expiry > event:
                    event = expiry
            elif expiry > processing:
                processing = expiry
        return HEADER.pack(FORMAT, self.number, event, processing) + self._encoder.encode(wires)

    def decode(self, row: bytes, chunks: Chunks) -> list[Any]:
        """Return the cells of a row, whatever layout wrote it."""
        version, number, _, _ = HEADER.unpack_from(row)
        if version != FORMAT:
            msg = (
                f"state row of format {version}: this version of streamml reads format {FORMAT}. Run the "
                "version that wrote it."
            )
            raise StateError(msg)
        body = memoryview(row)[HEADER.size :]
        wires: Sequence[Any] = self._decoder.decode(body) if number == self.number else self._migrate(number, body)
        cells: list[Any] = []
        for number, (slot, wire, plain) in enumerate(zip(self.slots, wires, self._plain_decode, strict=True)):
            ready = wire is None or plain
            cells.append(wire if ready else slot.state.decode(wire, partial(chunks, number)))
        return cells

    def _migrate(self, number: int, body: memoryview) -> list[Any]:
        names = [name for name, _ in self.known[number]]
        wires: list[Any] = [None] * len(self.slots)
        for name, raw in zip(names, self._raw.decode(body), strict=True):
            if name in self._by_name:
                slot, decoder = self._by_name[name]
                wires[slot] = decoder.decode(raw)
        return wires


def _misfit(old: Any, new: Any) -> str | None:
    """Say why stored data of type `old` can't be read as `new`; None if it can."""
    if old == msgspec.to_builtins(new) or (old, new) == ("int", "float"):
        return None
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and old[0] == new[0]
        and old[0] != "object"
    ):
        return next((why for a, b in zip(old[1:], new[1:], strict=True) if (why := _misfit(a, b))), None)
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = old["struct"], new["struct"]
        for name, (kind, has_default) in after.items():
            if name not in before:
                if not has_default:
                    return f"the new field {name!r} has no default"
            elif why := _misfit(before[name][0], kind):
                return f"field {name!r}: {why}"
        return None
    return f"stored as {_short(old)}, declared as {_short(new)}"


def _short(description: Any) -> str:
    return description if isinstance(description, str) else msgspec.json.encode(description).decode()[:120]
