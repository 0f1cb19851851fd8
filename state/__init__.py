"""Keyed state: what operators declare, and the stores that keep it."""

from streamml.state.cells import ABSENT, Absent
from streamml.state.descriptors import (
    ListHandle,
    ListState,
    MapHandle,
    MapState,
    ObjectHandle,
    ObjectState,
    SetHandle,
    SetState,
    State,
    ValueHandle,
    ValueState,
)
from streamml.state.store import Store

__all__ = [
    "ABSENT",
    "Absent",
    "ListHandle",
    "ListState",
    "MapHandle",
    "MapState",
    "ObjectHandle",
    "ObjectState",
    "SetHandle",
    "SetState",
    "State",
    "Store",
    "ValueHandle",
    "ValueState",
]
