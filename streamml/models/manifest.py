"""`bundle.json`: the description of a model bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import ModelError
from streamml.models.signature import TensorSpec

__all__ = ["BUNDLE_FORMAT", "MANIFEST", "Manifest", "read_manifest", "write_manifest"]

BUNDLE_FORMAT = 1
"""Version of the layout; raised when an older reader would misread it."""
MANIFEST = "bundle.json"


class _Header(msgspec.Struct):
    format: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `bundle.json` says.

    Attributes:
        format: version of the layout.
        name: name of the model.
        version: number of this version, rising from 1.
        model: file of the model in the folder.
        inputs: inputs in order, with the order of features.
        outputs: outputs in order.
        tolerance: largest difference of a golden output, absolute and relative to its size.
        files: SHA-256 of every other file of the bundle.
        metadata: lineage and whatever else is worth knowing; plain JSON. Known names are `training_data` (what it was
            trained on), `code_version` (of the code that trained it), `metrics` (name to number), `owner`.
        digest: SHA-256 of this description without the digest, which so identifies the bundle.
        runtime: the runtime that loads the model; left out: the ending of the model's file says it. A field that is
            left out is not written, so that descriptions from before it was known keep their digest.
    """

    format: int
    name: str
    version: int
    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: float
    files: dict[str, str]
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    digest: str = ""
    runtime: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def features(self) -> tuple[str, ...]:
        """The features in the order in which `LoadedModel.matrix` takes their columns."""
        return tuple(feature for spec in self.inputs for feature in spec.features)

    def sealed(self) -> Manifest:
        """Return the same description with its digest."""
        bare = msgspec.structs.replace(self, digest="")
        data = msgspec.json.encode(bare, order="deterministic")
        return msgspec.structs.replace(bare, digest=hashlib.sha256(data).hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Read and check the description in a bundle folder.

    Raises:
        ModelError: there is none, it is not of a format that is known here, or it was edited.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as exc:
        msg = f"bundle {folder}: wanted a folder with a {MANIFEST} ({exc.strerror}); make one with Bundle.write"
        raise ModelError(msg) from exc
    try:
        found = msgspec.json.decode(data, type=_Header).format
        if found != BUNDLE_FORMAT:
            msg = (
                f"bundle {folder}: wanted format {BUNDLE_FORMAT}, got format {found}; "
                "use the streamml version that wrote it, or write it again with this one"
            )
            raise ModelError(msg)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"bundle {folder}: {MANIFEST} is cut short or is no description of a bundle ({exc}); restore it"
        raise ModelError(msg) from exc
    if manifest.sealed() != manifest:
        msg = f"bundle {folder}: {MANIFEST} was edited after it was written; restore it, or make a new version"
        raise ModelError(msg)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal the description, write it, and return it as it will be read."""
    sealed = manifest.sealed()
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n")
    return sealed
