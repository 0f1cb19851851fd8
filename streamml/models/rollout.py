"""Which version of a model scores an event: an append-only history of rollouts, read by event time.

A `Rollout` says all that holds for an alias from an event time on: champion, canary or A/B variants, shadows. Which one
is in force at a time, and which version a key gets, are functions of the history alone. So every worker, every engine
and every replay chooses the same version for the same event.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from streamml.errors import ModelError
from streamml.times import MIN_TIME

__all__ = ["Guard", "History", "Rollout", "Split", "sticky"]

_BUCKETS = 10_000
"""Keys are dealt into this many buckets, so a share may be as fine as 0.01 %."""


class Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits which a canary must not cross, compared with the champion by sequential tests; None is not watched.

    Attributes:
        errors: largest share of rows that fail, above the champion's share.
        slowdown: largest ratio of the p99 of its model time per row to the champion's.
        disagreement: largest share of rows that differ from the champion by more than `tolerance`.
        tolerance: largest difference of two scores that still agree.
        drift: largest population stability index of its scores against the champion's.
        false_alarms: chance that a canary that keeps its limits is ever rolled back.
    """

    errors: float | None = 0.001
    slowdown: float | None = 3.0
    disagreement: float | None = None
    tolerance: float = 0.1
    drift: float | None = None
    false_alarms: float = 0.001


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of the keys that another version than the champion scores.

    Attributes:
        version: the version.
        percent: share of the keys, 0 to 100.
        role: `canary` (watched by the guard) or `variant` (one arm of an A/B test).
    """

    version: int
    percent: float
    role: str = "canary"


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One record of a model's history: what holds for an alias from an event time on.

    Attributes:
        number: place in the model's history, rising from 1.
        alias: the alias, such as `prod`.
        action: why it was written: `promote`, `canary`, `variants`, `shadow`, `rollback`, `refuse`, `retire`.
        effective: event time in milliseconds from which it holds; it also takes back what was planned from then on.
        champion: version that scores.
        splits: other versions that score a share of the keys.
        shadows: versions that score as well, without effect.
        guard: limits of the canary.
        at: wall clock in milliseconds at which it was written.
        who: who wrote it.
        why: the reason given.
        refused: number of the rollout that a `refuse` takes back, as if it had never been; else 0.
        previous: SHA-256 of the record before it, so that a changed or missing record is found.
    """

    number: int
    alias: str
    action: str
    effective: int
    champion: int
    splits: tuple[Split, ...] = ()
    shadows: tuple[int, ...] = ()
    guard: Guard | None = None
    at: int = 0
    who: str = ""
    why: str = ""
    refused: int = 0
    previous: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """All versions that it needs, the champion first, each once."""
        return tuple(dict.fromkeys((self.champion, *(split.version for split in self.splits), *self.shadows)))

    @property
    def canary(self) -> int | None:
        """The version of the canary, None when there is none."""
        return next((split.version for split in self.splits if split.role == "canary"), None)

    def choose(self, bucket: int) -> int:
        """Return the version for a key's bucket, as `sticky` gives it.

        A share that grows keeps the keys that it has.

        >>> half = Rollout(number=1, alias="prod", action="canary", effective=0, champion=1, splits=(Split(2, 50),))
        >>> half.choose(4_999), half.choose(5_000)
        (2, 1)
        """
        upto = 0.0
        for split in self.splits:
            upto += split.percent * _BUCKETS / 100
            if bucket < upto:
                return split.version
        return self.champion


def sticky(name: str, key: Any) -> int:
    """Return the bucket, 0 to 9999, of a key for a model: the same in every process, and other for each model.

    >>> sticky("fraud", "card-1") == sticky("fraud", "card-1") != sticky("churn", "card-1")
    True
    """
    digest = blake2b(msgspec.msgpack.encode(key), digest_size=8, person=name.encode()[:16])
    return int.from_bytes(digest.digest(), "big") % _BUCKETS


class History:
    """The rollouts of one alias, as a function of event time.

    Of the records whose `effective` time has come, the last one written counts. Before the first one, the first one's
    champion scores.

    Args:
        rollouts: the records of the alias, in any order.

    >>> def rollout(number, effective, champion):
    ...     return Rollout(number=number, alias="prod", action="promote", effective=effective, champion=champion)
    >>> history = History([rollout(1, 0, 1), rollout(2, 500, 2)])
    >>> history.at(499).champion, history.at(500).champion, history.after(0).champion, history.after(500)
    (1, 2, 2, None)

    A record takes back what was planned for its time and later:

    >>> History([rollout(1, 0, 1), rollout(2, 500, 2), rollout(3, 400, 1)]).at(600).champion
    1

    A refusal takes back one record and nothing else:

    >>> refusal = Rollout(number=4, alias="prod", action="refuse", effective=500, champion=1, refused=2)
    >>> History([rollout(1, 0, 1), rollout(2, 500, 2), rollout(3, 900, 3), refusal]).at(600).champion
    1
    """

    def __init__(self, rollouts: Iterable[Rollout]) -> None:
        spans: list[Rollout] = []
        written = sorted(rollouts, key=lambda r: r.number)
        void = {rollout.refused for rollout in written if rollout.refused}
        for rollout in written:
            if rollout.refused or rollout.number in void:
                continue
            while spans and spans[-1].effective >= rollout.effective:
                spans.pop()
            spans.append(rollout)
        if not spans:
            msg = "history: there is no rollout; promote a version first"
            raise ModelError(msg)
        self.spans: Sequence[Rollout] = spans
        """What counts, by rising effective time."""
        self._starts = [MIN_TIME, *(rollout.effective for rollout in spans[1:])]
        self._first = msgspec.structs.replace(spans[0], splits=(), shadows=(), guard=None)
        self._start = spans[0].effective

    def at(self, time: int) -> Rollout:
        """Return what holds at an event time."""
        if time < self._start:
            return self._first
        return self.spans[bisect_right(self._starts, time) - 1]

    def after(self, time: int) -> Rollout | None:
        """Return the next rollout after an event time, None when none is planned."""
        at = bisect_right(self._starts, time)
        if time < self._start:
            return self.spans[0]
        return self.spans[at] if at < len(self.spans) else None

    def same(self, first: int, last: int) -> bool:
        """Return whether one rollout holds at both times and all between."""
        return self.at(first) is self.at(last)
