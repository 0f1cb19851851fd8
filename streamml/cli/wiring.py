"""From what was typed to addresses: sources by tag, the sink, a place for each side output, parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from streamml.errors import PlanError

if TYPE_CHECKING:
    from streamml.pipeline import Pipeline

__all__ = ["named", "side_uris", "source_uris"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def named(option: str, values: Iterable[str], shape: str) -> dict[str, str]:
    """Split `name=value` options.

    Raises:
        PlanError: one has no name, or a name came twice.

    >>> named("--param", ["limit=5", "mode=a=b"], "name=value")
    {'limit': '5', 'mode': 'a=b'}
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            msg = f"{option} {text}: wanted {shape}"
            raise PlanError(msg)
        if name in found:
            msg = f"{option} {text}: {name} was given already, as {found[name]}; give it once"
            raise PlanError(msg)
        found[name] = value
    return found


def source_uris(pipeline: Pipeline, given: Iterable[str]) -> dict[str, str]:
    """Return the address of each source: what was given, else the source's own.

    Args:
        pipeline: the plan.
        given: `URI`, where there is one source, or `tag=URI`.

    Raises:
        PlanError: a tag that there is not, or a source without an address.
    """
    tags = [spec.tag for spec in pipeline.sources]
    found = {spec.tag: spec.uri for spec in pipeline.sources}
    seen: set[str] = set()
    for text in given:
        tag, equals, uri = text.partition("=")
        if not (equals and tag in tags):
            if len(tags) > 1:
                if equals and _NAME.fullmatch(tag):
                    where = f"--source {text}"
                    raise PlanError.unknown(where, "source", tag, tags)
                msg = f"--source {text}: there are several sources ({', '.join(tags)}); write --source {tags[0]}=URI"
                raise PlanError(msg)
            tag, uri = tags[0], text
        if tag in seen:
            msg = f"--source {text}: {tag!r} was given already, as {found[tag]}; a glob in quotes reads many files"
            raise PlanError(msg)
        seen.add(tag)
        found[tag] = uri
    for tag, address in found.items():
        if address is None:
            option = "--source URI" if len(tags) == 1 else f"--source {tag}=URI"
            msg = f"pipeline {pipeline.name!r}: source {tag!r} has no address; pass {option} (file:events.jsonl, -)"
            raise PlanError(msg)
    return {tag: address for tag, address in found.items() if address is not None}


def side_uris(pipeline: Pipeline, sink: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the address of each side output: what was given, else the pipeline's own, else beside the main output.

    Raises:
        PlanError: a side output that the pipeline does not have.
    """
    from streamml.connectors import side_uri

    for name in given:
        if name not in pipeline.sides:
            where = f"--side {name}=..."
            raise PlanError.unknown(where, "side output", name, pipeline.sides)
    own = pipeline.side_uris
    return {name: given.get(name) or own.get(name) or side_uri(sink, name) for name in pipeline.sides}
