"""Give a batch its keys: by field or function, per source; a row without a usable key is rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamml.errors import PlanError, RecordError
from streamml.pipeline import StageSpec
from streamml.records import Batch, Record
from streamml.runtime import rejected

__all__ = ["Keying", "keeps_record_key", "record_key"]

_GOOD_TYPES = frozenset((str, int, bytes))
_LIMIT = 2**63


def record_key(event: Record) -> str | bytes:
    """Return the key that a record had in Kafka: text where it is UTF-8, else bytes. For the first `key_by` only.

    `key_by(record_key)` takes the key from the transport, without a field of it in the record. A record that has none
    is rejected, as are all records of a source whose transport has no keys.

    >>> record_key(Record(None, key="card-1"))
    'card-1'
    """
    if event.key is None:
        msg = "the record has no key; wanted one, as records of a Kafka topic have"
        raise RecordError(msg)
    key: str | bytes = event.key
    return key


def keeps_record_key(stages: Sequence[StageSpec], tag: str) -> bool:
    """Return whether records of a source keep their transport's key up to the first `key_by`, which uses it.

    Raises:
        PlanError: a later `key_by` uses it, when it is gone.
    """
    using = [stage.name for stage in stages if stage.selector is not None and stage.selector.get(tag) is record_key]
    if using and using != [stages[1].name]:
        msg = (
            f"stage {using[-1]!r}: key_by(record_key) must be the first key_by of a pipeline: behind it an event has "
            "that stage's key, and no longer its record's"
        )
        raise PlanError(msg)
    return bool(using)


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
        self._of_record = all(each is record_key for each in stage.selector.values())
        self.step = f"key_by.{stage.name}"

    def assign(self, batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
        """Return the batch with its keys, and the rejected records of rows that have none."""
        if self._field is not None:
            keys = batch.column(self._field) if len(batch) else []
            types = set(map(type, keys))
            if types <= _GOOD_TYPES and (int not in types or _fit(keys)):
                batch.keys = keys
                return batch, []
        elif self._of_record and set(map(type, batch.keys)) <= {str, bytes}:
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
