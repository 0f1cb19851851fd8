"""From a reference in a pipeline to what serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamml.models.bundle import Bundle
from streamml.models.loaded import LoadedModel, open_model
from streamml.models.reference import parse_reference
from streamml.models.registry import Registry
from streamml.models.resolve import resolve
from streamml.models.rollout import History, Rollout
from streamml.models.serving import Serving
from streamml.times import MIN_TIME

if TYPE_CHECKING:
    from streamml.observability import Metrics

__all__ = ["serve"]


def serve(
    ref: str,
    places: Sequence[str],
    features: Sequence[str | None] = (),
    *,
    who: str = "job",
    metrics: Metrics | None = None,
    poll: float = 1.0,
) -> Serving:
    """Return what serves a reference: an alias by its rollouts, which it follows, or one fixed version.

    An alias without any rollout means the highest version until there is one.

    Args:
        ref: `name@alias`, `name` (the alias `prod`), `name:version`, a bundle folder or a model file.
        places: registries to search in order: folders or addresses.
        features: features in order, None for a column without a name; empty takes the bundle's.
        who: who refuses and rolls back, for the history.
        metrics: the job's metrics.
        poll: seconds between two looks for new rollouts.

    Raises:
        ModelError: there is no such model, or it can't be served.
    """
    parsed = parse_reference(ref)
    if parsed is not None and parsed.version is None:
        alias = parsed.alias or "prod"
        for registry in map(Registry, places):
            if not registry.versions(parsed.name):
                continue
            champion = registry.champion(parsed.name, alias)  # refuses an alias that was retired
            written = any(record.alias == alias for record in registry.records(parsed.name))
            history = registry.history(parsed.name, alias) if written else _always(champion)
            return _followed(registry, parsed.name, alias, history, features, who, metrics, poll)
    path = resolve(ref, places)
    bundle = Bundle.load(path) if path.is_dir() else None
    name, version = (path.stem, 0) if bundle is None else (bundle.manifest.name, bundle.manifest.version)
    return Serving(name, _always(version), lambda _: open_model(path, features), metrics=metrics)


def _followed(
    registry: Registry,
    name: str,
    alias: str,
    history: History,
    features: Sequence[str | None],
    who: str,
    metrics: Metrics | None,
    poll: float,
) -> Serving:
    def load(version: int) -> LoadedModel:
        return open_model(registry.path(name, version), features)

    return Serving(name, history, load, registry=registry, alias=alias, poll=poll, who=who, metrics=metrics)


def _always(version: int) -> History:
    return History([Rollout(number=0, alias="", action="fixed", effective=MIN_TIME, champion=version)])
