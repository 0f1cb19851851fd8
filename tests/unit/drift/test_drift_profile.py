import json
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamml.drift import BinKind, Profile, ProfileError

NUMBER = st.floats(width=64) | st.none() | st.sampled_from([0.0, 0.1, 1.0, 2.0])
TEXT = st.sampled_from(["de", "fr", "it", "nan", ""]) | st.none() | st.text(max_size=3)


def one(values: Any, bins: int = 10) -> Profile:
    return Profile.fit({"x": values}, bins=bins)


def test_ranges_hold_equal_shares_and_ends_are_open() -> None:
    profile = one(np.random.default_rng(1).normal(size=1000))
    assert profile["x"].kind is BinKind.RANGES
    assert profile["x"].counts == (100,) * 10 + (0,)
    assert profile.bin_counts("x", np.array([-1e300, 1e300, np.inf, np.nan])).tolist() == [1] + [0] * 8 + [2, 1]


@pytest.mark.parametrize("n", [50, 53, 99, 1001])
def test_shares_differ_by_one_at_most(n: int) -> None:
    counts = one(np.random.default_rng(n).normal(size=n))["x"].counts[:-1]
    assert max(counts) - min(counts) <= 1


def test_equal_quantiles_are_merged() -> None:
    zeros = np.concatenate([np.zeros(900), np.arange(1, 101)])
    assert one(zeros)["x"].edges == (0.0,)
    assert one(zeros)["x"].counts == (900, 100, 0)


def test_few_numbers_are_bins_of_their_own_whatever_the_float_width() -> None:
    profile = one(np.array([0.1, 0.1, 0.2], dtype=np.float32))
    assert profile["x"].kind is BinKind.NUMBERS
    assert profile.bin_counts("x", [0.1, 0.2, 0.3]).tolist() == [1, 1, 1, 0]


def test_a_constant_notices_every_other_value() -> None:
    profile = one([7] * 50)
    assert profile.bin_counts("x", [7, 8, 6, None]).tolist() == [1, 2, 1]


def test_truth_values_and_nothing_but_missing_values() -> None:
    assert one([True, False, True])["x"].counts == (1, 2, 0, 0)
    assert one([np.nan, np.nan])["x"].counts == (0, 2)
    assert one([None, None])["x"].counts == (0, 2)


def test_the_commonest_labels_are_kept() -> None:
    profile = one(["de"] * 5 + ["fr"] * 3 + ["it", None], bins=2)
    assert profile["x"].labels == ("de", "fr")
    assert profile["x"].counts == (5, 3, 1, 1)
    assert profile.bin_counts("x", ["fr", "??", float("nan"), "nan"]).tolist() == [0, 1, 2, 1]


@given(st.lists(NUMBER, min_size=1, max_size=40), st.lists(NUMBER, max_size=40), st.integers(2, 12))
def test_one_value_and_a_column_agree_for_numbers(reference: list[Any], live: list[Any], bins: int) -> None:
    check_agreement(one(reference, bins), live)


@given(st.lists(TEXT, min_size=1, max_size=40), st.lists(TEXT, max_size=40), st.integers(2, 12))
def test_one_value_and_a_column_agree_for_text(reference: list[Any], live: list[Any], bins: int) -> None:
    check_agreement(one(reference, bins), live)


def check_agreement(profile: Profile, live: list[Any]) -> None:
    expected = [0] * len(profile["x"].counts)
    for value in live:
        expected[profile.bin_index("x", value)] += 1
    assert profile.bin_counts("x", live).tolist() == expected
    again = Profile.from_json(profile.to_json())
    assert again == profile
    assert again.bin_counts("x", live).tolist() == expected


def test_an_unknown_format_is_refused_with_what_to_do() -> None:
    stored = json.loads(one([1, 2]).to_json())
    stored["format"] = 2
    stored["features"] = "something new"
    with pytest.raises(ProfileError, match=r"wanted format 1, got format 2; use the streamml version .* Profile\.fit"):
        Profile.from_json(json.dumps(stored))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": 1}', b"\x80\x04", b'{"format":1,"features":{"x":3}}'])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProfileError, match=re.escape("wanted JSON written by Profile.to_json")):
        Profile.from_json(data)


@pytest.mark.parametrize("change", [{"counts": [1]}, {"counts": [1, 2, -3, 4]}, {"edges": [2.0, 1.0]}])
def test_an_edited_profile_is_refused(change: dict[str, Any]) -> None:
    stored = msgspec.json.decode(one([1, 2]).to_json())
    stored["features"]["x"].update(change)
    with pytest.raises(ProfileError, match="fit it again"):
        Profile.from_json(msgspec.json.encode(stored))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, "at least one column"),
        ({"x": []}, "feature 'x': wanted one dimension and at least one row"),
        ({"x": np.zeros((2, 2))}, "got shape (2, 2)"),
        ({"x": np.array(["2026-01-01"], dtype="datetime64[s]")}, "feature 'x': wanted numbers, truth values or text"),
        ({"x": [object()]}, "feature 'x'"),
    ],
)
def test_a_bad_column_is_explained(columns: dict[str, Any], text: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(text)):
        Profile.fit(columns)


def test_an_unknown_feature_comes_with_a_hint() -> None:
    profile = Profile.fit({"amount": [1.0, 2.0], "age": [1, 2]})
    with pytest.raises(ProfileError, match=re.escape("no feature 'amuont'; did you mean 'amount'? known: amount, age")):
        profile.bin_counts("amuont", [1.0])
