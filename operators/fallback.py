"""What `Infer` gives an event that its model could not score in time, or at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamml.errors import PlanError
from streamml.times import Duration, to_millis

__all__ = ["LastValue", "chain"]


class LastValue(msgspec.Struct, frozen=True):
    """Falls back to what the model last gave for the same key.

    Attributes:
        ttl: how old it may be, in event time.

    >>> LastValue("10m").ttl
    600000
    """

    ttl: Duration = "1h"

    def __post_init__(self) -> None:
        try:
            millis = to_millis(self.ttl, where="LastValue(ttl=)")
        except ValueError as exc:
            raise PlanError(str(exc)) from exc
        msgspec.structs.force_setattr(self, "ttl", millis)


def chain(fallback: Any, outputs: Sequence[str]) -> tuple[str | LastValue | dict[str, Any], ...]:
    """Return the fallbacks in order: references of models, `LastValue`, or constants by field.

    Raises:
        PlanError: something else is among them.

    >>> chain(["fraud-small@prod", LastValue("10m"), 0.5], ["score"])
    ('fraud-small@prod', LastValue(ttl=600000), {'score': 0.5})
    """
    steps = fallback if isinstance(fallback, list | tuple) else [fallback]
    found: list[str | LastValue | dict[str, Any]] = []
    for step in steps:
        if isinstance(step, str | LastValue):
            found.append(step)
        elif isinstance(step, Mapping) and set(step) == set(outputs):
            found.append(dict(step))
        elif isinstance(step, int | float) and len(outputs) == 1:
            found.append({outputs[0]: step})
        else:
            msg = (
                f"Infer(fallback=): wanted a model ('small@prod'), LastValue(ttl), a number, or a value for each of "
                f"{', '.join(outputs)}, got {step!r}"
            )
            raise PlanError(msg)
    if sum(isinstance(step, LastValue) for step in found) > 1:
        msg = "Infer(fallback=): wanted LastValue once; a second one has nothing else to give"
        raise PlanError(msg)
    return tuple(found)
