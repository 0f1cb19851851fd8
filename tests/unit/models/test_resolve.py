from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, resolve


@pytest.fixture
def models(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """Versions 2, 9 and 10 of `fraud`, and one bundle of `flat` without a folder per version."""
    root = tmp_path / "models"
    for version in (2, 9, 10):
        make_bundle(root / "fraud" / str(version), name="fraud", version=version)
    make_bundle(root / "flat", name="flat", version=3)
    (root / "fraud" / "notes").mkdir()
    (root / "fraud" / "11").mkdir()
    return root


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("fraud", "fraud/10"),
        ("fraud@prod", "fraud/10"),
        ("fraud:9", "fraud/9"),
        ("flat", "flat"),
        ("flat@prod", "flat"),
        ("flat:3", "flat"),
    ],
)
def test_a_reference_finds_its_folder(models: Path, ref: str, found: str) -> None:
    assert resolve(ref, models) == models / found


def test_a_path_is_taken_as_it_is(models: Path, linear: Path) -> None:
    assert resolve(str(linear), models) == linear
    assert resolve(str(models / "fraud" / "2"), []) == models / "fraud" / "2"


def test_folders_are_searched_in_order(models: Path, make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_bundle(other / "fraud", name="fraud", version=1)
    assert resolve("fraud", [other, models]) == other / "fraud"
    assert resolve("flat", [tmp_path / "absent", other, models]) == models / "flat"


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        ("frod", "there is no model 'frod' in {models}. Did you mean 'fraud'? Known: flat, fraud."),
        ("fraud:3", "there is no version 3; versions there: 2, 9, 10; aliases: prod"),
        ("fraud:11", "there is no version 11; versions there: 2, 9, 10"),
        ("fraud@staging", "there is no alias 'staging'; versions there: 2, 9, 10; aliases: prod"),
        ("flat:1", "there is no version 1; versions there: 3"),
        ("no/such/bundle", "there is no such file or bundle; wanted a path, 'name', 'name@prod' or 'name:3'"),
        ("fraud:x", "there is no such file or bundle"),
        ("model.onnx", "there is no such file or bundle"),
        ("", "there is no such file or bundle"),
        ("..", "there is no model '..'"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(models: Path, ref: str, text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text.format(models=models))):
        resolve(ref, models)


def test_without_folders_it_says_so() -> None:
    with pytest.raises(ModelError, match=re.escape("there is no model 'fraud' in no folder. Known: (none).")):
        resolve("fraud", [])
