from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamml.drift import Profile
from streamml.errors import ModelError
from streamml.models import Bundle, open_model
from streamml.models.manifest import write_manifest


def edit(bundle: Bundle, **changes: Any) -> None:
    """Change `bundle.json` as an editor would: without a new digest."""
    path = bundle.path / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def forge(bundle: Bundle, **changes: Any) -> None:
    """Change the description with a right digest and right checksums, as a wrong tool would write it."""
    if "files" not in changes:
        names = bundle.manifest.files
        changes["files"] = {name: hashlib.sha256((bundle.path / name).read_bytes()).hexdigest() for name in names}
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, **changes))


def refused(bundle: Bundle, text: str) -> None:
    """Both ways in refuse the bundle, for this reason."""
    for way in (lambda: Bundle.load(bundle.path).verify(), lambda: open_model(bundle.path)):
        with pytest.raises(ModelError, match=re.escape(text)):
            way()


def test_what_is_written_is_read_and_verified(make_bundle: Callable[..., Bundle]) -> None:
    profile = Profile.fit({"a": np.arange(100.0)})
    made = make_bundle(metadata={"owner": "risk", "auc": 0.9}, profile=profile)
    read = Bundle.load(made.path)
    read.verify()
    assert read.manifest == made.manifest
    assert read.manifest.features == ("a", "b", "c")
    assert read.manifest.metadata == {"owner": "risk", "auc": 0.9}
    assert read.profile == profile
    assert sorted(read.manifest.files) == ["golden.npz", "model.onnx", "profile.json"]


def test_golden_outputs_are_those_of_the_model(bundle: Bundle) -> None:
    inputs, outputs = bundle.golden()
    assert outputs["score"][:, 0].tolist() == (inputs["x"] @ np.array([1, 10, 100], np.float32)).tolist()


def test_writing_twice_gives_the_same_bytes(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two")
    for path in one.path.iterdir():
        assert path.read_bytes() == (two.path / path.name).read_bytes()


def test_a_bundle_without_profile_has_none(bundle: Bundle) -> None:
    assert bundle.profile is None


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "profile.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "removed", "emptied"])
def test_a_touched_file_is_refused_by_name(make_bundle: Callable[..., Bundle], name: str, how: str) -> None:
    bundle = make_bundle(profile=Profile.fit({"a": np.arange(100.0)}))
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    if how == "changed":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-1], "emptied": b""}.get(how, data))
    if how == "removed":
        path.unlink()
    refused(bundle, f"{name} is missing" if how == "removed" else f"{name} was changed or cut short")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "wanted format 1, got format 2; use the streamml version that wrote it"),
        ({"version": 9}, "bundle.json was edited"),
        ({"metadata": {"auc": 1.0}}, "bundle.json was edited"),
        ({"files": {}}, "bundle.json was edited"),
        ({"note": "hello"}, "is no description of a bundle"),
        ({"inputs": 3}, "is no description of a bundle"),
    ],
)
def test_an_edited_description_is_refused(bundle: Bundle, changes: dict[str, Any], text: str) -> None:
    edit(bundle, **changes)
    refused(bundle, text)


def test_an_edited_order_of_features_is_refused(bundle: Bundle) -> None:
    (spec,) = json.loads((bundle.path / "bundle.json").read_text())["inputs"]
    edit(bundle, inputs=[{**spec, "features": ["b", "a", "c"]}])
    refused(bundle, "bundle.json was edited")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"name": "linear"}'])
def test_a_description_that_is_none_is_refused(bundle: Bundle, data: bytes) -> None:
    (bundle.path / "bundle.json").write_bytes(data)
    refused(bundle, "is cut short or is no description of a bundle")


def test_every_shortened_description_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "bundle.json"
    data = path.read_bytes()
    for size in range(0, len(data) - 3, 7):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            Bundle.load(bundle.path)


def test_a_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("wanted a folder with a bundle.json (No such file or directory)")):
        Bundle.load(tmp_path)


