"""Give a batch its keys: by field or function, per source; a row without a usable key is rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamml.errors import RecordError
from streamml.pipeline import StageSpec
from streamml.records import Batch, Record
from streamml.runtime import rejected

__all__ = ["Keying"]

_GOOD_TYPES = frozenset((str, int, bytes))
_LIMIT = 2**63


class Keying:
    """Assigns the keys of one stage.

    Keys are `str`, `int`, `bytes` or tuples of these: what encodes to the same bytes in every process.
    """

    def __init__(self, stage: StageSpec) -> None:
        assert stage.selector is not None
        self._selector: Mapping[str, str | Callable[[Any], Any]] = stage.selector
        first, *rest = stage.selector.values()
        same = isinstance(first, str) and all(each == first for each in rest)
        self._field = first if isinstance(first, str) and same else None
        self.step = f"key_by.{stage.name}"

    def assign(self, batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
        """Return the batch with its keys, and the rejected records of rows that have none."""
        if self._field is not None:
            keys = batch.column(self._field) if len(batch) else []
            types = set(map(type, keys))
            if types <= _GOOD_TYPES and (int not in types or _fit(keys)):
                batch.keys = keys
                return batch, []
        return self._by_row(batch)

    def _by_row(self, batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
        keep: list[int] = []
        keys: list[Any] = []
        bad: list[dict[str, Any]] = []
        for row, event in enumerate(batch.records()):
            try:
                selector = self._selector[event.tag] if event.tag else next(iter(self._selector.values()))
                key = _field(event, selector) if isinstance(selector, str) else selector(event)
                _check(key)
            except Exception as exc:
                bad.append(rejected(event, exc, self.step))
            else:
                keep.append(row)
                keys.append(key)
        kept = batch if len(keep) == len(batch) else batch.take(keep)
        kept.keys = keys
        return kept, bad


def _field(event: Record, name: str) -> Any:
    """Return a field of the event, never the envelope's own `key` or `id`: as `Batch.column` does."""
    if name in event.fields:
        return event.fields[name]
    value = event.value
    if isinstance(value, dict) and name in value:
        return value[name]
    return getattr(value, name) if hasattr(value, name) else event[name]


def _check(key: Any) -> None:
    parts = key if isinstance(key, tuple) and key else (key,)
    for part in parts:
        if type(part) not in _GOOD_TYPES:
            what = "the key is null" if part is None else f"a key of type {type(part).__name__}"
            msg = f"{what}; wanted str, int, bytes or a tuple of these"
            raise RecordError(msg)
    if not _fit(parts):
        msg = f"a key with an int of more than 64 bits: {key!r}; make it a str"
        raise RecordError(msg)


def _fit(parts: Iterable[Any]) -> bool:
    """Return whether the integers among them can be encoded."""
    ints = [part for part in parts if type(part) is int]
    return not ints or (min(ints) >= -_LIMIT and max(ints) < 2 * _LIMIT)
