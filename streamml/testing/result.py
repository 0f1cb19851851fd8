"""What came out of a script."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamml.errors import PlanError, UnsupportedError
from streamml.records import Record, as_dict
from streamml.times import MIN_TIME

__all__ = ["OutputRecord", "Result"]


class OutputRecord(Record):
    """A record of the main output, copied when it was written.

    It compares with a record by all that it carries, with a dict by its fields.

    >>> OutputRecord({"x": 1}, key="k", fields={"y": 2}) == {"x": 1, "y": 2}
    True
    """

    __slots__ = ()

    @classmethod
    def of(cls, record: Record, fields: tuple[str, ...] | None = None) -> OutputRecord:
        """Copy a record, or some fields of it."""
        value, derived = record.value, record.fields
        if fields is not None:
            envelope = ("id", "key", "timestamp", "tag")
            value, derived = None, {name: record[name] for name in fields if name not in envelope}
        return cls(
            copy.deepcopy(value),
            key=record.key,
            timestamp=record.timestamp,
            id=record.id,
            fields=copy.deepcopy(derived),
            tag=record.tag,
            trace=record.trace,
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            mine = (self.key, self.timestamp, self.id, as_dict(self))
            return mine == (other.key, other.timestamp, other.id, as_dict(other))
        return as_dict(self) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Result:
    """What came out of a script.

    Attributes:
        main: the main output in order, records copied when they were written.
        sides: the side outputs by name, plain dicts.
        watermark: where the watermark stood after the last step of the script.
        figures: what the engine says of the run (`crashes`, `checkpoints`).
    """

    main: list[OutputRecord] = field(default_factory=list)
    sides: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    watermark: int = MIN_TIME
    figures: Mapping[str, int] = field(default_factory=dict)
    read_state: Callable[[Any], dict[str, Any]] | None = field(default=None, repr=False)
    stored: Mapping[bytes, bytes] | None = field(default=None, repr=False)
    """What the store held after the last step of the script, None where an engine can't say."""

    def side(self, name: str) -> list[dict[str, Any]]:
        """Return a side output.

        Raises:
            PlanError: no operator of the script emits it.
        """
        if name not in self.sides:
            where = "result.side"
            raise PlanError.unknown(where, "side output", name, self.sides)
        return self.sides[name]

    def rows(self, kinds: bytes = b"kmct") -> dict[bytes, bytes]:
        """Return stored rows: `k` of keys, `m` of maps, `c` of chunks, `t` of timers.

        Raises:
            UnsupportedError: the engine can't show its store.
        """
        if self.stored is None:
            msg = "result.rows: this engine can't show its store; run the script with engine='local'"
            raise UnsupportedError(msg)
        return {key: value for key, value in self.stored.items() if key[3:4] in kinds}

    def state(self, key: Any) -> dict[str, Any]:
        """Return the states of a key by `operator.state`, as of the last step of the script (before the end)."""
        if self.read_state is None:
            msg = "result.state: this engine can't show state; run the script with engine='local'"
            raise UnsupportedError(msg)
        return self.read_state(key)
