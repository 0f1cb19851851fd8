"""`streamml models`: the registry of models, and what of it is rolled out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamml.cli import models_mlflow, models_parity, models_rollout
from streamml.cli.errors import Debug
from streamml.cli.exits import CODES_HELP
from streamml.cli.models_common import (
    Json,
    Place,
    Who,
    known_names,
    open_registry,
    others,
    print_json,
    print_pairs,
    print_table,
    shown_time,
    split_ref,
    table,
    version_of,
)

if TYPE_CHECKING:
    from streamml.models import Bundle, Registry, Rollout

__all__ = ["app"]

app = typer.Typer(
    name="models",
    help="Models: push versions into a registry, roll them out in running jobs, look at what happened.",
    no_args_is_help=True,
)
Ref = Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", show_default=False)]
Named = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", show_default="none")]


@app.command(epilog=CODES_HELP, no_args_is_help=True)
def push(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.", show_default=False)],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model file (.onnx, .pt2, .pt, .json), a bundle folder, module:function, or an endpoint's address.",
            show_default=False,
        ),
    ],
    features: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Features in the order of training.", show_default="a bundle's own"),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Typical rows, an .npz of inputs or columns.", show_default="a bundle's own"),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Reference for drift: training data (.parquet, .npz) or a profile (.json).",
            show_default="none",
        ),
    ] = None,
    metric: Named = None,
    meta: Named = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="Runtime of the file.", show_default="by its ending")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of a golden output that still agrees.")] = 1e-5,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign it with this private key (PEM).", show_default="unsigned")
    ] = None,
    models: Place = "models",
    who: Who = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add a model as the next version. What runs does not change; `streamml models promote` does that."""
    from streamml.cli.models_push import Source, push_version

    registry = open_registry(models)
    source = Source(model, features, golden, profile, metric or (), meta or (), runtime, tolerance, sign)
    version = push_version(registry, name, source, who)
    champion = registry.champion(name) if _has_prod(registry, name) or version == 1 else None
    if json:
        print_json({"name": name, "version": version, "place": registry.place, "prod": champion})
        return
    typer.echo(f"{name}:{version} is in {registry.place}")
    if champion is not None and champion != version:
        typer.echo(f"{name}@prod stays {champion}; next: streamml models promote {name}:{version}")


@app.command("list", epilog=CODES_HELP)
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model.", show_default="all")] = None,
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the models, or the versions of one, and what each is used as."""
    from streamml.models import Bundle

    registry = open_registry(models)
    names = known_names(registry, name)
    if name is None:
        if json:
            print_json([{"name": n, "versions": registry.versions(n), "aliases": _aliases(registry, n)} for n in names])
            return
        made = table("model", "versions", "aliases")
        for each in names:
            made.add_row(each, ", ".join(map(str, registry.versions(each))), _aliases_text(registry, each))
        typer.echo(f"{registry.place} has no models") if not names else print_table(made)
        return
    bundles = {version: Bundle.load(registry.path(name, version)) for version in registry.versions(name)}
    uses = {version: _uses(registry, name, version) for version in bundles}
    if json:
        print_json([{"version": v, "used_as": uses[v], **_described(b)} for v, b in bundles.items()])
        return
    made = table("version", "used as", "features", "metrics", "digest")
    for version, bundle in bundles.items():
        said = bundle.manifest
        metrics = said.metadata.get("metrics") or {}
        shown = ", ".join(f"{key} {value:g}" for key, value in metrics.items())
        made.add_row(str(version), ", ".join(uses[version]), str(len(said.features)), shown, said.digest[:12])
    print_table(made)


@app.command(epilog=CODES_HELP)
def show(ref: Ref, models: Place = "models", json: Json = False, debug: Debug = False) -> None:
    """Show what a version is: inputs, outputs, files, lineage, signature."""
    from streamml.models import Bundle

    registry = open_registry(models)
    name, version = version_of(registry, ref)
    bundle = Bundle.load(registry.path(name, version))
    body = {"name": name, "version": version, "used_as": _uses(registry, name, version), **_described(bundle)}
    if json:
        print_json(body)
        return
    said = bundle.manifest
    golden, _ = bundle.golden()
    typer.echo(f"{name}:{version}")
    pairs = [
        ("used as", ", ".join(_uses(registry, name, version)) or "-"),
        ("digest", said.digest),
        ("signed", body["signed_by"] or "no"),
        *(("input", str(spec)) for spec in said.inputs),
        ("features", ", ".join(said.features) or "-"),
        *(("output", str(spec)) for spec in said.outputs),
        ("golden", f"{max((len(rows) for rows in golden.values()), default=0)} rows, tolerance {said.tolerance:g}"),
        ("profile", ", ".join(bundle.profile.features) if bundle.profile else "none"),
        *(("file", f"{file}  {digest[:12]}") for file, digest in said.files.items()),
        *((key, _text(value)) for key, value in said.metadata.items()),
    ]
    print_pairs(pairs)


@app.command(epilog=CODES_HELP)
def verify(
    refs: Annotated[list[str], typer.Argument(metavar="NAME[:VERSION|@ALIAS]...", show_default=False)],
    models: Place = "models",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove that versions can serve here: checksums, signature, inputs and outputs, golden rows.

    A name alone means all its versions. Ends with exit code 5 when one is broken.
    """
    from streamml.errors import ModelError
    from streamml.models.registry_checks import check_version

    registry = open_registry(models)
    wanted: list[tuple[str, int]] = []
    for ref in refs:
        name, alias, version = split_ref(ref)
        known_names(registry, name)
        whole = alias is None and version is None
        wanted += [(name, v) for v in registry.versions(name)] if whole else [version_of(registry, ref)]
    problems: dict[tuple[str, int], str | None] = {}
    for name, version in wanted:
        try:
            check_version(registry, name, version)
        except ModelError as exc:
            problems[name, version] = str(exc)
        else:
            problems[name, version] = None
    broken = [problem for problem in problems.values() if problem]
    if json:
        print_json([{"name": n, "version": v, "problem": problem} for (n, v), problem in problems.items()])
    else:
        for (name, version), problem in problems.items():
            typer.echo(f"{name}:{version}  {problem or 'good'}")
    if broken:
        msg = f"{len(broken)} of {len(problems)} versions can't serve here"
        raise ModelError(msg)


