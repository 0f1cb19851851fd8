"""The bytes that cross between Java and Python: a batch of records in one array, on the way in and on the way out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["NO_TIME", "join", "split", "split_key", "unjoin"]

NO_TIME = -(2**63)
"""Event time of a record that has none."""


def split(payload: bytes, count: int) -> tuple[list[bytes], tuple[int, ...]]:
    r"""Return the records that the batching operator joined, and Flink's watermark before each.

    The payload is lengths (4 bytes each, big-endian), watermarks (8 bytes each), records.

    >>> split(b"\0\0\0\1\0\0\0\2" + bytes(15) + b"\7abb", 2)
    ([b'a', b'bb'], (0, 7))
    """
    lengths = struct.unpack_from(f">{count}I", payload)
    watermarks = struct.unpack_from(f">{count}q", payload, 4 * count)
    ends = accumulate(lengths, initial=12 * count)
    return [payload[start:stop] for start, stop in pairwise(ends)], watermarks


def split_key(record: bytes) -> tuple[bytes | None, bytes]:
    r"""Return a record's key, None if it has none, and the record: length of the key (-1: none), key, record.

    >>> split_key(b"\0\0\0\1k{}"), split_key(b"\xff\xff\xff\xff{}")
    ((b'k', b'{}'), (None, b'{}'))
    """
    length = int.from_bytes(record[:4], "big", signed=True)
    return (None, record[4:]) if length < 0 else (record[4 : 4 + length], record[4 + length :])


def join(records: Sequence[bytes], times: Sequence[int], keys: Sequence[bytes | None], output: int = 0) -> bytes:
    """Return records with their event times and keys as one array for `UnbatchOperator`.

    Args:
        records: the records.
        times: event time of each, `NO_TIME` where there is none.
        keys: key of each, None where there is none.
        output: where they go: 0 to the main output, n to the n-th side output.

    >>> len(join([b"abc"], [7], [b"k"]))
    25
    """
    count = len(records)
    lengths = map(len, records)
    key_lengths = [-1 if key is None else len(key) for key in keys]
    head = struct.pack(f">Bi{count}i{count}i{count}q", output, count, *lengths, *key_lengths, *times)
    return b"".join((head, *records, *(key for key in keys if key is not None)))


def unjoin(data: bytes) -> tuple[int, list[tuple[bytes, bytes | None, int]]]:
    """Return what `join` joined: the output's number, and (record, key, time) of each.

    >>> unjoin(join([b"abc"], [7], [b"k"], 2))
    (2, [(b'abc', b'k', 7)])
    """
    output, count = struct.unpack_from(">Bi", data)
    lengths = struct.unpack_from(f">{count}i", data, 5)
    key_lengths = struct.unpack_from(f">{count}i", data, 5 + 4 * count)
    times = struct.unpack_from(f">{count}q", data, 5 + 8 * count)
    at = 5 + 16 * count
    key_at = at + sum(lengths)
    found: list[tuple[bytes, bytes | None, int]] = []
    for length, key_length, time in zip(lengths, key_lengths, times, strict=True):
        key = data[key_at : key_at + key_length] if key_length >= 0 else None
        found.append((data[at : at + length], key, time))
        at += length
        key_at += max(key_length, 0)
    return output, found
