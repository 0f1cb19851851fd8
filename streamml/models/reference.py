"""What a pipeline calls a model: `fraud`, `fraud@prod`, `fraud:7`."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Reference", "parse_reference"]

_REF = re.compile(r"(?P<name>[^@:/\\]+)(?:@(?P<alias>[^@:/\\]+)|:(?P<version>\d+))?")


class Reference(NamedTuple):
    """A model by name, with the alias or the version that is meant, if any."""

    name: str
    alias: str | None
    version: int | None


def parse_reference(ref: str) -> Reference | None:
    """Return what a reference names, None when it is a path.

    >>> parse_reference("fraud@prod"), parse_reference("models/fraud")
    (Reference(name='fraud', alias='prod', version=None), None)
    >>> parse_reference("fraud:7").version
    7
    """
    match = _REF.fullmatch(ref)
    if match is None or ref.endswith(".onnx"):
        return None
    return Reference(match["name"], match["alias"], None if match["version"] is None else int(match["version"]))