@app.command(epilog=CODES_HELP)
def diff(first: Ref, second: Ref, models: Place = "models", json: Json = False, debug: Debug = False) -> None:
    """Show how two versions differ: descriptions, metrics, and the golden rows of each scored by the other."""
    from streamml.cli.models_diff import compare

    registry = open_registry(models)
    one, two = version_of(registry, first), version_of(registry, second)
    body = compare(registry, one, two)
    if json:
        print_json(body)
        return
    made = table("", f"{one[0]}:{one[1]}", f"{two[0]}:{two[1]}")
    for row in body["description"]:
        made.add_row(row["what"], _text(row["first"]), _text(row["second"]))
    for row in body["golden"]:
        made.add_row(f"golden rows of {row['rows_of']}", *row["shown"])
    print_table(made) if body["description"] or body["golden"] else typer.echo("no difference")
    typer.echo(f"fits in its place: {body['misfit'] or 'yes'}")


def _described(bundle: Bundle) -> dict[str, Any]:
    said = bundle.manifest
    return {
        "digest": said.digest,
        "signed_by": _signed_by(bundle),
        "inputs": said.inputs,
        "outputs": said.outputs,
        "features": said.features,
        "tolerance": said.tolerance,
        "files": said.files,
        "metadata": said.metadata,
    }


def _signed_by(bundle: Bundle) -> str | None:
    """Return the public key that its signature names; `verify` checks it."""
    import msgspec

    from streamml.errors import ModelError
    from streamml.models.signing import SIGNATURE, Signature

    path = bundle.path / SIGNATURE
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Signature).key
    except (OSError, msgspec.DecodeError) as exc:
        msg = f"{bundle.where}: {SIGNATURE} can't be read ({exc}); sign the bundle again"
        raise ModelError(msg) from exc


def _has_prod(registry: Registry, name: str) -> bool:
    return any(record.alias == "prod" for record in registry.records(name))


def _current(registry: Registry, name: str) -> dict[str, Rollout]:
    """Return what holds now for each alias."""
    from streamml.models.registry import now

    aliases = dict.fromkeys(record.alias for record in registry.records(name))
    return {alias: registry.history(name, alias).at(now()) for alias in aliases}


def _aliases(registry: Registry, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        alias: {"champion": held.champion, "splits": held.splits, "shadows": held.shadows, "from": held.effective,
                "retired": held.action == "retire"}
        for alias, held in _current(registry, name).items()
    }  # fmt: skip
    return found if "prod" in found else {"prod": {"champion": registry.champion(name), "from": None}, **found}


def _aliases_text(registry: Registry, name: str) -> str:
    current = _current(registry, name)
    parts = [] if "prod" in current else [f"prod {registry.champion(name)} (the highest; never promoted)"]
    for alias, held in current.items():
        beside = others(held)
        state = "retired" if held.action == "retire" else f"{held.champion}{f' with {beside}' if beside else ''}"
        parts.append(f"{alias} {state}")
    return "; ".join(parts)


def _uses(registry: Registry, name: str, version: int) -> list[str]:
    """Return what a version is used as, now and by what is planned."""
    from streamml.models.registry import now

    uses = []
    current = _current(registry, name)
    if "prod" not in current and registry.champion(name) == version:
        uses.append("prod (the highest; never promoted)")
    for alias, held in current.items():
        for planned in (held, *(s for s in registry.history(name, alias).spans if s.effective > now())):
            when = "" if planned is held else f" from {shown_time(planned.effective)}"
            if planned.action != "retire":
                roles = [alias] * (planned.champion == version)
                roles += [f"{s.role} of {alias} at {s.percent:g} %" for s in planned.splits if s.version == version]
                roles += [f"shadow of {alias}"] * (version in planned.shadows)
                uses += [role + when for role in roles if role not in uses]
    return uses


def _text(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


models_rollout.register(app)
models_mlflow.register(app)
models_parity.register(app)
