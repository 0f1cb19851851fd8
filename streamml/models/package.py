"""A bundle from whatever a model is: a file, an estimator, a PyTorch module, a function, an endpoint."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamml.drift.profile import Profile
from streamml.errors import ModelError
from streamml.models import describe
from streamml.models.bundle import Bundle
from streamml.models.golden import read_arrays
from streamml.models.policy import Policy
from streamml.models.signature import Array

__all__ = ["package"]

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ENDPOINT = re.compile(
    r"(?P<url>(?:https?|grpcs?)://[^/]+)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
)


def package(
    source: str | Path | object,
    folder: str | Path,
    *,
    name: str,
    version: int,
    features: Sequence[str],
    golden: Mapping[str, Array] | str | Path,
    profile: Profile | None = None,
    metadata: Mapping[str, Any] | None = None,
    runtime: str | None = None,
    tolerance: float = 1e-5,
    policy: Policy | None = None,
) -> Bundle:
    """Make a bundle of a model.

    Args:
        source: one of

            - a model file: `.onnx`, `.pt` (TorchScript), `.pt2` (`torch.export`), or a description (`.json`) of an
              ensemble, a cascade, a module with weights and so on, with the files that it names beside it;
            - a fitted estimator of scikit-learn, XGBoost or LightGBM, which is converted to ONNX and must give the
              same for the golden rows;
            - a `torch.nn.Module`, which is exported by `torch.export` with a batch of any size;
            - `module:function`, a function on named arrays, or a class that makes one;
            - an endpoint, such as `http://host:port/v2/models/fraud` or `grpc://host:port/v2/models/fraud/versions/3`;
            - a description from `streamml.models.describe` that names no files.
        folder: where to write; must be absent or empty.
        name: name of the model.
        version: number of the version.
        features: features in the order in which the model was trained; empty for a model that takes no columns.
        golden: typical rows, or an `.npz` file of them: arrays by input, or columns by feature.
        profile: reference profile for drift.
        metadata: lineage and whatever is worth knowing later, see `Manifest`.
        runtime: the runtime of a file whose ending does not say it.
        tolerance: largest difference of a golden output, and of a conversion from its estimator.
        policy: which code may run; default: from the environment.

    Raises:
        ModelError: it is no model, the conversion differs, or features and golden rows do not fit.
    """
    title = f"bundle {name}:{version}"
    rows = {key: np.asarray(array) for key, array in golden.items()} if isinstance(golden, Mapping) else None
    if rows is None:
        rows = read_arrays(title, Path(str(golden)))
    if not rows:
        msg = f"{title}: there are no golden rows; give some dozens of typical ones"
        raise ModelError(msg)
    with tempfile.TemporaryDirectory(prefix="streamml-") as scratch:
        file, rows = _file(title, source, Path(scratch), features, rows, tolerance)
        return Bundle.write(
            folder,
            file,
            name=name,
            version=version,
            features=features,
            golden=rows,
            profile=profile,
            metadata=metadata,
            tolerance=tolerance,
            runtime="" if file.parent == Path(scratch) else runtime or "",
            policy=policy,
        )


def _file(
    title: str, source: Any, scratch: Path, features: Sequence[str], rows: dict[str, Array], tolerance: float
) -> tuple[Path, dict[str, Array]]:
    """Return the model's file, made in the scratch folder where there is none, and the golden rows for it."""
    if isinstance(source, describe.Description):
        if files := describe.members(source):
            msg = f"{title}: the description names files ({', '.join(files)}); write it beside them and give its path"
            raise ModelError(msg)
        return describe.write_description(scratch / "model.json", source), rows
    if isinstance(source, str) and (match := _ENDPOINT.fullmatch(source)):
        endpoint = describe.RemoteEndpoint(url=match["url"], model=match["model"], version=match["version"] or "")
        return describe.write_description(scratch / "model.json", endpoint), rows
    if isinstance(source, str) and _FUNCTION.fullmatch(source) and not Path(source).exists():
        return describe.write_description(scratch / "model.json", describe.PythonCode(function=source)), rows
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            msg = f"{title}: there is no model file {source}; wanted a file, module:function, or an endpoint's address"
            raise ModelError(msg)
        return Path(source), rows
    torch = sys.modules.get("torch")  # a module of its own can't come from elsewhere
    if torch is not None and isinstance(source, torch.nn.Module):
        from streamml.models.torch_model import export

        return export(source, rows, scratch / "model.pt2"), rows
    if hasattr(source, "predict") or hasattr(source, "decision_function"):
        from streamml.models.convert import to_onnx

        sample = _sample(title, source, features, rows)
        path = scratch / "model.onnx"
        path.write_bytes(to_onnx(source, features, sample, tolerance=tolerance))
        return path, rows if isinstance(sample, Mapping) else {"features": sample}
    msg = f"{title}: wanted a model file, an estimator, a torch.nn.Module or module:function, got {type(source)}"
    raise ModelError(msg)


def _sample(title: str, estimator: Any, features: Sequence[str], rows: dict[str, Array]) -> Array | dict[str, Array]:
    """Return the golden rows as one matrix, or by column for a pipeline that treats columns differently."""
    if len(rows) == 1 and not set(rows) & set(features):
        (matrix,) = rows.values()
        return matrix
    if missing := [name for name in features if name not in rows]:
        msg = f"{title}: the golden rows have no column {missing[0]!r}; they have {', '.join(rows)}"
        raise ModelError(msg)
    columns = {name: rows[name].reshape(-1) for name in features}
    text = any(column.dtype.kind in "OU" for column in columns.values())
    steps: list[Any] = [step for _, step in getattr(estimator, "steps", [])]
    if text or any(type(step).__name__ == "ColumnTransformer" for step in (estimator, *steps)):
        return columns
    stacked: Array = np.stack(list(columns.values()), axis=1)
    return stacked
