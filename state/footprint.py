"""How much memory Python objects take, as near as can be told from inside."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from gc import get_referents
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["footprint"]

_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_SMALL = range(-5, 257)  # integers that exist once
_MOST = 20_000


def footprint(objects: Iterable[Any], stop: tuple[type, ...] = ()) -> int:
    """Return the bytes of these objects and of all that they alone refer to.

    What is shared by its nature (classes, functions, modules, small integers) is not counted, nor what is of a type in
    `stop`. Of very large ones it is an estimate from the first 20,000 objects.

    >>> small, large = footprint([["a"]]), footprint([[float(i) for i in range(100)]])
    >>> 100 < small < 200, 4_000 < large < 4_400
    (True, True)
    """
    waiting = list(objects)
    seen: set[int] = set()
    total = 0
    while waiting and len(seen) < _MOST:
        item = waiting.pop()
        shared = isinstance(item, _SHARED + stop) or (type(item) is int and item in _SMALL)
        if item is None or shared or id(item) in seen:
            continue
        seen.add(id(item))
        total += sys.getsizeof(item) + 15 & ~15
        if not isinstance(item, str | bytes | int | float):
            waiting += get_referents(item)
    return total if not waiting else total * (len(seen) + len(waiting)) // len(seen)