def test_golden_rows_that_the_model_does_not_give_are_refused(bundle: Bundle) -> None:
    inputs, outputs = bundle.golden()
    outputs["score"][2, 0] += 1
    np.savez(bundle.path / "golden.npz", **{"input:x": inputs["x"], "output:score": outputs["score"]})
    forge(bundle)
    refused(bundle, "golden rows, output 'score': 1 of 4 values differ, first at [2, 0]: wanted 877.0, got 876.0")


def test_golden_rows_may_differ_within_the_tolerance(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(tolerance=0.01)
    inputs, outputs = bundle.golden()
    np.savez(bundle.path / "golden.npz", **{"input:x": inputs["x"], "output:score": outputs["score"] * 1.005})
    forge(bundle)
    Bundle.load(bundle.path).verify()


def test_golden_rows_without_an_output_are_refused(bundle: Bundle) -> None:
    np.savez(bundle.path / "golden.npz", **{"input:x": bundle.golden()[0]["x"]})
    forge(bundle)
    refused(bundle, "golden rows, output 'score': wanted shape None, got (4, 1)")


def test_golden_rows_that_are_a_pickle_are_refused(bundle: Bundle) -> None:
    np.savez(bundle.path / "golden.npz", **{"input:x": np.array([{"a": 1}], dtype=object)})
    forge(bundle)
    refused(bundle, "golden.npz can't be read")


def test_a_model_of_another_signature_is_refused(bundle: Bundle) -> None:
    (spec,) = bundle.manifest.inputs
    forge(bundle, inputs=(msgspec.structs.replace(spec, shape=(None, 4), features=("a", "b", "c", "d")),))
    refused(bundle, "bundle.json says inputs x: float32[?, 4], the model has x: float32[?, 3]")


def test_features_that_do_not_fit_the_width_of_the_graph_are_refused(bundle: Bundle) -> None:
    (spec,) = bundle.manifest.inputs
    forge(bundle, inputs=(msgspec.structs.replace(spec, features=("a", "b")),))
    refused(bundle, "wanted 3 different features for x: float32[?, 3], got 2: a, b")


def test_a_file_outside_of_the_folder_is_refused(bundle: Bundle, linear: Path) -> None:
    digest = hashlib.sha256(linear.read_bytes()).hexdigest()
    forge(bundle, model="../linear.onnx", files={**bundle.manifest.files, "../linear.onnx": digest})
    refused(bundle, "../linear.onnx is missing")


def test_a_model_file_of_an_unknown_kind_is_refused(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").rename(bundle.path / "model.pkl")
    files = {name.replace(".onnx", ".pkl"): digest for name, digest in bundle.manifest.files.items()}
    forge(bundle, model="model.pkl", files=files)
    refused(bundle, "model model.pkl: there is no runtime for such a file; wanted one that ends in .onnx")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "a:b"}, "wanted a name without ':', '@' and '/'"),
        ({"version": 0}, "a version of at least 1"),
        ({"features": ["a", "b"]}, "wanted 3 different features"),
        ({"features": ["a", "b", "b"]}, "wanted 3 different features"),
        ({"golden": {"y": np.zeros((1, 3), np.float32)}}, "input 'x' is missing"),
    ],
)
def test_a_bundle_that_would_not_be_read_is_not_written(
    make_bundle: Callable[..., Bundle], tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        make_bundle(**options)
    assert not (tmp_path / "bundle").exists()


def test_a_version_is_not_written_over(bundle: Bundle, make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(ModelError, match="is not empty; a version never changes"):
        make_bundle(version=2)


def test_a_description_without_the_newer_fields_keeps_the_digest_that_older_versions_gave_it(bundle: Bundle) -> None:
    """The digest is computed here as version 0.1 did: over the fields that it knew, in its order of keys."""
    said = json.loads((bundle.path / "bundle.json").read_text())
    fields = ("format", "name", "version", "model", "inputs", "outputs", "tolerance", "files", "metadata", "digest")
    assert sorted(said) == sorted(fields)
    data = msgspec.json.encode({**said, "digest": ""}, order="sorted")
    struct = msgspec.json.encode(msgspec.structs.replace(bundle.manifest, digest=""), order="deterministic")
    assert json.loads(data) == json.loads(struct)
    assert bundle.manifest.digest == hashlib.sha256(struct).hexdigest()
    assert b"runtime" not in struct


def test_the_runtime_may_be_said_where_the_ending_does_not(linear: Path, tmp_path: Path) -> None:
    path = linear.rename(tmp_path / "weights.bin")
    golden = {"x": np.ones((2, 3), np.float32)}
    options: dict[str, Any] = {"name": "m", "version": 1, "features": ["a", "b", "c"], "golden": golden}
    with pytest.raises(ModelError, match=re.escape("model weights.bin: there is no runtime for such a file; wanted")):
        Bundle.write(tmp_path / "b", path, **options)
    made = Bundle.write(tmp_path / "b", path, runtime="onnx", **options)
    assert (made.manifest.model, made.manifest.runtime) == ("model.bin", "onnx")
    with open_model(made.path) as model:
        assert model.score([[1], [2], [3]], 1) == {"score": [321.0]}
    forge(made, runtime="magic")
    refused(made, "model model.bin: there is no runtime 'magic'; known: onnx, torchscript, torch-export, description")


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.npy"])
def test_a_pickle_has_no_runtime_whatever_is_allowed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(ModelError, match=re.escape("pickles are never loaded")):
        Bundle.write(tmp_path / "b", tmp_path / name, name="m", version=1, features=[], golden={"x": np.ones(1)})


@pytest.mark.parametrize(
    "metadata",
    [
        {"metrics": {"auc": "high"}},
        {"metrics": [0.9]},
        {"owner": 7},
        {"code_version": ["a"]},
        {"when": object()},
    ],
)
def test_lineage_of_another_type_is_refused(
    make_bundle: Callable[..., Bundle], tmp_path: Path, metadata: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=re.escape("bundle linear:1: metadata: wanted plain JSON, metrics by name")):
        make_bundle(metadata=metadata)
    assert not (tmp_path / "bundle").exists()


def test_more_files_go_into_the_bundle_and_under_its_sums(linear: Path, tmp_path: Path) -> None:
    """Such as weights that an ONNX graph keeps outside."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(
        onnx.load(linear),
        folder / "big.onnx",
        save_as_external_data=True,
        location="big.data",
        size_threshold=0,
    )
    golden = {"x": np.ones((2, 3), np.float32)}
    options: dict[str, Any] = {"name": "m", "version": 1, "features": ["a", "b", "c"], "golden": golden}
    made = Bundle.write(tmp_path / "b", folder / "big.onnx", files=[folder / "big.data"], **options)
    assert sorted(made.manifest.files) == ["big.data", "golden.npz", "model.onnx"]
    with open_model(made.path) as model:
        assert model.score([[1], [2], [3]], 1) == {"score": [321.0]}
    (made.path / "big.data").write_bytes(bytes(12))
    refused(made, "big.data was changed or cut short")
    (folder / "golden.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=re.escape("the file 'golden.npz' would be written over")):
        Bundle.write(tmp_path / "c", linear, files=[folder / "golden.npz"], **options)


def test_a_model_that_takes_no_zeros_is_warmed_up_with_golden_rows(
    write_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    """A table of three rows, and keys that start at 1: zeros less one would be out of it."""
    path = write_onnx(
        [("Sub", ["k", "one"], ["at"], {}), ("Gather", ["table", "at"], ["v"], {})],
        {"k": ("int64", ["n"])},
        {"v": ("float32", ["n"])},
        {"table": np.array([5, 6], np.float32), "one": np.array(3)},
    )
    golden = {"k": np.array([3, 4])}
    Bundle.write(tmp_path / "b", path, name="m", version=1, features=["k"], golden=golden)
    with open_model(tmp_path / "b") as model:
        assert model.score([[4, 3]], 2) == {"v": [6.0, 5.0]}
    with pytest.raises(ModelError, match="failed on"):
        open_model(path, ["k"])
