"""PyFlink as an engine, our operators inside a PyFlink program, and models in Flink SQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamml.flink import sql
    from streamml.flink.stage import Stage, keyed_stage

__all__ = ["Stage", "keyed_stage", "sql"]


def __getattr__(name: str) -> Any:
    if name == "sql":
        return importlib.import_module("streamml.flink.sql")
    if name in __all__:
        from streamml.flink import stage

        return getattr(stage, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
