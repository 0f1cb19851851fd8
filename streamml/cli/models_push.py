"""From what `streamml models push` is given to a version in the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamml.cli.wiring import named
from streamml.drift.profile import Profile, ProfileError
from streamml.errors import ModelError, PlanError
from streamml.models import Bundle, Registry, rolling
from streamml.models.golden import read_arrays
from streamml.models.package import package
from streamml.models.registry import Conflict

__all__ = ["Source", "push_version"]


class Source(NamedTuple):
    """What is pushed."""

    model: str
    features: str | None
    golden: Path | None
    profile: Path | None
    metrics: Sequence[str]
    meta: Sequence[str]
    runtime: str | None
    tolerance: float
    sign: Path | None


def push_version(registry: Registry, name: str, source: Source, who: str | None) -> int:
    """Add the model as the next version, and return its number.

    Raises:
        PlanError: an option is missing or makes no sense.
        ModelError: it is no model, features and golden rows do not fit, or the registry can't be written.
    """
    if (Path(source.model) / "bundle.json").is_file():
        given = {"--features": source.features, "--golden": source.golden, "--profile": source.profile,
                 "--metric": source.metrics, "--meta": source.meta, "--runtime": source.runtime,
                 "--sign": source.sign}  # fmt: skip
        if odd := [option for option, value in given.items() if value]:
            msg = f"{odd[0]}: {source.model} is a bundle, which says that itself; push its model file to say it anew"
            raise PlanError(msg)
        return rolling.push(registry, name, source.model, who=who)
    if source.features is None or source.golden is None:
        missing = "--features" if source.features is None else "--golden"
        msg = f"{missing}: a model that is no bundle needs --features a,b,... and --golden rows.npz"
        raise PlanError(msg)
    features = [feature.strip() for feature in source.features.split(",") if feature.strip()]
    profile = None if source.profile is None else _profile(source.profile, features)
    while True:
        version = registry.next_version(name)
        with tempfile.TemporaryDirectory(prefix="streamml-push-") as scratch:
            bundle: Bundle = package(
                source.model,
                Path(scratch) / "bundle",
                name=name,
                version=version,
                features=features,
                golden=source.golden,
                profile=profile,
                metadata=_metadata(source),
                runtime=source.runtime,
                tolerance=source.tolerance,
            )
            if source.sign is not None:
                bundle.sign(source.sign)
            try:
                return rolling.push(registry, name, bundle.path, who=who)
            except Conflict:  # signed with a number that another writer took meanwhile
                continue


def _metadata(source: Source) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(named("--meta", source.meta, "name=value"))
    metrics = {}
    for name, value in named("--metric", source.metrics, "name=number").items():
        try:
            metrics[name] = float(value)
        except ValueError as exc:
            msg = f"--metric {name}={value}: wanted a number"
            raise PlanError(msg) from exc
    return {**metadata, "metrics": metrics} if metrics else metadata


def _profile(path: Path, features: Sequence[str]) -> Profile:
    """Return the profile in a file, or that of the training data in it."""
    where = f"--profile {path}"
    try:
        if path.suffix == ".json":
            return Profile.from_json(path.read_bytes())
        columns = _columns(where, path)
        if missing := [feature for feature in features if feature not in columns]:
            msg = f"{where}: it has no column {missing[0]!r}; it has {', '.join(columns)}"
            raise PlanError(msg)
        return Profile.fit({feature: columns[feature] for feature in features})
    except (OSError, ProfileError) as exc:
        msg = f"{where}: can't be used ({exc}); wanted training data (.parquet, .npz) or a profile (.json)"
        raise ModelError(msg) from exc


def _columns(where: str, path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return read_arrays(where, path)
    if path.suffix != ".parquet":
        msg = f"{where}: wanted a file that ends in .parquet, .npz or .json"
        raise PlanError(msg)
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ImportError as exc:
        msg = f"{where}: needs pyarrow, which is not installed; run: pip install 'streamml[arrow]'"
        raise PlanError(msg) from exc
    try:
        found = read_table(path)
    except ArrowInvalid as exc:
        msg = f"{where}: is no Parquet file ({exc})"
        raise PlanError(msg) from exc
    return {name: found[name].to_numpy() for name in found.column_names}
