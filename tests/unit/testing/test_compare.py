"""The comparison: what counts as a difference and what does not."""

from __future__ import annotations

import pytest

from streamml.testing import Case, Expected, Result, advance, event, row
from streamml.testing.compare import compare, same
from streamml.testing.result import OutputRecord


def record(key: str, t: int, id: str = "", **fields: object) -> OutputRecord:
    return OutputRecord(None, key=key, timestamp=t, id=id, fields=fields)


def test_order_counts_within_a_key_only() -> None:
    expected = Expected([row("a", 1), row("b", 2), row("a", 3)])
    assert compare(Result([record("b", 2), record("a", 1), record("a", 3)]), expected) == []
    assert len(compare(Result([record("a", 3), record("a", 1), record("b", 2)]), expected)) == 2


@pytest.mark.parametrize(
    "got",
    [
        [],
        [record("a", 1, x=1)] * 2,
        [record("a", 2, x=1)],
        [record("a", 1)],
        [record("a", 1, x=1, y=1)],
        [record("b", 1, x=1)],
    ],
)
def test_a_record_that_is_missing_doubled_or_different_is_found(got: list[OutputRecord]) -> None:
    assert compare(Result(got), Expected([row("a", 1, x=1)])) != []


def test_an_id_counts_if_one_is_expected() -> None:
    got = Result([record("a", 1, id="x")])
    assert compare(got, Expected([row("a", 1)])) == []
    assert compare(got, Expected([row("a", 1, id="y")])) != []


def test_of_a_side_record_the_expected_fields_count_and_no_side_may_be_forgotten() -> None:
    got = Result(sides={"late": [{"key": "k", "id": "a", "late_by_ms": 3}], "rejected": []})
    assert compare(got, Expected((), {"late": [{"key": "k", "late_by_ms": 3}]})) == []
    assert compare(got, Expected((), {"late": [{"key": "k", "late_by_ms": 4}]})) != []
    assert compare(got, Expected((), {"late": [{"key": "k", "more": 4}]})) != []
    assert compare(got, Expected()) != []
    assert compare(got, Expected((), {"late": [{"key": "k"}], "drift": []})) == [
        "side 'drift': there is no such side output"
    ]


def test_side_records_are_in_order_within_key_and_operator() -> None:
    def side(*pairs: tuple[str, int]) -> list[dict[str, object]]:
        return [{"key": "k", "operator": operator, "n": n} for operator, n in pairs]

    expected = Expected((), {"late": side(("a", 1), ("b", 2), ("a", 3))})
    assert compare(Result(sides={"late": side(("a", 1), ("a", 3), ("b", 2))}), expected) == []
    assert compare(Result(sides={"late": side(("a", 3), ("a", 1), ("b", 2))}), expected) != []


def test_values_are_equal_up_to_rounding_and_never_across_types() -> None:
    assert same({"x": [0.1 + 0.2, float("nan")]}, {"x": (0.3, float("nan"))})
    assert same(1, 1.0)
    assert not same(1.0, 1.000001)
    assert not same(True, 1)
    assert not same(1, "1")
    assert not same(None, 0)
    assert not same({"x": 1}, {"x": 1, "y": None})


def test_a_case_prints_as_what_can_be_pasted() -> None:
    case = Case("name", [], [event("k", t="1s", n=1), advance("2s")], Expected([row("k", "1s", n=1)]), end=False)
    names = {"Case": Case, "Expected": Expected, "event": event, "advance": advance, "row": row}
    assert eval(str(case), names) == case
