"""From what a pipeline calls a model, such as `fraud@prod`, to the place where it lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from streamml.errors import ModelError, suggest
from streamml.models.bundle import Bundle

__all__ = ["resolve"]

_REF = re.compile(r"(?P<name>[^@:/\\]+)(?:@(?P<alias>[^@:/\\]+)|:(?P<version>\d+))?")


def resolve(ref: str, models_dir: str | Path | Sequence[str | Path]) -> Path:
    """Return the bundle folder or model file that a reference means.

    Args:
        ref: `name@alias`, `name:version`, `name`, or a path to a bundle folder or `.onnx` file.
        models_dir: folders to search in order; each holds `<name>/<version>/` or `<name>/` with a `bundle.json`.

    Raises:
        ModelError: there is no such model, version or alias; lists what is there.
    """
    path = Path(ref)
    if path.is_file() or (path / "bundle.json").is_file():
        return path
    folders = [Path(models_dir)] if isinstance(models_dir, str | Path) else [Path(d) for d in models_dir]
    match = _REF.fullmatch(ref)
    if match is None or path.suffix == ".onnx":
        msg = f"model {ref!r}: there is no such file or bundle; wanted a path, 'name', 'name@prod' or 'name:3'"
        raise ModelError(msg)
    name = match["name"]
    for folder in folders:
        versions = _versions(folder / name)
        if versions:
            return versions[_choose(ref, match["alias"], match["version"], versions)]
    there = sorted({p.name for d in folders if d.is_dir() for p in d.iterdir() if p.is_dir() and _versions(p)})
    searched = ", ".join(map(str, folders)) or "no folder"
    msg = f"model {ref!r}: there is no model {name!r} in {searched}. {suggest(name, there)}"
    raise ModelError(msg)


def _versions(base: Path) -> dict[int, Path]:
    """Return the versions of one model: its numbered folders, or the one bundle that it is."""
    found = {int(p.name): p for p in base.iterdir() if p.name.isdigit()} if base.is_dir() else {}
    found = {number: p for number, p in found.items() if (p / "bundle.json").is_file()}
    if not found and (base / "bundle.json").is_file():
        found = {Bundle.load(base).manifest.version: base}
    return found


def _choose(ref: str, alias: str | None, version: str | None, versions: dict[int, Path]) -> int:
    """Return the version that is meant. Until there is a registry, `prod` is the highest."""
    if version is None and alias in (None, "prod"):
        return max(versions)
    if version is not None and int(version) in versions:
        return int(version)
    known = ", ".join(map(str, sorted(versions)))
    wanted = f"version {version}" if version is not None else f"alias {alias!r}"
    msg = f"model {ref!r}: there is no {wanted}; versions there: {known}; aliases: prod (the highest version)"
    raise ModelError(msg)
