"""Feature hashes, and the comparison of logged with computed rows."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError
from streamml.models.parity import Parity, feature_hash, read_feature_log


def row(id: str, operator: str = "fraud", **features: Any) -> dict[str, Any]:
    return {"id": id, "operator": operator, "features": features, "hash": feature_hash(list(features.values()))}


def test_the_hash_is_that_of_the_values_as_messagepack() -> None:
    packed = b"\x94" + b"\xcb" + struct.pack(">d", 1.5) + b"\x02" + b"\xa1a" + b"\xc0"
    assert feature_hash([1.5, 2, "a", None]) == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize(
    "values",
    [
        [np.float32(1.5), np.int16(2), np.str_("a"), np.float64("nan")],
        [np.float64(1.5), np.uint64(2), "a", -math.nan],
        [np.array(1.5), np.array([2])[0], "a", struct.unpack(">d", b"\x7f\xf8\0\0\0\0\0\1")[0]],
    ],
)
def test_the_hash_knows_nothing_of_widths_and_kinds_of_nan(values: list[Any]) -> None:
    assert feature_hash(values) == feature_hash([1.5, 2, "a", math.nan])


def test_the_hash_tells_order_type_and_the_last_bit_apart() -> None:
    vectors: list[list[Any]] = [
        [1.0, 2.0], [2.0, 1.0], [1, 2.0], [1.0], [1.0, 2.0, None], ["1.0", 2.0], [math.nextafter(1.0, 2), 2.0],
        [0.0, 2.0], [-0.0, 2.0], [None, 2.0], [math.nan, 2.0], [[1.0, 2.0]],
    ]  # fmt: skip
    assert len({feature_hash(vector) for vector in vectors}) == len(vectors)


def test_equal_different_missing_and_unlogged_rows_are_told_apart() -> None:
    parity = Parity([row("1", a=1.0, b=2), row("2", a=1.0, b=2), row("3", a=1.0, b=2), row("4", a=1.0, b=2)])
    for computed in (row("1", a=1.0, b=2), row("2", a=1.5, b=2), row("3", a=0.0, b=3), row("9", a=1.0, b=2)):
        parity.add(computed)
    assert (parity.equal, parity.different, parity.missing, parity.unlogged) == (1, 2, ["4"], 1)
    assert {name: (gap.rows, gap.largest) for name, gap in parity.gaps.items()} == {"a": (2, 1.0), "b": (1, 1)}
    assert parity.gaps["a"].example == ("2", 1.0, 1.5)
    assert not parity.holds


@pytest.mark.parametrize(
    ("logged", "computed", "name"),
    [
        ({"a": 1.0}, {"a": 1}, "(order or type)"),
        ({"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 2.0}, "a"),
        ({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}, "(order or type)"),
        ({"a": "x"}, {"a": "y"}, "a"),
        ({"a": 1.0}, {"a": None}, "a"),
        ({"a": 1.0}, {}, "a"),
        ({}, {"a": 1.0}, "a"),
        ({"a": 1.0}, {"a": math.nextafter(1.0, 2)}, "a"),
    ],
)
def test_the_feature_that_differs_is_named(logged: dict[str, Any], computed: dict[str, Any], name: str) -> None:
    parity = Parity([row("1", **logged)])
    parity.add(row("1", **computed))
    assert (parity.equal, list(parity.gaps)) == (0, [name])


def test_a_log_whose_values_were_edited_does_not_hold_although_its_hashes_do() -> None:
    edited = {**row("1", a=1.0), "features": {"a": 2.0}}
    parity = Parity([edited])
    parity.add(row("1", a=1.0))
    assert list(parity.gaps) == ["a"]


def test_a_tolerance_is_relative_for_large_numbers_and_absolute_for_small_ones() -> None:
    parity = Parity([row("1", a=1e6), row("2", a=1e-6), row("3", a=1e6), row("4", a=math.inf), row("5", a=1.0)], 1e-3)
    for computed in (row("1", a=1e6 + 900), row("2", a=0), row("3", a=1e6 + 1100), row("4", a=math.inf)):
        parity.add(computed)
    assert (parity.equal, parity.gaps["a"].rows, parity.gaps["a"].largest) == (3, 1, 1100)
    parity.add(row("5", a=math.inf))
    assert (parity.gaps["a"].rows, parity.gaps["a"].largest) == (2, math.inf)


def test_rows_of_two_operators_and_repeated_ones_are_kept_apart() -> None:
    log = [row("1", "x", a=1), row("1", "y", a=2), row("1", "x", a=1), row("2", "x", a=1), row("2", "x", a=2)]
    parity = Parity(log)
    for computed in (row("1", "x", a=1), row("1", "y", a=2), row("2", "x", a=1), row("2", "x", a=2)):
        parity.add(computed)
    assert (parity.equal, parity.different, parity.missing) == (4, 0, [])
    assert parity.holds


def test_nothing_compared_is_no_proof() -> None:
    assert not Parity([]).holds


def test_nan_survives_the_log_as_null(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({**row("1", a=math.nan), "features": {"a": None}}) + "\n")
    parity = Parity(read_feature_log([tmp_path / "log.jsonl"]))
    parity.add(row("1", a=math.nan))
    assert parity.holds


def test_a_log_may_be_in_parts_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**row("1", a=1.5), "more": "fields"}) + "\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(row("2", a=1.5)))
    rows = list(read_feature_log([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]))
    assert [(each["id"], each["features"]) for each in rows] == [("1", {"a": 1.5}), ("2", {"a": 1.5})]


@pytest.mark.parametrize("line", ['{"id":"1"', "{}", "[]", '{"id":1,"operator":"x","features":{},"hash":""}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row("1", a=1)) + "\n" + line + "\n")
    with pytest.raises(ModelError, match=re.escape(f"{path}, line 2: wanted a record of the side output `features`")):
        list(read_feature_log([path]))
    with pytest.raises(ModelError, match=r"absent.jsonl: can't be read .*No such file"):
        list(read_feature_log([tmp_path / "absent.jsonl"]))
