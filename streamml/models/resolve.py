"""From what a pipeline calls a model, such as `fraud@prod`, to the place where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamml.errors import ModelError, suggest
from streamml.models.reference import Reference, parse_reference
from streamml.models.registry import Registry

__all__ = ["Reference", "parse_reference", "resolve"]


def resolve(ref: str, models_dir: str | Path | Sequence[str | Path]) -> Path:
    """Return the bundle folder or model file that a reference means now.

    Args:
        ref: `name@alias` (its champion now), `name:version`, `name` (as `name@prod`), or a path to a bundle folder or
            model file. `name@prod` without a history is the highest version.
        models_dir: registries to search in order: folders with `<name>/<version>/` or `<name>/` that hold a
            `bundle.json`, or addresses.

    Raises:
        ModelError: there is no such model, version or alias; lists what is there.
    """
    path = Path(ref)
    if path.is_file() or (path / "bundle.json").is_file():
        return path
    parsed = parse_reference(ref)
    if parsed is None:
        msg = f"model {ref!r}: there is no such file or bundle; wanted a path, 'name', 'name@prod' or 'name:3'"
        raise ModelError(msg)
    places = [models_dir] if isinstance(models_dir, str | Path) else list(models_dir)
    registries = [Registry(place) for place in places]
    for registry in registries:
        if versions := registry.versions(parsed.name):
            return registry.path(parsed.name, _choose(ref, parsed, registry, versions))
    there = sorted({name for registry in registries for name in registry.names()})
    searched = ", ".join(map(str, places)) or "no folder"
    msg = f"model {ref!r}: there is no model {parsed.name!r} in {searched}. {suggest(parsed.name, there)}"
    raise ModelError(msg)


def _choose(ref: str, parsed: Reference, registry: Registry, versions: list[int]) -> int:
    """Return the version that is meant."""
    aliases = {record.alias for record in registry.records(parsed.name)}
    alias = parsed.alias or "prod"
    if parsed.version is None and (alias == "prod" or alias in aliases):
        return registry.champion(parsed.name, alias)
    if parsed.version is not None and parsed.version in versions:
        return parsed.version
    wanted = f"version {parsed.version}" if parsed.version is not None else f"alias {alias!r}"
    named = ", ".join(sorted(aliases | {"prod"})) if "prod" in aliases else "prod (the highest version)"
    named = ", ".join([named, *sorted(aliases)]) if aliases and "prod" not in aliases else named
    msg = f"model {ref!r}: there is no {wanted}; versions there: {', '.join(map(str, versions))}; aliases: {named}"
    raise ModelError(msg)
