"""A bundle from a version in MLflow: its ONNX graph or its estimator, golden rows from its example, its lineage."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamml.errors import ModelError
from streamml.models.bundle import Bundle
from streamml.models.mlflow_example import Example, example_of
from streamml.models.mlflow_server import MlflowServer, MlflowVersion, NotThere, Run
from streamml.models.onnx_model import OnnxModel
from streamml.models.package import package
from streamml.models.policy import Policy
from streamml.models.signature import Array, TensorSpec, listed

__all__ = ["bundle_from_mlflow", "origin"]

_SKLEARN = "mlflow.sklearn"
"""What the policy must allow before an estimator is unpickled."""


def bundle_from_mlflow(
    server: MlflowServer,
    version: MlflowVersion,
    folder: Path,
    *,
    tags: Mapping[str, str] | None = None,
    sign: Path | None = None,
    policy: Policy | None = None,
) -> Bundle:
    """Make a bundle of a version of MLflow's, with its name and number.

    The features are those that the tag `features` names, else the columns of the example, else those of the signature.

    Args:
        server: the server.
        version: the version.
        folder: where to write; must be absent or empty.
        tags: tags of the model, which those of the version go before.
        sign: private key to sign the bundle with.
        policy: which code may run: an estimator is a pickle, so it needs `mlflow.sklearn`; default: from the
            environment.

    Raises:
        ModelError: why it can't be one: no ONNX model or estimator, no input example, or they don't fit.
        ConnectorError: the server is gone.
    """
    where = f"MLflow {version.name}:{version.version}"
    policy = policy or Policy.from_env()
    with tempfile.TemporaryDirectory(prefix="streamml-mlflow-") as scratch:
        files = Path(scratch)
        described = _described(where, server.download(version, "MLmodel", files / "MLmodel"))
        example = _example(where, server, version, described, files)
        given = {**(tags or {}), **{tag.key: tag.value for tag in version.tags}}.get("features", "")
        features = [name.strip() for name in given.split(",") if name.strip()]
        features = features or list(example.columns) or _signature_names(described)
        lineage = _lineage(server, version, _run(server, version))
        said: dict[str, Any] = {"name": version.name, "version": version.version, "metadata": lineage}
        flavors = described.get("flavors") or {}
        if "onnx" in flavors:
            graph, beside = _graph(where, server, version, str(flavors["onnx"]["data"]), files)
            specs = _inputs(graph)
            order, golden = _fitted(where, specs, features, example)
            bundle = Bundle.write(folder, graph, features=order, golden=golden, files=beside, policy=policy, **said)
        elif "sklearn" in flavors:
            estimator = _estimator(where, server, version, flavors["sklearn"], files, policy)
            names = features or [str(name) for name in getattr(estimator, "feature_names_in_", ())]
            rows = {"features": example.arrays[""]} if set(example.arrays) == {""} else example.arrays
            if not names:
                msg = f"{where}: its features have no names; tag the version, or its model: features = a,b,c"
                raise ModelError(msg)
            bundle = package(estimator, folder, features=names, golden=rows, policy=policy, **said)
        else:
            kinds = ", ".join(sorted(set(flavors) - {"python_function"})) or "none"
            msg = f"{where}: wanted an ONNX model, or an estimator of scikit-learn; it is of the flavor {kinds}"
            msg += "; log its ONNX graph with mlflow.onnx.log_model"
            raise ModelError(msg)
        if sign is not None:
            bundle.sign(sign)
        return bundle


def origin(version: MlflowVersion) -> dict[str, Any]:
    """Return what tells a version of MLflow's from every other one, also from one of the same name and number."""
    return {"version": version.version, "created": version.creation_timestamp, "source": version.source}


def _run(server: MlflowServer, version: MlflowVersion) -> Run | None:
    """Return the run that logged a version, None when it is not known or was deleted."""
    if not version.run_id:
        return None
    try:
        return server.run(version.run_id)
    except NotThere:
        return None


def _described(where: str, path: Path) -> dict[str, Any]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as exc:
        msg = f"{where}: reading it needs PyYAML, which is not installed; run: pip install 'streamml[mlflow]'"
        raise ModelError(msg) from exc
    try:
        found = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as exc:
        msg = f"{where}: its MLmodel is damaged ({exc}); log the model anew"
        raise ModelError(msg) from exc
    if not isinstance(found, dict):
        msg = f"{where}: its MLmodel is damaged (it holds a {type(found).__name__}); log the model anew"
        raise ModelError(msg)
    return found


def _example(
    where: str, server: MlflowServer, version: MlflowVersion, described: Mapping[str, Any], files: Path
) -> Example:
    info = described.get("saved_input_example_info")
    if not info:
        msg = (
            f"{where}: it has no input example, which its golden rows come from; log it with some dozens of typical "
            "rows: log_model(..., input_example=rows)"
        )
        raise ModelError(msg)
    path = server.download(version, str(info.get("artifact_path") or "input_example.json"), files / "example")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as exc:
        msg = f"{where}: its input example is no JSON ({exc}); log the model anew"
        raise ModelError(msg) from exc
    return example_of(where, str(info.get("type", "")), content)


