"""Event schemas: typed records on msgspec, with the fields that carry the id, the key and the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from streamml.errors import PlanError

__all__ = ["TIME_UNITS", "Event", "Roles", "roles"]

TIME_UNITS = {"ms": 1.0, "s": 1000.0, "us": 0.001, "ns": 0.000001}
"""Milliseconds in one unit of an integer time field."""

_StructMeta: type = type(msgspec.Struct)


@dataclass(frozen=True)
class Roles:
    """Which fields of a schema carry the event's id, its default key and its time (and the unit of that)."""

    id: str | None = None
    key: str | None = None
    time: str | None = None
    time_unit: str = "ms"

    def millis(self) -> Callable[[Any], int]:
        """Return the function from a value of the time field to milliseconds."""
        factor = TIME_UNITS[self.time_unit]
        return int if factor == 1.0 else (lambda value: int(value * factor))


class _EventMeta(_StructMeta):  # type: ignore[misc]
    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        id: str | None = None,
        key: str | None = None,
        time: str | None = None,
        time_unit: str | None = None,
        **config: Any,
    ) -> Any:
        cls = super().__new__(mcls, name, bases, namespace, **config)
        base = next((b.__streamml_roles__ for b in bases if hasattr(b, "__streamml_roles__")), Roles())
        found = Roles(id or base.id, key or base.key, time or base.time, time_unit or base.time_unit)
        for role in ("id", "key", "time"):
            field = getattr(found, role)
            if field is not None and field not in cls.__struct_fields__:
                where = f"schema {name}, {role}="
                raise PlanError.unknown(where, "field", field, cls.__struct_fields__)
        if found.time_unit not in TIME_UNITS:
            where = f"schema {name}, time_unit="
            raise PlanError.unknown(where, "unit", found.time_unit, TIME_UNITS)
        cls.__streamml_roles__ = found
        return cls


if TYPE_CHECKING:

    class Event(msgspec.Struct):
        """The same to a type checker, which does not know the metaclass's arguments."""

        __streamml_roles__: ClassVar[Roles]

        def __init_subclass__(
            cls,
            *,
            id: str | None = None,
            key: str | None = None,
            time: str | None = None,
            time_unit: str | None = None,
            **config: Any,
        ) -> None: ...

else:

    class Event(msgspec.Struct, metaclass=_EventMeta, gc=False):
        """Base class of event schemas.

        Class arguments: `id` names the field that identifies an event (its absence means that source and position do),
        `key` the default key, `time` the event time, `time_unit` its unit (`ms`, `s`, `us`, `ns`).
        Unknown fields are ignored, missing ones take their default; a missing field without default or an
        ill-typed one makes the record a rejected one that says which field.

        >>> class Payment(Event, id="tx_id", key="card_id", time="ts"):
        ...     tx_id: str
        ...     card_id: str
        ...     amount: float
        ...     ts: int
        ...     country: int = 0
        >>> roles(Payment).key
        'card_id'
        >>> msgspec.json.decode(b'{"tx_id": "a", "card_id": "c", "amount": 5, "ts": 7, "new": 1}', type=Payment)
        Payment(tx_id='a', card_id='c', amount=5.0, ts=7, country=0)
        """

        __streamml_roles__: ClassVar[Roles]


def roles(schema: type[Event]) -> Roles:
    """Return the roles that a schema declares."""
    return schema.__streamml_roles__
