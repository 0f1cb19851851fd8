"""Tensors of the KServe v2 inference protocol: as values for JSON, and as raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.signature import Array, TensorSpec

__all__ = ["array_of", "data_of", "datatype_of", "from_raw", "spec_of", "to_raw"]

_DTYPES = {
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BYTES": "str",
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}


def spec_of(title: str, name: str, datatype: str, shape: Sequence[int]) -> TensorSpec:
    """Describe a tensor of the metadata; -1 is any size.

    >>> str(spec_of("model m", "x", "FP32", [-1, 3]))
    'x: float32[?, 3]'
    """
    if datatype not in _DTYPES:
        msg = f"{title}: {name!r} is of type {datatype}, wanted one of {', '.join(_DTYPES)}"
        raise ModelError(msg)
    return TensorSpec(name, _DTYPES[datatype], tuple(None if int(size) < 0 else int(size) for size in shape))


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type."""
    return "BYTES" if array.dtype.kind in "OU" else _DATATYPES[array.dtype.name]


def data_of(title: str, name: str, array: Array) -> list[Any]:
    """Return the values for JSON, which has no NaN, no infinity and no half floats.

    Raises:
        ModelError: a value can't be written in JSON.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        msg = f"{title}: input {name!r} has a NaN or infinity, which JSON can't carry; use gRPC or binary tensors"
        raise ModelError(msg)
    if array.dtype == np.float16:
        msg = f"{title}: input {name!r} is FP16, which JSON can't carry; use gRPC or binary tensors"
        raise ModelError(msg)
    return list(array.reshape(-1).tolist())


def array_of(title: str, name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """Return the array for the values of JSON, flat or nested.

    Raises:
        ModelError: they are not of this type and shape.
    """
    dtype = _DTYPES.get(datatype)
    try:
        if dtype == "str":
            texts = np.array(data, dtype=object).reshape(-1)
            made = np.array([t.decode() if isinstance(t, bytes) else t for t in texts], dtype=object)
        else:
            made = np.asarray(data, dtype=dtype)
        return made.reshape([int(size) for size in shape])
    except (TypeError, ValueError, OverflowError) as exc:
        msg = f"{title}: output {name!r}: the server's values are no {datatype}{list(shape)} ({exc})"
        raise ModelError(msg) from exc


def to_raw(array: Array) -> bytes:
    r"""Return the bytes of an array: little-endian, rows first; texts with their length before them.

    >>> to_raw(np.array(["ab"], dtype=object))
    b'\x02\x00\x00\x00ab'
    """
    if array.dtype.kind in "OU":
        texts = [str(text).encode() for text in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def from_raw(title: str, name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """Return the array for the bytes of a tensor.

    Raises:
        ModelError: they are too few or too many.

    >>> from_raw("model m", "y", "BYTES", [1], to_raw(np.array(["ab"], dtype=object))).tolist()
    ['ab']
    """
    dtype, sizes = _DTYPES.get(datatype), [int(size) for size in shape]
    try:
        if dtype == "str":
            texts, at, data = [], 0, bytes(raw)
            while at < len(data):
                (size,) = struct.unpack_from("<I", data, at)
                if at + 4 + size > len(data):
                    msg = f"cut short at byte {len(data)}"
                    raise ValueError(msg)
                texts.append(data[at + 4 : at + 4 + size].decode())
                at += 4 + size
            return np.array(texts, dtype=object).reshape(sizes)
        return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(sizes)
    except (TypeError, ValueError, struct.error) as exc:
        msg = f"{title}: output {name!r}: {len(raw)} bytes are no {datatype}{sizes} ({exc})"
        raise ModelError(msg) from exc
