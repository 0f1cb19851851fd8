"""The contract of a keyed state store: bytes in, bytes out, ordered by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Store"]


class Store(Protocol):
    """Ordered bytes-to-bytes store of one worker. Serialising is done above, caching too.

    Not thread-safe: one worker owns its store.
    """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key in order, None where there is none."""
        ...

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Put every row whose value is bytes and delete every key whose value is None, all or nothing."""
        ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows with start <= key < stop in the order of the keys, as of the call."""
        ...

    def checkpoint(self, folder: Path) -> None:
        """Write a consistent copy of everything that was written into a new folder (hard links where possible)."""
        ...

    def size(self) -> dict[str, int]:
        """Return figures about the store, at least `bytes` (on disk or in memory) and `rows` (may be an estimate)."""
        ...

    def close(self) -> None:
        """Release files and memory. A closed store can't be used again."""
        ...
