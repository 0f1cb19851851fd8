"""Model bundles: a folder with the model and all that is needed to trust it.

`bundle.json` describes the model and holds the SHA-256 of the other files; `golden.npz` holds inputs with the outputs
that the model gave when the bundle was made; `profile.json`, if there, is the reference profile for drift.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from streamml.drift.profile import Profile, ProfileError
from streamml.errors import ModelError
from streamml.models.manifest import BUNDLE_FORMAT, MANIFEST, Manifest, read_manifest, write_manifest
from streamml.models.onnx_model import OnnxModel
from streamml.models.runtime import ModelRuntime
from streamml.models.signature import Array, listed, with_features

__all__ = ["Bundle"]

_GOLDEN, _PROFILE = "golden.npz", "profile.json"


class Bundle:
    """A bundle in a folder. `load` reads its description; `verify` proves that the files are what it says.

    Attributes:
        path: the folder.
        manifest: what `bundle.json` says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name}:{self.manifest.version}, {self.path})"

    @property
    def where(self) -> str:
        """How messages name the bundle."""
        return f"bundle {self.manifest.name}:{self.manifest.version} at {self.path}"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the description of a bundle.

        Raises:
            ModelError: there is none, it is not of a format that is known here, or it was edited.
        """
        return cls(Path(path), read_manifest(Path(path)))

    @classmethod
    def write(
        cls,
        folder: str | Path,
        model: str | Path,
        *,
        name: str,
        version: int,
        features: Sequence[str],
        golden: Mapping[str, Array],
        profile: Profile | None = None,
        metadata: Mapping[str, Any] | None = None,
        tolerance: float = 1e-5,
    ) -> Self:
        """Make a bundle from a model file, which says its inputs and outputs and computes the golden outputs.

        Args:
            folder: where to write; must be absent or empty, since versions never change.
            model: the `.onnx` file, copied into the folder.
            name: name of the model, without `:`, `@` or a path.
            version: number of the version, 1 or more.
            features: features in the order of the matrix's columns, or of the inputs if each is one column.
            golden: inputs by name, some dozens of typical rows.
            profile: reference profile for drift.
            metadata: whatever is worth knowing later; must be plain JSON.
            tolerance: largest difference of a golden output, absolute and relative to its size.

        Raises:
            ModelError: the folder is in use, or the features do not fit the model.
        """
        folder, source, title = Path(folder), Path(model), f"bundle {name}:{version}"
        if version < 1 or not name or set(name) & set(":@/\\"):
            msg = f"{title}: wanted a name without ':', '@' and '/', and a version of at least 1"
            raise ModelError(msg)
        if folder.is_dir() and any(folder.iterdir()):
            msg = f"{title}: {folder} is not empty; a version never changes, so write the next one elsewhere"
            raise ModelError(msg)
        runtime = _runtime(source)
        runtime.load()
        try:
            inputs, outputs = with_features(title, runtime.inputs, features), tuple(runtime.outputs)
            expected = runtime.predict(golden)
        finally:
            runtime.close()
        folder.mkdir(parents=True, exist_ok=True)
        file = "model" + source.suffix
        shutil.copyfile(source, folder / file)
        arrays = {f"input:{key}": array for key, array in golden.items()}
        arrays |= {f"output:{key}": array for key, array in expected.items()}
        stored: dict[str, Any] = {key: a.astype(str) if a.dtype.kind == "O" else a for key, a in arrays.items()}
        np.savez(folder / _GOLDEN, **stored)
        if profile is not None:
            (folder / _PROFILE).write_bytes(profile.to_json())
        manifest = Manifest(
            format=BUNDLE_FORMAT,
            name=name,
            version=version,
            model=file,
            inputs=inputs,
            outputs=outputs,
            tolerance=tolerance,
            files={path.name: _sha256(path) for path in sorted(folder.iterdir())},
            metadata=dict(metadata or {}),
        )
        return cls(folder, write_manifest(folder, manifest))

    @cached_property
    def profile(self) -> Profile | None:
        """The reference profile for drift, None when the bundle has none."""
        if _PROFILE not in self.manifest.files:
            return None
        try:
            return Profile.from_json((self.path / _PROFILE).read_bytes())
        except (OSError, ProfileError) as exc:
            msg = f"{self.where}: {_PROFILE} can't be read ({exc}); restore it"
            raise ModelError(msg) from exc

    def runtime(self) -> ModelRuntime:
        """Return the runtime for the model, not yet loaded."""
        return _runtime(self.path / self.manifest.model)

    def golden(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the golden inputs and their expected outputs."""
        try:
            with np.load(self.path / _GOLDEN, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
            msg = f"{self.where}: {_GOLDEN} can't be read ({exc}); restore it"
            raise ModelError(msg) from exc
        arrays = {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in arrays.items()}
        inputs, outputs = (
            {n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)} for p in ("input:", "output:")
        )
        return inputs, outputs

    def verify(self) -> None:
        """Prove that the files are those that were written, that the model fits the description, and the golden rows.

        Raises:
            ModelError: what is wrong.
        """
        self.check_files()
        runtime = self.runtime()
        runtime.load()
        try:
            self.check_model(runtime)
        finally:
            runtime.close()

    def check_files(self) -> None:
        """Compare each file with its SHA-256.

        Raises:
            ModelError: a file is not there or is another one.
        """
        for name, wanted in {self.manifest.model: "none", _GOLDEN: "none", **self.manifest.files}.items():
            path = self.path / name
            if Path(name).name != name or not path.is_file():
                msg = f"{self.where}: {name} is missing; restore the folder"
                raise ModelError(msg)
            got = _sha256(path)
            if got != wanted:
                msg = (
                    f"{self.where}: {name} was changed or cut short ({path.stat().st_size} bytes, wanted SHA-256 "
                    f"{wanted[:12]}, got {got[:12]}); restore it, or make a new version"
                )
                raise ModelError(msg)

    def check_model(self, runtime: ModelRuntime) -> None:
        """Compare a loaded model with the description, and its outputs with the golden rows.

        Raises:
            ModelError: something differs.
        """
        said = self.manifest
        sides = (("inputs", said.inputs, runtime.inputs), ("outputs", said.outputs, runtime.outputs))
        for kind, wanted, real in sides:
            if listed(wanted) != listed(real):
                has = f"{MANIFEST} says {kind} {listed(wanted)}, the model has {listed(real)}"
                msg = f"{self.where}: {has}; make the bundle again from the model"
                raise ModelError(msg)
        if with_features(self.where, runtime.inputs, said.features) != said.inputs:
            msg = f"{self.where}: the features {list(said.features)} are not those of the inputs; make the bundle again"
            raise ModelError(msg)
        inputs, expected = self.golden()
        found = runtime.predict(inputs)
        for spec in said.outputs:
            problem = _difference(expected.get(spec.name), found[spec.name], said.tolerance)
            if problem:
                msg = (
                    f"{self.where}: golden rows, output {spec.name!r}: {problem}; the model, its runtime or this "
                    "machine computes something else: do not serve it"
                )
                raise ModelError(msg)


def _difference(expected: Array | None, found: Array, tolerance: float) -> str | None:
    if expected is None or expected.shape != found.shape:
        return f"wanted shape {None if expected is None else expected.shape}, got {found.shape}"
    if found.dtype.kind in "fiu" and expected.dtype.kind in "fiu":
        wrong = ~np.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        wrong = found.astype(str) != expected.astype(str)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{wrong.sum()} of {wrong.size} values differ, first at {list(at)}: wanted {expected[at]}, got {found[at]}"


def _runtime(path: Path) -> ModelRuntime:
    if path.suffix != ".onnx":
        msg = f"model {path.name}: there is no runtime for such a file; wanted one that ends in .onnx"
        raise ModelError(msg)
    return OnnxModel(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
