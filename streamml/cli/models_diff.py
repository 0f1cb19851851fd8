"""How two versions of a model differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models import Bundle, Manifest, Registry, open_model
from streamml.models.golden import difference
from streamml.models.registry_checks import misfit
from streamml.models.signature import listed

__all__ = ["compare"]


def compare(registry: Registry, first: tuple[str, int], second: tuple[str, int]) -> dict[str, Any]:
    """Return the differences of two versions: of their descriptions, and of what they give for golden rows.

    Args:
        registry: where they lie.
        first: name and version of the one.
        second: name and version of the other.
    """
    bundles = [Bundle.load(registry.path(*each)) for each in (first, second)]
    facts = [_facts(bundle.manifest) for bundle in bundles]
    rows = [
        {"what": what, "first": facts[0].get(what, "-"), "second": facts[1].get(what, "-")}
        for what in dict.fromkeys([*facts[0], *facts[1]])
        if facts[0].get(what) != facts[1].get(what)
    ]
    titles = [f"{name}:{version}" for name, version in (first, second)]
    golden = []
    for place, bundle in enumerate(bundles):
        scored = _scored(bundle, bundles[1 - place])
        shown = ["as they are", scored]
        golden.append({"rows_of": titles[place], "shown": shown if place == 0 else shown[::-1], "other": scored})
    return {"description": rows, "golden": golden, "misfit": misfit(bundles[0].manifest, bundles[1].manifest)}


def _facts(said: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": said.model,
        "runtime": said.runtime or "by ending",
        "inputs": listed(said.inputs),
        "features": ", ".join(said.features),
        "outputs": listed(said.outputs),
        "tolerance": said.tolerance,
        **{f"file {name}": digest[:12] for name, digest in said.files.items()},
    }
    metadata = dict(said.metadata)
    metrics = metadata.pop("metrics", None) or {}
    facts |= {f"metric {name}": value for name, value in metrics.items()}
    return facts | metadata


def _scored(rows: Bundle, by: Bundle) -> str:
    """Say what another version makes of a bundle's golden rows."""
    inputs, expected = rows.golden()
    try:
        model = open_model(by.path, warm_up=False)
    except ModelError as exc:
        return f"can't serve: {exc}"
    try:
        found = model.runtime.predict(inputs)
    except ModelError as exc:
        return f"can't score them: {exc}"
    finally:
        model.close()
    parts = []
    for spec in rows.manifest.outputs:
        if spec.name not in found:
            parts.append(f"{spec.name}: missing")
            continue
        problem = difference(expected[spec.name], found[spec.name], rows.manifest.tolerance)
        parts.append(f"{spec.name}: {_size(expected[spec.name], found[spec.name]) if problem else 'equal'}")
    return "; ".join(parts)


def _size(expected: Any, found: Any) -> str:
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind not in "fiub":
        return f"{int((expected.astype(str) != found.astype(str)).sum())} of {expected.size} differ"
    apart = np.abs(expected.astype(float) - found.astype(float))
    return f"differ by {np.nanmean(apart):.3g} on average, {np.nanmax(apart):.3g} at most"
