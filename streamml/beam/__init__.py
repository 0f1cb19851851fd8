"""Apache Beam as an engine, and our operators inside a Beam pipeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamml.beam.models import HandlerModel, bundle_handler
    from streamml.beam.stage import KeyedStage, StageResult, transform

__all__ = ["HandlerModel", "KeyedStage", "StageResult", "bundle_handler", "transform"]

_IN_MODELS = ("HandlerModel", "bundle_handler")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module = "models" if name in _IN_MODELS else "stage"
    try:
        return getattr(importlib.import_module(f"streamml.beam.{module}"), name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not missing.name.startswith("apache_beam"):
            raise
        msg = f"streamml.beam.{name} needs Apache Beam: pip install 'streamml[beam]'"
        raise ModuleNotFoundError(msg, name=missing.name) from missing
