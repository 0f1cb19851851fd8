"""Side records that any output can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from streamml.connectors.encode import to_plain

__all__ = ["writable"]

_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_SHOWN = 1000  # characters


def writable(value: Any) -> Any:
    """Return a value with whatever JSON can't hold written as text.

    >>> writable({"id": "a", "event": {"x": 1, "made": object}})
    {'id': 'a', 'event': {'x': 1, 'made': "<class 'object'>"}}
    """
    try:
        msgspec.json.encode(value, enc_hook=to_plain)
    except _FAILURES:
        try:
            if isinstance(value, Mapping):
                return {str(name): writable(part) for name, part in value.items()}
            if isinstance(value, list | tuple):
                return [writable(part) for part in value]
            return repr(value)[:_SHOWN]
        except Exception as exc:  # nested too deep, or a repr that raises
            return f"({type(value).__name__} that can't be written: {type(exc).__name__})"
    return value
