"""Registries at an address: the same as a folder, with a cache of versions; S3 itself is in `tests/faults`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, Registry, Split, open_model, resolve
from streamml.models.registry_url import UrlStore

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory(cache: Path) -> Iterator[Any]:
    """The file system behind `memory://`, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def registry(memory: Any, bundle: Bundle) -> Registry:
    made = Registry("memory://bucket/models")
    for _ in range(2):
        made.add("fraud", bundle.path)
    return made


def append(registry: Registry, champion: int, effective: int, **more: Any) -> Any:
    fixed = {"who": "me", "why": "", "at": 1}
    return registry.append("fraud", "prod", "promote", effective=effective, champion=champion, **fixed, **more)


def test_it_is_the_same_as_in_a_folder(registry: Registry, bundle: Bundle, tmp_path: Path) -> None:
    folder = Registry(tmp_path / "models")
    for _ in range(2):
        folder.add("fraud", bundle.path)
    for each in (registry, folder):
        append(each, 1, 5)
        append(each, 1, 7, splits=[Split(2, 5)])
    assert registry.names() == folder.names() == ["fraud"]
    assert registry.versions("fraud") == folder.versions("fraud") == [1, 2]
    assert registry.records("fraud") == folder.records("fraud")
    assert registry.stamp("fraud") == folder.stamp("fraud")
    assert registry.champion("fraud") == 1
    files = [Bundle.load(each.path("fraud", 2)).manifest for each in (registry, folder)]
    assert files[0] == files[1]
    assert Registry("memory://bucket/other").names() == Registry("memory://bucket/other").records("fraud") == []


def test_a_file_address_is_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    Registry(f"file://{tmp_path}/models").add("fraud", bundle.path)
    assert Registry(tmp_path / "models").versions("fraud") == [1]


def test_a_version_is_fetched_once_and_checked(registry: Registry, memory: Any, cache: Path) -> None:
    path = registry.path("fraud", 2)
    assert path.is_relative_to(cache)
    open_model(path).close()
    memory.rm("/bucket/models/fraud/2/model.onnx")
    assert Registry(registry.place).path("fraud", 2) == path
    memory.pipe_file("/bucket/models/fraud/1/model.onnx", b"other")
    with pytest.raises(ModelError, match=r"model\.onnx was changed or cut short"):
        registry.path("fraud", 1)
    memory.rm("/bucket/models/fraud/1/model.onnx")
    with pytest.raises(ModelError, match=re.escape("memory://bucket/models: fraud/1/model.onnx is missing")):
        registry.path("fraud", 1)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_registry_at_the_same_address_is_not_taken_from_the_cache(
    registry: Registry, memory: Any, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    before = registry.path("fraud", 1)
    memory.rm("/bucket", recursive=True)
    registry.add("fraud", make_bundle(tmp_path / "new", metadata={"owner": "other"}).path)
    after = registry.path("fraud", 1)
    assert after != before and Bundle.load(after).manifest.metadata == {"owner": "other"}


def test_a_description_that_names_a_file_elsewhere_is_not_fetched(
    registry: Registry, memory: Any, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    import msgspec

    from streamml.models.manifest import write_manifest

    bundle = make_bundle(tmp_path / "evil", name="fraud", version=3)
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, files={"../../../evil": "00"}))
    memory.pipe_file("/bucket/models/fraud/3/bundle.json", (bundle.path / "bundle.json").read_bytes())
    with pytest.raises(ModelError, match="which is no file beside it"):
        registry.path("fraud", 3)


def test_a_version_without_its_description_is_not_seen_and_its_number_not_used_again(
    registry: Registry, memory: Any, bundle: Bundle
) -> None:
    """As a writer leaves it that dies before the last file."""
    memory.pipe_file("/bucket/models/fraud/3/.claim", b"x")
    memory.pipe_file("/bucket/models/fraud/3/model.onnx", b"half")
    assert registry.versions("fraud") == [1, 2]
    assert registry.add("fraud", bundle.path) == 4
    assert registry.versions("fraud") == [1, 2, 4]


def test_a_record_is_never_written_over(registry: Registry, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer is faster: its record stays, and ours comes after it."""
    append(registry, 1, 5)
    create, raced = UrlStore.create, []

    def late(store: UrlStore, data: bytes, *parts: str) -> bool:
        if not raced:
            raced.append(True)
            append(Registry(registry.place), 2, 6)
        return create(store, data, *parts)

    monkeypatch.setattr(UrlStore, "create", late)
    append(registry, 1, 7)
    assert [(r.number, r.champion, r.effective) for r in registry.records("fraud")] == [(1, 1, 5), (2, 2, 6), (3, 1, 7)]


def test_a_record_whose_answer_was_lost_is_not_written_twice(
    registry: Registry, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store took it, and the client tries again: it finds its own."""
    pipe = type(memory).pipe_file

    def twice(self: Any, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        pipe(self, path, value, mode=mode, **more)
        if "rollouts" in path:
            raise TimeoutError

    monkeypatch.setattr(type(memory), "pipe_file", twice)
    append(registry, 1, 5)
    assert [r.effective for r in registry.records("fraud")] == [5]


def test_a_store_that_fails_is_an_error_with_its_address_and_without_secrets(
    registry: Registry, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **more: Any) -> Any:
        msg = "no route"
        raise ConnectionError(msg)

    append(registry, 1, 5)
    for method in ("ls", "cat_file", "pipe_file"):
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), method, fail)
            text = r"memory://bucket/models: can't be \w+ \(ConnectionError: no route\)"
            with pytest.raises(ModelError, match=text):
                append(registry, 1, 6)
            if method == "ls":
                with pytest.raises(ModelError, match=text):
                    registry.stamp("fraud")
    assert len(registry.records("fraud")) == 1


def test_a_reference_is_found_at_an_address(registry: Registry) -> None:
    append(registry, 1, 5)
    assert resolve("fraud@prod", ["/nowhere", registry.place]) == registry.path("fraud", 1)
    assert resolve("fraud:2", registry.place) == registry.path("fraud", 2)


def test_an_unknown_kind_of_address_says_what_to_install() -> None:
    with pytest.raises(ModelError, match=r"fsspec can't open such an address .* or use a folder"):
        Registry("nosuchscheme://x/y")


def test_without_fsspec_it_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from streamml.models import Registry\n"
        "Registry('models').names()\n"
        "Registry('s3://bucket/models')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        "ModelError: model registry s3://bucket/models: fsspec is not installed; run: pip install 'streamml[fsspec]'"
        in (done.stderr)
    )
