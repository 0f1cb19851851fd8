"""A source made of readers, one for each partition, that are read in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from streamml.errors import ConnectorError
from streamml.ports import Chunk

__all__ = ["POSITION_VERSION", "PartitionedSource", "Reader", "check_format"]

POSITION_VERSION = 1
"""Written into every stored position; another one is refused."""

_IDLE_WAIT = 0.01


class Reader(Protocol):
    """One partition. Order of calls: `open` once, `read` and `position` in turn, `close`.

    Attributes:
        name: name of the partition.
        record: number of the next record in it.
        finished: true when the last record was handed out.
    """

    @property
    def name(self) -> str: ...
    @property
    def record(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    def open(self, position: Mapping[str, Any] | None) -> None:
        """Start at a position, or at the beginning."""
        ...

    def read(self, limit: int) -> Sequence[Any]:
        """Return at most `limit` records that are there now, without waiting."""
        ...

    def position(self) -> dict[str, Any]:
        """Return where the next record is, as plain JSON."""
        ...

    def share(self) -> tuple[float, float] | None:
        """Return how much was read of how much; None when unknown."""
        ...

    def lag(self) -> int | None:
        """Return how much waits; None when unknown."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class PartitionedSource:
    """Reads its partitions in turn, one run for each poll, so the order depends on nothing but the input.

    Args:
        where: address for messages.
        readers: builds the readers when the source is opened.
        clock, sleep: waiting for more input, for readers that do not end.
    """

    replayable = True

    def __init__(
        self,
        where: str,
        readers: Callable[[], Sequence[Reader]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._where = where
        self._build = readers
        self._readers: list[Reader] = []
        self._turn = 0
        self._clock = clock
        self._sleep = sleep

    def open(self, positions: Mapping[str, Any] | None) -> None:
        """See `Source.open`."""
        self._readers = list(self._build())
        try:
            self._place(dict(positions or {}))
        except BaseException:
            self.close()
            raise

    def _place(self, places: Mapping[str, Any]) -> None:
        names = [reader.name for reader in self._readers]
        if gone := sorted(places.keys() - set(names)):
            msg = (
                f"source {self._where}: the checkpoint has a position in {gone[0]!r}"
                f"{f' and {len(gone) - 1} more' if len(gone) > 1 else ''}, which is not there any more; "
                f"found: {', '.join(sorted(names)[:5]) or 'nothing'}. Put it back, or start without the checkpoint."
            )
            raise ConnectorError(msg)
        self._turn = 0
        for row, reader in enumerate(self._readers):
            place = places.get(reader.name)
            if place is not None and place.get("version") != POSITION_VERSION:
                msg = (
                    f"source {self._where}: wanted a position of version {POSITION_VERSION}, got {place!r}. "
                    "It was stored by another version of streamml: use that one, or start without the checkpoint."
                )
                raise ConnectorError(msg)
            reader.open(place)
            if place is not None and place.get("next"):
                self._turn = row

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        """See `Source.poll`."""
        deadline = self._clock() + timeout
        while True:
            for step in range(len(self._readers)):
                turn = (self._turn + step) % len(self._readers)
                reader = self._readers[turn]
                if reader.finished:
                    continue
                start = reader.record
                payloads = reader.read(limit)
                if payloads:
                    self._turn = (turn + 1) % len(self._readers)
                    count = len(payloads)
                    return Chunk(payloads, [(reader.name, count)], range(start, start + count))
            left = deadline - self._clock()
            if self.finished or left <= 0:
                return None
            self._sleep(min(left, _IDLE_WAIT))

    def positions(self) -> dict[str, Any]:
        """See `Source.positions`."""
        found = {reader.name: reader.position() for reader in self._readers}
        if len(found) > 1:
            found[self._readers[self._turn].name]["next"] = True
        return found

    def partitions(self) -> Sequence[str]:
        """See `Source.partitions`."""
        return [reader.name for reader in self._readers if not reader.finished]

    @property
    def finished(self) -> bool:
        """See `Source.finished`."""
        return all(reader.finished for reader in self._readers)

    def progress(self) -> float | None:
        """See `Source.progress`."""
        shares = [reader.share() for reader in self._readers]
        known = [share for share in shares if share is not None]
        if len(known) < len(shares):
            return None
        total = sum(whole for _, whole in known)
        return min(1.0, sum(done for done, _ in known) / total) if total else 1.0

    def lag(self) -> dict[str, int]:
        """See `Source.lag`."""
        lags = {reader.name: reader.lag() for reader in self._readers}
        return {name: lag for name, lag in lags.items() if lag is not None}

    def close(self) -> None:
        """See `Source.close`."""
        for reader in self._readers:
            reader.close()


def check_format(where: str, position: Mapping[str, Any], wanted: str) -> None:
    """Refuse a position that was taken from an input of another format."""
    if position.get("format") != wanted:
        msg = (
            f"source {where}: the checkpoint's position is of a {position.get('format')!r} input, this one "
            f"is {wanted!r}. Give the source that the checkpoint was taken with, or start without the checkpoint."
        )
        raise ConnectorError(msg)
