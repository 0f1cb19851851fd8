"""The registry: versions appear whole, and the history is a chain in which every change is found."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, Guard, Registry, Rollout, Split, open_model, resolve
from streamml.models.policy import Policy
from streamml.models.registry import Conflict
from streamml.models.signing import new_key


@pytest.fixture
def registry(bundle: Bundle, tmp_path: Path) -> Registry:
    """`fraud` with versions 1, 2 and 3."""
    made = Registry(tmp_path / "models")
    for _ in range(3):
        made.add("fraud", bundle.path)
    return made


@pytest.fixture
def append(registry: Registry) -> Callable[..., Rollout]:
    def call(champion: int, effective: int, alias: str = "prod", action: str = "promote", **more: Any) -> Rollout:
        fixed = {"who": "me@here", "why": "a test", "at": 77}
        return registry.append("fraud", alias, action, effective=effective, champion=champion, **fixed, **more)

    return call


def record(registry: Registry, number: int) -> Path:
    return Path(registry.place) / "fraud" / "rollouts" / f"{number:06}.json"


def test_a_bundle_that_is_added_is_the_next_version_under_the_models_name(registry: Registry, bundle: Bundle) -> None:
    assert (registry.names(), registry.versions("fraud")) == (["fraud"], [1, 2, 3])
    added = Bundle.load(registry.path("fraud", 3))
    added.verify()
    assert (added.manifest.name, added.manifest.version) == ("fraud", 3)
    assert added.manifest.files == bundle.manifest.files
    assert bundle.manifest.name == "linear"


def test_numbers_are_never_given_twice(registry: Registry, bundle: Bundle) -> None:
    shutil.rmtree(registry.path("fraud", 2))
    (Path(registry.place) / "fraud" / "7").mkdir()
    assert registry.add("fraud", bundle.path) == 8
    assert registry.versions("fraud") == [1, 3, 8]


def test_a_model_that_is_one_bundle_goes_on_with_numbered_versions(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    make_bundle(tmp_path / "models" / "flat", name="flat", version=3)
    registry = Registry(tmp_path / "models")
    assert registry.add("flat", tmp_path / "models" / "flat") == 4
    assert registry.versions("flat") == [3, 4]
    assert registry.path("flat", 3) == tmp_path / "models" / "flat"
    assert Bundle.load(registry.path("flat", 4)).manifest.version == 4


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a:1", "a@b", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(registry: Registry, bundle: Bundle, name: str) -> None:
    with pytest.raises(ModelError, match="wanted a name without"):
        registry.add(name, bundle.path)
    assert registry.versions(name) == registry.records(name) == []


def test_a_damaged_bundle_is_not_added(registry: Registry, bundle: Bundle) -> None:
    (bundle.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match=re.escape("model.onnx was changed or cut short")):
        registry.add("fraud", bundle.path)
    assert sorted(os.listdir(Path(registry.place) / "fraud")) == ["1", "2", "3"]


def test_the_history_is_what_was_appended(registry: Registry, append: Callable[..., Rollout]) -> None:
    made = [
        append(1, 100),
        append(2, 50, alias="trial"),
        append(1, 200, action="canary", splits=[Split(2, 5)], guard=Guard(drift=0.2)),
        append(2, 300, shadows=[3]),
    ]
    again = Registry(registry.place)
    assert again.records("fraud") == made
    assert [r.number for r in made] == [1, 2, 3, 4]
    assert again.history("fraud").at(250) == made[2]
    assert again.history("fraud", "trial").at(250).champion == 2
    assert [again.champion("fraud", at=t) for t in (99, 199, 300)] == [1, 1, 2]
    assert made[2].guard == Guard(drift=0.2) and made[2].canary == 2


def test_the_chain_can_be_checked_by_hand(registry: Registry, append: Callable[..., Rollout]) -> None:
    import hashlib

    append(1, 100)
    append(2, 200)
    first, second = (json.loads(record(registry, n).read_text()) for n in (1, 2))
    raw = re.search(rb'"rollout":(\{.*\}),"sha256"', record(registry, 1).read_bytes())
    assert raw is not None and json.loads(raw[1]) == first["rollout"]
    assert second["rollout"]["previous"] == first["sha256"] == hashlib.sha256(raw[1]).hexdigest()
    assert first["rollout"]["previous"] == ""


def test_an_alias_without_rollouts_is_an_error_and_prod_alone_falls_back_to_the_highest(registry: Registry) -> None:
    assert registry.champion("fraud") == 3
    with pytest.raises(ModelError, match=re.escape("fraud@prod: ") + ".*has no rollout of it.*models promote"):
        registry.history("fraud")
    with pytest.raises(ModelError, match=r"fraud@trial: .*has no rollout of it"):
        registry.champion("fraud", "trial")
    with pytest.raises(ModelError, match=r"has no model 'frod'\. Did you mean 'fraud'"):
        registry.champion("frod")


def test_a_reference_to_an_alias_means_its_champion_now(registry: Registry, append: Callable[..., Rollout]) -> None:
    place = registry.place
    assert resolve("fraud@prod", place) == registry.path("fraud", 3)
    append(1, 100)
    append(2, 100, alias="trial")
    append(2, 2**61)  # not yet
    assert resolve("fraud@prod", place) == resolve("fraud", place) == registry.path("fraud", 1)
    assert resolve("fraud@trial", place) == registry.path("fraud", 2)
    assert resolve("fraud:3", place) == registry.path("fraud", 3)
    with pytest.raises(ModelError, match=re.escape("no alias 'tral'; versions there: 1, 2, 3; aliases: prod, trial")):
        resolve("fraud@tral", place)


def test_a_retired_alias_says_who_retired_it(registry: Registry, append: Callable[..., Rollout]) -> None:
    append(1, 100)
    append(1, 200, action="retire")
    assert registry.champion("fraud", at=150) == 1
    with pytest.raises(ModelError, match=re.escape("fraud@prod: was retired by me@here (a test); promote a version")):
        registry.champion("fraud")


def test_the_stamp_changes_with_each_record_and_at_no_other_time(
    registry: Registry, append: Callable[..., Rollout], bundle: Bundle
) -> None:
    stamps = [registry.stamp("fraud")]
    for n in range(5):
        append(1, n)
        stamps.append(registry.stamp("fraud"))
        registry.add("fraud", bundle.path)
        (record(registry, 1).parent / ".000009.json.x.tmp").write_text("half")
        assert registry.stamp("fraud") == stamps[-1]
    assert len(set(stamps)) == 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"champion": 9}, "has no version 9; versions there: 1, 2, 3"),
        ({"shadows": [8]}, "has no version 8"),
        ({"splits": [Split(2, 60), Split(3, 60)]}, "wanted shares above 0 % that make at most 100 %"),
        ({"splits": [Split(2, 0)]}, "got 2 at 0 %"),
        ({"splits": [Split(1, 5)]}, "other than the champion 1"),
        ({"splits": [Split(2, 5), Split(2, 5)]}, "of different versions"),
    ],
)
def test_a_rollout_that_can_not_be_is_not_written(
    registry: Registry, append: Callable[..., Rollout], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        append(**{"champion": 1, "effective": 1, **options})
    assert registry.records("fraud") == []


def test_a_decision_on_an_old_history_is_refused(registry: Registry, append: Callable[..., Rollout]) -> None:
    append(1, 100, after=0)
    with pytest.raises(Conflict, match="record 1 was written since"):
        append(2, 100, after=0)
    append(2, 100, after=1)
    assert [r.champion for r in registry.records("fraud")] == [1, 2]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "is missing (the last one is 000003.json)"),
    "empty": (lambda p: p.write_bytes(b""), "is cut short or damaged"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:60]), "is cut short or damaged"),
    "changed": (
        lambda p: p.write_bytes(p.read_bytes().replace(b'"champion":2', b'"champion":3')),
        "was changed after it was written",
    ),
    "later format": (lambda p: p.write_bytes(b'{"format":2,"new":1}'), "wanted format 1, got format 2"),
    "binary": (lambda p: p.write_bytes(b"\xff\x00"), "is cut short or damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named(registry: Registry, append: Callable[..., Rollout], damage: str) -> None:
    for champion in (1, 2, 3):
        append(champion, champion)
    spoil, text = DAMAGES[damage]
    spoil(record(registry, 2))
    for call in (registry.records, registry.history, registry.champion):
        with pytest.raises(ModelError, match=re.escape("record 000002.json") + ".*" + re.escape(text)):
            call("fraud")
    with pytest.raises(ModelError, match=re.escape("000002.json")):
        append(1, 4)
    assert not record(registry, 4).exists()


def test_a_record_that_was_written_anew_breaks_the_chain(registry: Registry, append: Callable[..., Rollout]) -> None:
    append(1, 1)
    append(2, 2)
    kept = record(registry, 2).read_bytes()
    shutil.rmtree(record(registry, 1).parent)
    append(3, 1)
    record(registry, 2).write_bytes(kept)
    with pytest.raises(ModelError, match=re.escape("000002.json") + ".*does not follow from the record before"):
        registry.records("fraud")


def test_files_that_are_no_records_are_passed_over(registry: Registry, append: Callable[..., Rollout]) -> None:
    append(1, 1)
    for name in (".000002.json.123.tmp", "000002.json.bak", "notes.txt"):
        (record(registry, 1).parent / name).write_text("half")
    append(2, 2)
    assert [r.champion for r in Registry(registry.place).records("fraud")] == [1, 2]


def test_what_killed_writers_left_is_removed_after_a_day(
    registry: Registry, append: Callable[..., Rollout], bundle: Bundle
) -> None:
    append(1, 1)
    base = Path(registry.place) / "fraud"
    old, new, half = base / ".version.a.tmp", base / ".version.b.tmp", base / "rollouts" / ".000002.json.c.tmp"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    half.write_bytes(b"half")
    for path in (old, half):
        os.utime(path, (0, 0))
    registry.add("fraud", bundle.path)
    append(2, 2)
    assert not old.exists() and not half.exists() and new.exists()


def test_a_registry_that_disappears_is_an_error_that_says_so(
    registry: Registry, append: Callable[..., Rollout], bundle: Bundle
) -> None:
    append(1, 1)
    shutil.move(registry.place, registry.place + ".away")
    for call in (registry.stamp, registry.history):
        with pytest.raises(ModelError, match=r"has no such model \(any more\)|has no rollout"):
            call("fraud")
    with pytest.raises(ModelError, match="has no model 'fraud'"):
        append(2, 2)
    shutil.move(registry.place + ".away", registry.place)
    assert registry.stamp("fraud") == "000001.json"


def test_a_registry_that_can_not_be_written_says_so(registry: Registry, append: Callable[..., Rollout]) -> None:
    (Path(registry.place) / "fraud" / "rollouts").write_text("in the way")
    with pytest.raises(ModelError, match=r"000001.json can't be written .* nothing was changed"):
        append(1, 1)


def test_a_signed_bundle_keeps_its_signature_or_is_refused(
    registry: Registry, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    key = new_key(tmp_path / "key.pem")
    policy = Policy(trusted_keys=(key,), require_signature=True)
    for version in (4, 6):
        signed = make_bundle(tmp_path / f"signed-{version}", name="fraud", version=version)
        signed.sign(tmp_path / "key.pem")
    assert registry.add("fraud", tmp_path / "signed-4") == 4
    open_model(registry.path("fraud", 4), policy=policy).close()
    with pytest.raises(Conflict, match=r"would be fraud:5 .* then sign it"):
        registry.add("fraud", tmp_path / "signed-6")
    assert registry.versions("fraud") == [1, 2, 3, 4]
