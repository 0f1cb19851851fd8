"""What is written of a row."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from streamml.connectors import Encoder
from streamml.connectors.encode import output_rows
from streamml.errors import RecordError
from streamml.events import Event
from streamml.records import Batch


class Payment(Event, id="tx_id", key="card", time="ts"):
    tx_id: str
    card: str
    amount: float
    ts: int = 0


def batch(values: list[Any], **fields: list[Any]) -> Batch:
    count = len(values)
    return Batch(
        values,
        times=list(range(100, 100 + count)),
        ids=[f"e{row}" for row in range(count)],
        watermarks=[0] * count,
        watermark=0,
        keys=[f"k{row}" for row in range(count)],
        fields=fields,
    )


PAYMENTS = [Payment("t0", "c0", 1.5), Payment("t1", "c1", 2.5, 9)]


def lines(data: bytes) -> list[list[tuple[str, Any]]]:
    """Decode with the standard library, keeping order and doubled names."""
    assert data.endswith(b"\n") or not data
    return [json.loads(line, object_pairs_hook=list) for line in data.splitlines()]


@pytest.mark.parametrize(
    ("values", "fields", "want"),
    [
        (PAYMENTS, ["amount", "score"], [("id", "e0"), ("amount", 1.5), ("score", 7)]),
        (PAYMENTS, None, [("id", "e0"), ("tx_id", "t0"), ("card", "c0"), ("amount", 1.5), ("ts", 0), ("score", 7)]),
        (PAYMENTS, ["key", "timestamp", "amount"], [("id", "e0"), ("key", "k0"), ("timestamp", 100), ("amount", 1.5)]),
        (PAYMENTS, [], [("id", "e0")]),
        (PAYMENTS, ["id", "amount", "amount"], [("id", "e0"), ("amount", 1.5)]),
        ([{"id": 5, "key": "own"}] * 2, ["id", "key"], [("_id", "e0"), ("id", 5), ("key", "own")]),
        ([{"id": 5}, {}], None, [("_id", "e0"), ("id", 5), ("score", 7)]),
        ([{"key": "own"}, {}], ["key"], [("id", "e0"), ("key", "own")]),
        ([{"a b": 1, 'q"\n': 2}] * 2, ['q"\n', "a b"], [("id", "e0"), ('q"\n', 2), ("a b", 1)]),
        ([{"class": 1}] * 2, ["class"], [("id", "e0"), ("class", 1)]),
        ([None, None], None, [("id", "e0"), ("score", 7)]),
        ([{"_id": 1, "id": 2}] * 2, None, [("_id", 1), ("id", 2), ("score", 7)]),
    ],
)
def test_a_record_starts_with_the_id_and_holds_the_fields_in_order(values: Any, fields: Any, want: Any) -> None:
    rows = batch(values, score=[7, 8])
    encoder = Encoder()
    assert lines(encoder.encode_lines(rows, fields))[0] == want
    assert json.loads(encoder.encode_rows(rows, fields)[0], object_pairs_hook=list) == want
    assert list(output_rows(rows, fields)[0].items()) == want


def test_a_row_without_the_field_that_others_have_gets_the_envelopes() -> None:
    assert lines(Encoder().encode_lines(batch([{"key": "own"}, {}]), ["key"]))[1] == [("id", "e1"), ("key", "k1")]


def test_a_derived_field_wins_over_the_events_own() -> None:
    assert output_rows(batch(PAYMENTS, amount=[0, 0]), None)[0]["amount"] == 0


def test_two_field_lists_of_one_encoder_do_not_mix() -> None:
    encoder = Encoder()
    for fields in (["amount", "ts"], ["ts", "amount"], ["ts"]):
        got = lines(encoder.encode_lines(batch(PAYMENTS), fields))[1]
        assert got == [("id", "e1"), *((name, getattr(PAYMENTS[1], name)) for name in fields)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), [float("nan")]])
def test_what_is_no_json_number_is_null(value: Any) -> None:
    got = lines(Encoder().encode_lines(batch([{"x": value}]), ["x"]))[0][1]
    assert got == ("x", [None] if isinstance(value, list) else None)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.5, 2]]), [[1.5, 2.0]]),
        (2**70, 2**70),
    ],
)
def test_numpy_values_are_written_as_plain_ones(value: Any, want: Any) -> None:
    assert lines(Encoder().encode_lines(batch([{"x": value}]), ["x"]))[0][1] == ("x", want)


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize("value", [object(), "\ud800", {(1, 2): 3}, print, LOOP])
@pytest.mark.parametrize("fields", [None, ["ok", "bad"]])
def test_a_value_that_is_no_json_is_a_record_error_that_names_event_and_field(value: Any, fields: Any) -> None:
    rows = batch([{"ok": 1, "bad": 1}, {"ok": 1, "bad": value}, {"ok": 1, "bad": value}])
    encoder = Encoder()
    for encode in (encoder.encode_lines, encoder.encode_rows):
        with pytest.raises(
            RecordError, match=r"event 'e1', field 'bad': wanted .* got \w+.*2 such rows in a batch of 3"
        ):
            encode(rows, fields)
    assert list(encoder.faults(rows, fields)) == [1, 2]
    with pytest.raises(RecordError, match="record 1, field 'bad'"):
        encoder.encode_records(rows.values[:2])


def test_a_row_without_a_selected_field_is_a_record_error_and_a_fault() -> None:
    rows = batch([{"x": 1}, {"y": 1}])
    with pytest.raises(RecordError, match="has no field 'x' in every row"):
        Encoder().encode_lines(rows, ["x"])
    assert list(Encoder().faults(rows, ["x"])) == [1]
    assert Encoder().faults(batch(PAYMENTS), None) == {}


def test_an_empty_batch_writes_nothing() -> None:
    for fields in (None, ["x"]):
        assert Encoder().encode_lines(batch([]), fields) == b""
        assert Encoder().encode_rows(batch([]), fields) == []


def test_nested_structs_dates_and_bytes_can_be_written() -> None:
    value = {"p": PAYMENTS[0], "raw": b"\xff", "set": {1}}
    got = msgspec.json.decode(Encoder().encode_lines(batch([value]), None))
    assert got == {"id": "e0", "p": {"tx_id": "t0", "card": "c0", "amount": 1.5, "ts": 0}, "raw": "/w==", "set": [1]}