def _signature_names(described: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns in the signature; none when it describes arrays."""
    columns = json.loads((described.get("signature") or {}).get("inputs") or "[]")
    return [] if any(c.get("type") == "tensor" or "name" not in c for c in columns) else [c["name"] for c in columns]


def _graph(
    where: str, server: MlflowServer, version: MlflowVersion, path: str, files: Path
) -> tuple[Path, Sequence[Path]]:
    """Return the file of a graph, and those of the weights that it keeps outside."""
    graph = server.download(version, path, files / "model.onnx")
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as exc:
        msg = f"{where}: reading it needs onnx, which is not installed; run: pip install 'streamml[mlflow]'"
        raise ModelError(msg) from exc
    try:
        model = onnx.load_model(graph, load_external_data=False)
    except Exception as exc:  # the parser's own class
        msg = f"{where}: {path} is no ONNX model ({type(exc).__name__}: {exc}); log it anew"
        raise ModelError(msg) from exc
    outside = dict.fromkeys(_outside(model.graph))
    if odd := [name for name in outside if Path(name).name != name or name == graph.name]:
        msg = f"{where}: it keeps weights in {odd[0]!r}; wanted a file of another name beside it, without a path"
        raise ModelError(msg)
    folder = path.rpartition("/")[0]
    return graph, [server.download(version, f"{folder}/{n}" if folder else n, files / n) for n in outside]


def _outside(graph: Any) -> Iterator[str]:
    """Yield the files in which a graph keeps weights, those of its branches and loops too."""
    for tensor in graph.initializer:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _outside(inner)


def _inputs(graph: Path) -> Sequence[TensorSpec]:
    model = OnnxModel(graph)
    model.load()
    try:
        return tuple(model.inputs)
    finally:
        model.close()


def _fitted(
    where: str, specs: Sequence[TensorSpec], features: list[str], example: Example
) -> tuple[list[str], dict[str, Array]]:
    """Return the features in the graph's order, and the rows for its inputs, as MLflow gives them to it."""
    inputs = [spec.name for spec in specs]
    arrays = example.arrays
    if set(arrays) == {""}:
        if len(specs) != 1:
            msg = f"{where}: its input example is one array, wanted one by name for each of {listed(specs)}"
            raise ModelError(msg)
        return features, {inputs[0]: arrays[""]}
    if set(inputs) <= set(arrays):  # each column, or array, is an input of its own
        columns = bool(features) and all(len(spec.shape) == 1 or spec.shape[1:] == (1,) for spec in specs)
        return inputs if columns else [] if len(specs) > 1 else features, {name: arrays[name] for name in inputs}
    if missing := [name for name in features if name not in arrays]:
        msg = f"{where}: its input example has no column {missing[0]!r}; it has {', '.join(arrays)}"
        raise ModelError(msg)
    return features, {name: arrays[name] for name in features}


def _estimator(
    where: str, server: MlflowServer, version: MlflowVersion, flavor: Mapping[str, Any], files: Path, policy: Policy
) -> Any:
    """Return the estimator, once the policy allows what its file may do when it is loaded."""
    policy.check_code(where, _SKLEARN)
    path = server.download(version, str(flavor["pickled_model"]), files / "estimator")
    written = str(flavor.get("serialization_format", "cloudpickle"))
    package = {"skops": "skops.io", "cloudpickle": "cloudpickle"}.get(written, "pickle")
    try:
        loader: Any = importlib.import_module(package)
    except ImportError as exc:
        said = package.partition(".")[0]
        msg = f"{where}: it was written with {said}, which is not installed; run: pip install {said}"
        raise ModelError(msg) from exc
    try:
        if written == "skops":
            return loader.load(path, trusted=flavor.get("skops_trusted_types") or [])
        with path.open("rb") as file:
            return loader.load(file)
    except Exception as exc:  # a pickle may raise anything
        msg = (
            f"{where}: its estimator can't be loaded ({type(exc).__name__}: {exc}); install what it was trained with "
            f"(scikit-learn {flavor.get('sklearn_version', '?')}), or log its ONNX graph"
        )
        raise ModelError(msg) from exc


def _lineage(server: MlflowServer, version: MlflowVersion, run: Run | None) -> dict[str, Any]:
    made: dict[str, Any] = {"mlflow": {"server": server.where, **origin(version)}}
    about = made["mlflow"]
    if version.description:
        about["description"] = version.description
    about["tags"] = {tag.key: tag.value for tag in version.tags}
    if version.user_id:
        made["owner"] = version.user_id
    if run is None:
        return made
    tags = {tag.key: tag.value for tag in run.data.tags}
    about["run_id"], about["run_name"] = run.info.run_id, run.info.run_name
    about["params"] = {param.key: param.value for param in run.data.params}
    about["run_tags"] = {key: value for key, value in tags.items() if key != "mlflow.log-model.history"}
    numbers = {metric.key: metric.value for metric in run.data.metrics}
    made["metrics"] = {k: v for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
    if owner := version.user_id or tags.get("mlflow.user") or run.info.user_id:
        made["owner"] = owner
    if commit := tags.get("mlflow.source.git.commit"):
        made["code_version"] = commit
    return made
