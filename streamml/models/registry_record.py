"""A stored record of a model's history: a `Rollout` as JSON with its SHA-256, so that a change is found."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from streamml.errors import ModelError
from streamml.models.rollout import Rollout

__all__ = ["RECORD_FORMAT", "decode_record", "encode_record"]

RECORD_FORMAT = 1
"""Version of a stored record; raised when an older reader would misread it."""


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    rollout: msgspec.Raw
    sha256: str


class _Header(msgspec.Struct):
    format: int


def encode_record(rollout: Rollout) -> bytes:
    """Return a record as it is stored."""
    data = msgspec.json.encode(rollout)
    stored = _Stored(RECORD_FORMAT, msgspec.Raw(data), hashlib.sha256(data).hexdigest())
    return msgspec.json.encode(stored) + b"\n"


def decode_record(where: str, data: bytes) -> tuple[Rollout, str]:
    """Return a stored record and its SHA-256.

    Raises:
        ModelError: it is cut short, was changed, or is of a format that is not known here; says `where`.
    """
    try:
        found: Any = msgspec.json.decode(data, type=_Header).format
        if found != RECORD_FORMAT:
            msg = f"{where}: wanted format {RECORD_FORMAT}, got format {found}; use the streamml version that wrote it"
            raise ModelError(msg)
        stored = msgspec.json.decode(data, type=_Stored)
        rollout = msgspec.json.decode(stored.rollout, type=Rollout)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"{where} is cut short or damaged ({exc}); restore it from a copy"
        raise ModelError(msg) from exc
    if hashlib.sha256(stored.rollout).hexdigest() != stored.sha256:
        msg = f"{where} was changed after it was written (its SHA-256 differs); restore it from a copy"
        raise ModelError(msg)
    return rollout, stored.sha256
