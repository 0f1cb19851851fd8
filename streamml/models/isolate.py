"""Find the rows of a batch on which a call fails, in few calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from streamml.models.deadline import DeadlineError

__all__ = ["Failure", "isolate"]

_GIVE_UP = 8
"""Rows that fail one by one without any that succeeds, after which the model, not the rows, is held to be at fault."""


class Failure(NamedTuple):
    """Why a row has no score.

    Attributes:
        reason: `input` (the row does not fit the model), `error` (the model failed on it), `deadline` or `breaker`.
        error: the exception.
    """

    reason: str
    error: Exception


def isolate(
    rows: list[int], error: Exception, attempt: Callable[[list[int]], Any], failures: dict[int, Failure]
) -> list[int]:
    """Find the rows on which a call fails: `attempt` raises while one of them is among those that it is given.

    What failed is halved until one row is left, which is then tried by itself; what lies outside is tried again as a
    whole. So one bad row among n costs at most log2(n) + 2 more calls, and no row is blamed that was not tried alone.
    After a call that was late, or when nothing at all succeeds, the rest is given up.

    Returns:
        the good rows, each of which was in a successful attempt, in order.
    """
    good: list[int] = []
    suspects, others = rows, list[int]()  # a bad row is among the suspects; of the others nothing is known
    tried = True  # whether the last failure was that of exactly the suspects
    while suspects:
        if isinstance(error, DeadlineError) or (len(failures) >= _GIVE_UP and not good):
            reason = "deadline" if isinstance(error, DeadlineError) else "error"
            failures.update(dict.fromkeys([*suspects, *others], Failure(reason, error)))
            break
        if len(suspects) == 1 and tried:
            failures[suspects[0]] = Failure("error", error)
            part, rest, others = others, [], []
        else:
            middle = (len(suspects) + 1) // 2
            part, rest = suspects[:middle], suspects[middle:]
        if not part:
            break
        try:
            attempt(part)
        except Exception as exc:
            error, tried = exc, True
            suspects, others = part, rest + others
        else:
            good += part
            tried = False
            suspects, others = (rest, others) if rest else (others, [])
    return sorted(good)
