"""From a reference in a pipeline to what serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamml.errors import ModelError, PlanError
from streamml.models.bundle import Bundle
from streamml.models.loaded import LoadedModel, open_model
from streamml.models.reference import parse_reference
from streamml.models.registry import Registry
from streamml.models.resolve import resolve
from streamml.models.rollout import History, Rollout
from streamml.models.runtime import ModelRuntime
from streamml.models.serving import Serving
from streamml.times import MIN_TIME

if TYPE_CHECKING:
    from streamml.observability import Metrics

__all__ = ["serve"]


def serve(
    ref: str | ModelRuntime,
    places: Sequence[str],
    features: Sequence[str | None] = (),
    *,
    who: str = "job",
    metrics: Metrics | None = None,
    poll: float = 1.0,
    check: Callable[[LoadedModel], object] | None = None,
    warm_up: bool = True,
) -> Serving:
    """Return what serves a reference: an alias by its rollouts, which it follows, or one fixed version.

    An alias without any rollout means the highest version until there is one.

    Args:
        ref: `name@alias`, `name` (the alias `prod`), `name:version`, a bundle folder, a model file, or a runtime.
        places: registries to search in order: folders or addresses.
        features: features in order, None for a column without a name; empty takes the bundle's.
        who: who refuses and rolls back, for the history.
        metrics: the job's metrics.
        poll: seconds between two looks for new rollouts.
        warm_up: whether a version predicts once or twice before it serves.
        check: raises when a version does not fit its use; such a version is refused.

    Raises:
        ModelError: there is no such model, or it can't be served.
    """
    if not isinstance(ref, str):
        return Serving(
            type(ref).__name__, _always(0), lambda _: _loaded(ref, features, check, warm_up), metrics=metrics
        )
    parsed = parse_reference(ref)
    if parsed is not None and parsed.version is None:
        alias = parsed.alias or "prod"
        for registry in map(Registry, places):
            if not registry.versions(parsed.name):
                continue
            champion = registry.champion(parsed.name, alias)  # refuses an alias that was retired
            written = [record for record in registry.records(parsed.name) if record.alias == alias]
            history = History(written) if written else _always(champion)

            def load(version: int, registry: Registry = registry) -> LoadedModel:
                try:
                    return _checked(open_model(registry.path(parsed.name, version), features, warm_up=warm_up), check)
                except PlanError as exc:
                    raise ModelError(str(exc)) from exc

            return Serving(
                parsed.name, history, load, registry=registry, alias=alias, poll=poll, who=who, metrics=metrics
            )
    path = resolve(ref, places)
    bundle = Bundle.load(path) if path.is_dir() else None
    name, version = (path.stem, 0) if bundle is None else (bundle.manifest.name, bundle.manifest.version)

    def fixed(_: int) -> LoadedModel:
        return _checked(open_model(path, features, warm_up=warm_up), check)

    return Serving(name, _always(version), fixed, metrics=metrics)


def _loaded(
    runtime: ModelRuntime,
    features: Sequence[str | None],
    check: Callable[[LoadedModel], object] | None,
    warm_up: bool,
) -> LoadedModel:
    """Load a runtime that the job itself made."""
    runtime.load()
    names = [f"column_{at}" if name is None else name for at, name in enumerate(features)]
    model = _checked(LoadedModel(runtime, name=type(runtime).__name__, features=names), check)
    if warm_up:
        runtime.warm_up()
    return model


def _checked(model: LoadedModel, check: Callable[[LoadedModel], object] | None) -> LoadedModel:
    if check is not None:
        try:
            check(model)
        except BaseException:
            model.close()
            raise
    return model


def _always(version: int) -> History:
    return History([Rollout(number=0, alias="", action="fixed", effective=MIN_TIME, champion=version)])
