"""Keeps what comes out of a Beam pipeline whose workers are in this process: for tests and for trying things out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam

__all__ = ["Collect", "collecting"]

_kept: dict[str, list[tuple[str, Any]]] = {}


class Collect(beam.DoFn):
    """Keeps each element, in the order in which they come.

    Args:
        token: what `collecting` gave.
        output: names the output.
    """

    def __init__(self, token: str, output: str) -> None:
        self._token, self._output = token, output

    def process(self, element: Any) -> list[Any]:
        _kept[self._token].append((self._output, element))
        return []


@contextmanager
def collecting() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Give a token for `Collect`, and the list of (output, element) that fills while the pipeline runs."""
    token = uuid.uuid4().hex
    kept: list[tuple[str, Any]] = []
    _kept[token] = kept
    try:
        yield token, kept
    finally:
        del _kept[token]
