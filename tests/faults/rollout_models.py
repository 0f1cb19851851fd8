"""Versions of the fraud model: as good as the shipped one, broken, failing on some rows, and slow."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamml.models import Bundle
from streamml.models.manifest import read_manifest, write_manifest
from streamml.models.onnx_model import OnnxModel

SHIPPED = Path(__file__).parents[2] / "jobs" / "bundles" / "fraud"
BAD_CENTS = 99
"""Amounts with so many cents make the fragile version raise."""


def write_versions(models: Path) -> None:
    """Write versions 1 to 6: 1 to 3 are sound, 4 has wrong golden rows, 5 raises on 1 % of rows, 6 is slow."""
    for version in (1, 2, 3, 4, 5, 6):
        model = _variant(models.parent / f"v{version}.onnx", version)
        inputs, _ = Bundle.load(SHIPPED).golden()
        cents = np.mod((inputs["features"][:, 0] * 100).astype(np.int64), 100)
        golden = {"features": inputs["features"][cents < BAD_CENTS]}
        bundle = Bundle.write(
            models / "fraud" / str(version), model, name="fraud", version=version,
            features=Bundle.load(SHIPPED).manifest.features, golden=golden, profile=Bundle.load(SHIPPED).profile,
        )  # fmt: skip
        if version == 4:
            _spoil(bundle.path)


def _spoil(folder: Path) -> None:
    """Put another model into a bundle and seal it again, so that only its golden rows tell."""
    other = _variant(folder / "model.onnx", 40)
    manifest = read_manifest(folder)
    digest = Bundle.write(
        folder.parent.parent.parent / "other", other, name="fraud", version=1, features=manifest.features,
        golden={"features": np.zeros((1, 7), np.float32)},
    ).manifest.files["model.onnx"]  # fmt: skip
    files = {**manifest.files, "model.onnx": digest}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))


def _variant(path: Path, version: int) -> Path:
    """Return the shipped model with its score times 1 - version / 1000, and with what the version is to do wrong."""
    model = onnx.load(SHIPPED / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["raw" if name == "score" else name for name in node.output]
    constants = {"share": np.array(1 - version / 1000, np.float32)}
    nodes = [helper.make_node("Mul", ["raw", "share"], ["score" if version not in (5, 6) else "nearly"])]
    if version == 5:
        constants |= {
            "first": np.array([0], np.int64),
            "hundred": np.array(100, np.float32),
            "hundreds": np.array(100, np.int64),
            "table": np.zeros((BAD_CENTS,), np.float32),
        }
        nodes += [
            helper.make_node("Gather", ["features", "first"], ["amount"], axis=1),
            helper.make_node("Mul", ["amount", "hundred"], ["cents"]),
            helper.make_node("Cast", ["cents"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Mod", ["whole", "hundreds"], ["place"]),
            helper.make_node("Gather", ["table", "place"], ["nothing"]),
            helper.make_node("Add", ["nearly", "nothing"], ["score"]),
        ]
    if version == 6:
        constants["wide"] = np.zeros((7, 60_000), np.float32)
        nodes += [
            helper.make_node("MatMul", ["features", "wide"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["nothing"], axes=[1], keepdims=1),
            helper.make_node("Add", ["nearly", "nothing"], ["score"]),
        ]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.save(model, path)
    OnnxModel(path).load()
    return path
