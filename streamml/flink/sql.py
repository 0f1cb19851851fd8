"""A model as a function of Flink SQL and the Table API, scored in Arrow batches."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamml.errors import ModelError, PlanError
from streamml.models import Bundle, TensorSpec, resolve

if TYPE_CHECKING:
    from pyflink.table import TableEnvironment

__all__ = ["register"]

Outputs = Mapping[str, int | str] | Sequence[str]


def register(
    t_env: TableEnvironment,
    name: str,
    model: str,
    *,
    models: Sequence[str | Path] = (),
    outputs: Outputs | None = None,
    missing: bool = False,
) -> Any:
    """Make a model bundle a function of Flink SQL and the Table API.

    Its arguments are the bundle's features in their order. It returns the first output, or with `outputs` a `ROW` of
    those named. A row with a NULL feature, of a wrong type, or on which the model fails gets NULL, and is counted in
    `streamml_model_errors_total`; the others of its Arrow batch are scored. The bundle is sent to the workers with the
    job, and checked there before it serves.

    Args:
        t_env: the table environment of the program.
        name: name of the function.
        model: `name@alias`, `name:version`, `name`, or a bundle's folder.
        models: folders that are searched for bundles.
        outputs: names of outputs; or, for each field of the row, which output it is: its name or its number.
        missing: hand NULL to the model as NaN, for models that take missing values.

    Returns:
        The function for the Table API, to be called on columns.

    Raises:
        ModelError: there is no such bundle, or it is broken.
        PlanError: there is no such output, or PyFlink or pandas is missing.

    `register(t_env, "fraud_score", "fraud@prod", models=["models"])` lets
    `SELECT tx_id, fraud_score(amount, n_10m) FROM payments` score rows.
    """
    _require("pyflink", "PyFlink")
    _require("pandas", "pandas")
    from pyflink.table import DataTypes
    from pyflink.table.udf import udf

    from streamml.flink.sql_function import ModelFunction

    where = f"sql.register({name!r}, {model!r})"
    bundle = _bundle(where, model, models)
    chosen = _chosen(where, bundle, outputs)
    types = [_sql_type(where, spec, DataTypes) for spec in chosen.values()]
    result = types[0]
    if outputs is not None:
        result = DataTypes.ROW([DataTypes.FIELD(field, kind) for field, kind in zip(chosen, types, strict=True)])
    folder = _send(t_env, bundle)
    names = {field: spec.name for field, spec in chosen.items()}
    features = {feature: spec.dtype for spec in bundle.manifest.inputs for feature in spec.features}
    function = ModelFunction(folder, features, names, row=outputs is not None, missing=missing)
    made = udf(function, result_type=result, func_type="pandas", name=name)
    t_env.create_temporary_function(name, made)
    return made


def _require(module: str, title: str) -> None:
    if importlib.util.find_spec(module) is None:
        msg = f"sql.register: {title} is not installed here; pip install 'streamml[flink]'"
        raise PlanError(msg)


def _bundle(where: str, model: str, models: Sequence[str | Path]) -> Bundle:
    path = resolve(model, models)
    if path.suffix == ".onnx" and path.is_file():
        msg = f"{where}: a bare .onnx file does not say its features; make a bundle of it with Bundle.write"
        raise ModelError(msg)
    bundle = Bundle.load(path)
    bundle.check_files()
    if not bundle.manifest.features:
        msg = f"{where}: {bundle.where} names no features, so the function would have no arguments"
        raise PlanError(msg)
    return bundle


def _chosen(where: str, bundle: Bundle, outputs: Outputs | None) -> dict[str, TensorSpec]:
    """Return the outputs that are wanted, by the name of the field that each becomes."""
    there = bundle.manifest.outputs
    by_name = {spec.name: spec for spec in there}
    if outputs is None:
        return {there[0].name: there[0]}
    wanted: dict[str, int | str] = dict(outputs) if isinstance(outputs, Mapping) else {each: each for each in outputs}
    if isinstance(outputs, str) or not wanted:
        there_are = ", ".join(by_name)
        msg = f"{where}: outputs={outputs!r}: wanted a list of outputs, or fields with outputs; it has {there_are}"
        raise PlanError(msg)
    chosen: dict[str, TensorSpec] = {}
    for field, which in wanted.items():
        if isinstance(which, int) and -len(there) <= which < len(there):
            chosen[field] = there[which]
        elif which in by_name:
            chosen[field] = by_name[str(which)]
        else:
            raise PlanError.unknown(where, "output of the model", str(which), list(by_name))
    return chosen


def _sql_type(where: str, spec: TensorSpec, types: Any) -> Any:
    """Return the SQL type of an output; floating-point numbers are DOUBLE, whole numbers BIGINT."""
    if spec.dtype == "str":
        one = types.STRING()
    elif spec.dtype == "bool":
        one = types.BOOLEAN()
    elif spec.dtype.startswith("float"):
        one = types.DOUBLE()
    elif spec.dtype != "uint64":
        one = types.BIGINT()
    else:
        msg = f"{where}: output {spec}: SQL has no type for it; cast it to int64 in the model"
        raise PlanError(msg)
    if spec.shape[1:] in ((), (1,)):
        return one
    if len(spec.shape) == 2:
        return types.ARRAY(one)
    msg = f"{where}: output {spec}: wanted a number or a list of numbers for each row; reshape it in the model"
    raise PlanError(msg)


def _send(t_env: TableEnvironment, bundle: Bundle) -> str:
    """Send a bundle along with the job; returns the folder in which a worker finds it."""
    folder = f"streamml-{bundle.manifest.name}-{bundle.manifest.digest[:12]}"
    # Flink reads the archive when the job starts, which is after this function has returned.
    workspace = tempfile.mkdtemp(prefix="streamml-sql-")
    atexit.register(shutil.rmtree, workspace, ignore_errors=True)
    archive = shutil.make_archive(str(Path(workspace, folder)), "zip", bundle.path)
    t_env.add_python_archive(archive, folder)
    return folder
