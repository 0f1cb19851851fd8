"""Model bundles: a folder with the model and all that is needed to trust it.

`bundle.json` describes the model and holds the SHA-256 of the other files; `golden.npz` holds inputs with the outputs
that the model gave when the bundle was made; `profile.json`, if there, is the reference profile for drift.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec

from streamml.drift.profile import Profile, ProfileError
from streamml.errors import ModelError
from streamml.models.golden import GOLDEN, aligned, difference, read_golden, write_golden
from streamml.models.manifest import BUNDLE_FORMAT, MANIFEST, Manifest, read_manifest, write_manifest
from streamml.models.policy import Policy
from streamml.models.runtime import ModelRuntime, RuntimeOptions
from streamml.models.runtimes import files_of, make_runtime
from streamml.models.signature import Array, TensorSpec, listed, specs_of, with_features
from streamml.models.signing import SIGNATURE, Signature, check_signature, sign

__all__ = ["Bundle"]

_PROFILE = "profile.json"


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
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        runtime: str = "",
        files: Sequence[str | Path] = (),
        policy: Policy | None = None,
    ) -> Self:
        """Make a bundle from a model file, which computes the golden outputs; `package` makes one of more than that.

        Args:
            folder: where to write; must be absent or empty, since versions never change.
            model: the file of the model, or a description (see `streamml.models.describe`); it is copied into the
                folder, and so are the files that a description names.
            name: name of the model, without `:`, `@` or a path.
            version: number of the version, 1 or more.
            features: features in the order of the matrix's columns, or of the inputs if each is one column.
            golden: inputs by name, some dozens of typical rows.
            profile: reference profile for drift.
            metadata: lineage and whatever is worth knowing later; must be plain JSON, see `Manifest`.
            tolerance: largest difference of a golden output, absolute and relative to its size.
            inputs: inputs, for a file that does not say them; else they are those of the golden rows.
            outputs: outputs, for a file that does not say them; else they are those that it gives for the golden rows.
            runtime: the runtime, where the file's ending does not say it.
            files: more files that the model reads, such as weights that an ONNX graph keeps outside.
            policy: which code may run; default: from the environment.

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
        file = "model" + source.suffix
        copied = {path.name: path for path in (*files_of(source), *map(Path, files))}
        if taken := set(copied) & {file, MANIFEST, GOLDEN, _PROFILE, SIGNATURE}:
            msg = f"{title}: the file {min(taken)!r} would be written over by the bundle's own; rename it"
            raise ModelError(msg)
        described = _plain(title, metadata or {})
        serving = make_runtime(source, runtime=runtime, inputs=inputs, outputs=outputs, policy=policy)
        serving.load()
        try:
            made = with_features(title, serving.inputs or specs_of(golden), features)
            golden = aligned(made, golden)
            expected = serving.predict(golden)
            outputs = tuple(serving.outputs) or specs_of(expected)
        finally:
            serving.close()
        folder.mkdir(parents=True, exist_ok=True)
        for target, path in {file: source, **copied}.items():
            shutil.copyfile(path, folder / target)
        write_golden(folder, golden, expected)
        if profile is not None:
            (folder / _PROFILE).write_bytes(profile.to_json())
        manifest = Manifest(
            format=BUNDLE_FORMAT,
            name=name,
            version=version,
            model=file,
            inputs=made,
            outputs=tuple(outputs),
            tolerance=tolerance,
            files={path.name: _sha256(path) for path in sorted(folder.iterdir())},
            metadata=described,
            runtime=runtime or msgspec.UNSET,
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

    def runtime(self, *, policy: Policy | None = None, options: RuntimeOptions | None = None) -> ModelRuntime:
        """Return the runtime for the model, not yet loaded; it uses none but the files that the bundle names.

        Raises:
            ModelError: there is no such runtime, or its code is not allowed.
        """
        said = self.manifest
        return make_runtime(
            self.path / said.model,
            runtime=said.runtime or "",
            inputs=said.inputs,
            outputs=said.outputs,
            files=said.files,
            policy=policy,
            options=options,
        )

    def sign(self, private_key: str | Path | bytes) -> Signature:
        """Sign the bundle with an Ed25519 key, as `streamml.models.signing.new_key` makes it.

        Args:
            private_key: PEM file with the private key, or the PEM itself as bytes.

        Raises:
            ModelError: the key can't be read, or a file of the bundle is not the one that was written.
        """
        self.check_files()
        return sign(self.path, self.manifest, private_key)

    def golden(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the golden inputs and their expected outputs."""
        return read_golden(self.where, self.path)

    def verify(self, *, policy: Policy | None = None, options: RuntimeOptions | None = None) -> None:
        """Prove that the files are those that were written, that the model fits the description, and the golden rows.

        Args:
            policy: trusted keys and code that may run; default: from the environment.
            options: threads, providers, device; default: from the environment.

        Raises:
            ModelError: what is wrong.
        """
        policy = policy or Policy.from_env()
        self.check_signature(policy)
        self.check_files()
        runtime = self.runtime(policy=policy, options=options)
        runtime.load()
        try:
            self.check_model(runtime)
        finally:
            runtime.close()

    def check_signature(self, policy: Policy) -> None:
        """Refuse a bundle whose signature the policy does not accept.

        Raises:
            ModelError: what is wrong with the signature.
        """
        check_signature(self.where, self.path, self.manifest, policy)

    def check_files(self) -> None:
        """Compare each file with its SHA-256.

        Raises:
            ModelError: a file is not there or is another one.
        """
        for name, wanted in {self.manifest.model: "none", GOLDEN: "none", **self.manifest.files}.items():
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
            problem = difference(expected.get(spec.name), found[spec.name], said.tolerance)
            if problem:
                msg = (
                    f"{self.where}: golden rows, output {spec.name!r}: {problem}; the model, its runtime or this "
                    "machine computes something else: do not serve it"
                )
                raise ModelError(msg)


def _plain(title: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata, whose known names are of their type, as they will be read."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(metadata)))
        msgspec.convert(plain, _Lineage)
    except (TypeError, ValueError, OverflowError) as exc:
        msg = (
            f"{title}: metadata: wanted plain JSON, metrics by name as numbers, owner and code_version as text ({exc})"
        )
        raise ModelError(msg) from exc
    return plain


class _Lineage(msgspec.Struct):
    training_data: Any = None
    code_version: str = ""
    metrics: dict[str, float] = {}
    owner: str = ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
