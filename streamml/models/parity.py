"""Training-serving parity: the features that a job scored, against the same features computed again offline."""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import ModelError

__all__ = ["FeatureGap", "Parity", "feature_hash", "read_feature_log"]

_NAN = float("nan")


def feature_hash(values: Sequence[Any]) -> str:
    """Return the SHA-256 of a feature vector, the same for NumPy's and Python's numbers, whatever their width.

    Floats count as 64 bits, and every NaN as the same; whole numbers, text and None count as they are. So `1` and `1.0`
    differ.

    Args:
        values: the features of one row in the model's order.

    >>> feature_hash([1.5, 2, "a"]) == feature_hash([1.5, 2, "a"]) != feature_hash([2, 1.5, "a"])
    True
    """
    return hashlib.sha256(msgspec.msgpack.encode([_plain(value) for value in values])).hexdigest()


class _Row(msgspec.Struct):
    """What of a record of the side output `features` is compared."""

    id: str
    operator: str
    features: dict[str, Any]
    hash: str


class FeatureGap(msgspec.Struct):
    """How one feature differs.

    Attributes:
        rows: rows in which it differs.
        largest: largest difference of two numbers; infinite where one of the two is no number.
        example: id, logged and computed value of the first row.
    """

    rows: int = 0
    largest: float = 0.0
    example: tuple[str, Any, Any] = ("", None, None)


@dataclass
class Parity:
    """Compares the rows of a log with rows that are computed again.

    Args:
        logged: rows of the side output `features`, see `read_feature_log`.
        tolerance: largest difference of two numbers that still agree, relative to the larger one or absolute.

    >>> row = {"id": "p/1", "operator": "fraud", "features": {"amount": 1.5}, "hash": feature_hash([1.5])}
    >>> parity = Parity([row])
    >>> parity.add(row)
    >>> parity.equal, parity.missing, parity.holds
    (1, [], True)
    """

    logged: Iterable[Mapping[str, Any]]
    tolerance: float = 0.0
    equal: int = 0
    different: int = 0
    unlogged: int = 0
    gaps: dict[str, FeatureGap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open: dict[tuple[str, str], list[bytes]] = {}
        for row in self.logged:
            found = msgspec.convert(row, _Row)
            self._open.setdefault((found.operator, found.id), []).append(msgspec.msgpack.encode(found))
        self.logged = ()

    @property
    def missing(self) -> list[str]:
        """Ids that were logged and not computed, so far."""
        return [id for _, id in self._open]

    @property
    def holds(self) -> bool:
        """Whether rows were compared, all are equal, and none is missing."""
        return bool(self.equal) and not self.different and not self._open

    def add(self, computed: Mapping[str, Any]) -> None:
        """Compare a computed row with the logged one of its operator and id.

        Rows that are in the log twice, as a restart may write them, count once; events that come twice with one id are
        compared in order.
        """
        row = _Row(computed["id"], computed["operator"], computed["features"], computed["hash"])
        place = (row.operator, row.id)
        first, *rest = self._open.pop(place, [None])
        if first is None:
            self.unlogged += 1
            return
        if rest := [each for each in rest if each is not None and each != first]:
            self._open[place] = rest
        differences = self._differences(msgspec.msgpack.decode(first, type=_Row), row)
        self.equal += not differences
        self.different += bool(differences)
        for name, (then, now, apart) in differences.items():
            gap = self.gaps.setdefault(name, FeatureGap(example=(row.id, then, now)))
            gap.rows += 1
            gap.largest = max(gap.largest, apart)

    def _differences(self, logged: _Row, computed: _Row) -> dict[str, tuple[Any, Any, float]]:
        """Return the features that differ, each with both values and how far apart they are."""
        found: dict[str, tuple[Any, Any, float]] = {}
        for name in dict.fromkeys([*logged.features, *computed.features]):
            then, now = (_plain(row.features.get(name, "(absent)")) for row in (logged, computed))
            apart = _apart(then, now)
            if apart and not apart <= self.tolerance * _size(then, now):
                found[name] = (then, now, apart)
        if not found and not self.tolerance and logged.hash != computed.hash:
            found["(order or type)"] = (logged.hash[:12], computed.hash[:12], math.inf)
        return found


def read_feature_log(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """Read rows of the side output `features` from files of JSON lines, which may end in `.gz`.

    Raises:
        ModelError: a file can't be read, or a line is no such row.
    """
    for path in map(Path, paths):
        opener = gzip.open if path.suffix == ".gz" else open
        try:
            with opener(path, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        msgspec.json.decode(line, type=_Row)
                    except msgspec.DecodeError as exc:
                        msg = (
                            f"feature log {path}, line {number}: wanted a record of the side output `features` "
                            f"({exc}); Infer(..., log_features=True) writes them"
                        )
                        raise ModelError(msg) from exc
                    yield msgspec.json.decode(line)
        except OSError as exc:
            msg = f"feature log {path}: can't be read ({exc}); name the files of the side output `features`"
            raise ModelError(msg) from exc


def _plain(value: Any) -> Any:
    """Return a feature's value as plain Python: float, int, text or None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return _NAN if value != value else value


def _apart(one: Any, two: Any) -> float:
    """Return how far apart two values are; JSON writes NaN as null, so the two count as the same."""
    one, two = (None if value is None or value != value else value for value in (one, two))
    if isinstance(one, int | float) and isinstance(two, int | float):
        return 0.0 if one == two else abs(one - two)
    return 0.0 if one == two else math.inf


def _size(one: Any, two: Any) -> float:
    """Return what a tolerance is relative to: the larger of two numbers, at least 1."""
    return max([1.0, *(abs(value) for value in (one, two) if isinstance(value, int | float) and math.isfinite(value))])
