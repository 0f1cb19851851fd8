"""Sends functions and schemas to the workers.

PyFlink pickles with cloudpickle, which takes classes of the main script apart and can't put a msgspec struct together
again. Here a schema that the
workers can't import travels as its definition.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from typing import Any

import cloudpickle
import msgspec

__all__ = ["dumps", "loads"]

_StructMeta: type = type(msgspec.Struct)
_importing = threading.RLock()
_rebuilt: dict[tuple[Any, ...], type] = {}


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _StructMeta) and not _importable(obj):
            return _rebuild, _definition(obj)
        return super().reducer_override(obj)


def dumps(value: Any) -> bytes:
    """Pickle, with the code of what the workers can't import."""
    out = io.BytesIO()
    _Pickler(out).dump(value)
    return out.getvalue()


def loads(data: bytes) -> Any:
    """Read what `dumps` wrote.

    One thread at a time: a worker opens the operators of a slot in threads of one process, and modules that import
    each other, imported from
    two ends at once, make Python raise a deadlock.
    """
    with _importing:
        return pickle.loads(data)


def _importable(cls: Any) -> bool:
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ in ("__main__", *cloudpickle.list_registry_pickle_by_value()):
        return False
    found: Any = module
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls


def _definition(cls: Any) -> tuple[Any, ...]:
    config = cls.__struct_config__
    options = {
        name: getattr(config, name)
        for name in ("frozen", "eq", "order", "array_like", "gc", "omit_defaults", "forbid_unknown_fields", "tag_field")
    }
    if config.tag is not None:
        options["tag"] = config.tag
    renamed = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    options["rename"] = {name: new for name, new in renamed.items() if name != new} or None
    fields = [(f.name, f.type, f.default, f.default_factory) for f in msgspec.structs.fields(cls)]
    hidden = {"__module__", "__qualname__", "__doc__", "__annotations__", "__slots__", "__match_args__"}
    body = {
        name: value
        for name, value in vars(cls).items()
        if name not in hidden
        and (callable(value) or isinstance(value, property | classmethod | staticmethod))
        and name[:9] != "__struct_"
    }
    bases = tuple(base for base in cls.__bases__)
    return (
        cls.__module__,
        cls.__qualname__,
        bases,
        tuple(fields),
        options,
        body,
        getattr(cls, "__streamml_roles__", None),
    )


def _rebuild(
    module: str,
    name: str,
    bases: tuple[type, ...],
    fields: tuple[Any, ...],
    options: dict[str, Any],
    body: dict[str, Any],
    roles: Any,
) -> type:
    known = (module, name, tuple(field[0] for field in fields), repr(fields), repr(options))
    if known in _rebuilt:
        return _rebuilt[known]
    namespace: dict[str, Any] = {"__module__": module, "__qualname__": name, "__annotations__": {}, **body}
    for field, kind, default, factory in fields:
        namespace["__annotations__"][field] = kind
        if default is not msgspec.NODEFAULT:
            namespace[field] = default
        elif factory is not msgspec.NODEFAULT:
            namespace[field] = msgspec.field(default_factory=factory)
    meta = type(bases[0])
    more = (
        {"id": roles.id, "key": roles.key, "time": roles.time, "time_unit": roles.time_unit}
        if roles is not None
        else {}
    )
    made = meta(name.rpartition(".")[2], bases, namespace, **more, **options)
    _rebuilt[known] = made
    return made
