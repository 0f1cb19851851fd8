"""PyFlink as an engine, and our operators inside a PyFlink program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamml.flink.stage import Stage, keyed_stage

__all__ = ["Stage", "keyed_stage"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from streamml.flink import stage

        return getattr(stage, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
