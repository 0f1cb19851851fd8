"""What a version must pass before it may be rolled out: it works here, and it fits where the champion serves."""

from __future__ import annotations

from streamml.errors import ModelError
from streamml.models.bundle import Bundle
from streamml.models.loaded import open_model
from streamml.models.manifest import Manifest
from streamml.models.policy import Policy
from streamml.models.registry import Registry
from streamml.models.signature import TensorSpec, listed

__all__ = ["check_fit", "check_version", "misfit"]


def check_version(registry: Registry, name: str, version: int, policy: Policy | None = None) -> Bundle:
    """Prove that a version can serve on this machine: its files, its signature, its golden rows.

    Args:
        registry: where it lies.
        name: name of the model.
        version: the version.
        policy: code that may run, keys that are trusted; default: from the environment.

    Raises:
        ModelError: what is wrong with it.
    """
    path = registry.path(name, version)
    bundle = Bundle.load(path)
    said = (bundle.manifest.name, bundle.manifest.version)
    if said != (name, version):
        msg = (
            f"model {name}:{version}: the bundle at {path} says that it is {said[0]}:{said[1]}; "
            f"push it with `streamml models push`, which gives it its name and number"
        )
        raise ModelError(msg)
    open_model(path, policy=policy).close()
    return bundle


def check_fit(registry: Registry, name: str, version: int, champion: int) -> None:
    """Refuse a version that a job which runs the champion could not feed, or whose outputs it could not read.

    Raises:
        ModelError: which feature or output does not fit.
    """
    manifests = [Bundle.load(registry.path(name, each)).manifest for each in (champion, version)]
    if problem := misfit(*manifests):
        msg = (
            f"model {name}:{version}: does not fit where {name}:{champion} serves: {problem}; jobs give the features "
            "that they gave before, so push a model with other ones under a name of its own"
        )
        raise ModelError(msg)


def misfit(champion: Manifest, other: Manifest) -> str | None:
    """Say what keeps a model from taking the place of another one, None when nothing does.

    It must take the same features in the same order, numbers where there were numbers, and give the outputs that there
    were, in the same places; more outputs may follow.
    """
    old, new = champion.features, other.features
    if old != new:
        missing, more = [f for f in old if f not in new], [f for f in new if f not in old]
        if missing or more:
            parts = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it wants {', '.join(more)}"] * bool(more)
            return f"features differ: {' and '.join(parts)}"
        at = next(i for i, (one, two) in enumerate(zip(old, new, strict=True)) if one != two)
        return f"features are in another order: number {at + 1} was {old[at]!r} and is {new[at]!r}"
    if not old and listed(champion.inputs) != listed(other.inputs):
        return f"inputs were {listed(champion.inputs)} and are {listed(other.inputs)}"
    kinds = [{f: spec for spec in said.inputs for f in spec.features} for said in (champion, other)]
    for feature in old:
        was, now = kinds[0][feature], kinds[1][feature]
        if _kind(was) != _kind(now) and not (_kind(now) == "float" and _kind(was) in ("int", "bool")):
            return f"feature {feature!r} was {was.dtype} and is {now.dtype}"
    for at, spec in enumerate(champion.outputs):
        found = other.outputs[at] if at < len(other.outputs) else None
        if found is None or (found.name, _kind(found), found.shape[1:]) != (spec.name, _kind(spec), spec.shape[1:]):
            return f"output {at} was {spec} and is {found or 'missing'}"
    return None


def _kind(spec: TensorSpec) -> str:
    return spec.dtype.rstrip("0123456789").removeprefix("u")
