from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import islice

import msgspec
import pytest

from streamml.errors import PlanError
from streamml.events import Event
from streamml.generate import Payments, labels, payments, payments_with_truth, workload
from streamml.generate.malformed import MALFORMED, YEAR_2100

FIRST = b'{"tx_id":"c584133ac916ab3c","card_id":"c004392","amount":45.19,"merchant":130,"country":3,"ts":1767225600000}'
VALID = {"payment", "out_of_order", "late", "duplicate"}


class Payment(Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first = list(payments(3000, seed=5))
    assert first == list(payments(3000, seed=5))
    assert not set(first) & set(payments(3000, seed=6))


@pytest.mark.parametrize("size", [1, 7, 500, 8191, 100_000])
def test_lines_do_not_depend_on_the_size_of_blocks(size: int) -> None:
    stream = Payments(9000 if size > 1 else 1500, malformed=0.05)
    assert [line for block in stream._blocks(size) for line in block.lines] == list(stream)


def test_a_shorter_stream_is_the_beginning_of_a_longer_one() -> None:
    assert list(payments(2500)) == list(islice(payments(20_000), 2500))


def test_a_seed_gives_the_bytes_of_the_first_release() -> None:
    """Change this line only on purpose: benchmarks and the trained model rest on the stream."""
    assert next(payments(1, seed=7)) == FIRST


def test_shares_are_as_asked() -> None:
    kinds = Counter(row.kind for row in Payments(100_000, malformed=0.04).rows())
    assert kinds["duplicate"] == pytest.approx(3000, rel=0.1)
    assert kinds["out_of_order"] == pytest.approx(93_000 * 0.10, rel=0.1)
    assert kinds["late"] == pytest.approx(93_000 * 0.01, rel=0.15)
    for kind in MALFORMED:
        assert kinds[kind] == pytest.approx(500, rel=0.2)


def test_every_line_that_is_not_malformed_fits_the_schema() -> None:
    for row in Payments(20_000).rows():
        if row.kind in VALID:
            assert msgspec.json.decode(row.line, type=Payment).tx_id == row.tx_id


def test_malformed_lines_break_the_schema_or_the_time() -> None:
    seen = set()
    for row in Payments(20_000, malformed=0.1).rows():
        if row.kind in VALID:
            continue
        seen.add(row.kind)
        assert row.label is None
        if row.kind in ("year_2100", "huge_integer"):
            assert msgspec.json.decode(row.line, type=Payment).ts >= YEAR_2100
        else:
            with pytest.raises(msgspec.DecodeError):
                msgspec.json.decode(row.line, type=Payment)
    assert seen == set(MALFORMED)


def test_a_huge_integer_has_no_place_in_64_bits() -> None:
    row = next(row for row in Payments(20_000, malformed=0.1).rows() if row.kind == "huge_integer")
    assert json.loads(row.line)["ts"] > 2**64


def test_duplicates_repeat_the_bytes_of_a_recent_payment_and_nothing_else_repeats() -> None:
    position: dict[bytes, int] = {}
    for at, row in enumerate(Payments(30_000, malformed=0.0).rows()):
        if row.kind == "duplicate":
            assert 0 < at - position[row.line] < 1000
        else:
            assert row.line not in position
            position[row.line] = at


def test_delays_stay_below_the_bound_and_late_payments_are_far_behind() -> None:
    newest = 0
    for row in Payments(30_000, malformed=0.0, duplicates=0.0, max_disorder="5s", late_by="10m").rows():
        ts = json.loads(row.line)["ts"]
        if row.kind == "late":
            assert newest - ts > 590_000 or newest == 0
        else:
            assert ts > newest - 5000
        if row.kind == "payment":
            assert ts >= newest
        newest = max(newest, ts)


def test_rate_and_start_set_the_times() -> None:
    rows = [json.loads(line) for line in payments(1000, rate=50.0, start_ms=0, malformed=0, out_of_order=0, late=0)]
    assert 0 <= rows[0]["ts"] < 20
    assert rows[-1]["ts"] == pytest.approx(20_000, abs=60)


def test_popular_cards_pay_more_by_zipfs_law() -> None:
    counts = Counter(json.loads(line)["card_id"] for line in payments(40_000, cards=100, fraud=0.0, malformed=0.0))
    ranked = [n for _, n in counts.most_common()]
    assert ranked[0] / ranked[9] == pytest.approx(10**1.1, rel=0.15)


def test_a_card_has_its_own_amounts_and_merchants() -> None:
    amounts, merchants = defaultdict(list), defaultdict(set)
    for line in payments(20_000, cards=50, fraud=0.0, malformed=0.0):
        row = json.loads(line)
        amounts[row["card_id"]].append(row["amount"])
        merchants[row["card_id"]].add(row["merchant"])
    assert max(map(len, merchants.values())) <= 5
    medians = sorted(sorted(values)[len(values) // 2] for values in amounts.values())
    assert medians[-1] > 4 * medians[0]


def test_some_lines_have_fields_that_the_schema_does_not_know() -> None:
    extra = Counter(len(json.loads(line)) for line in payments(2000, malformed=0.0))
    assert set(extra) == {6, 8} and 700 < extra[8] < 1300


def test_labels_are_those_of_the_rows_and_cover_every_payment() -> None:
    truth = labels(20_000)
    for line, label in payments_with_truth(20_000):
        if label is None:
            continue
        assert truth.pop(json.loads(line)["tx_id"], label) == label
    assert truth == {}


def test_fraud_is_as_frequent_as_asked() -> None:
    assert sum(labels(50_000, fraud=0.05).values()) == pytest.approx(48_000 * 0.05, rel=0.1)
    assert sum(labels(50_000, fraud=0.0).values()) == 0


def test_fraud_comes_in_bursts_on_one_card_or_in_amounts_far_above_the_cards_own() -> None:
    usual: dict[str, list[float]] = defaultdict(list)
    fraud: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in Payments(60_000, cards=2000, malformed=0.0, duplicates=0.0, late=0.0).rows():
        event = json.loads(row.line)
        if row.label:
            fraud[event["card_id"]].append((event["ts"], event["amount"]))
        else:
            usual[event["card_id"]].append(event["amount"])
    spans = [max(ts for ts, _ in seen) - min(ts for ts, _ in seen) for seen in fraud.values() if len(seen) >= 6]
    assert len(spans) >= 50 and sorted(spans)[len(spans) // 2] < 60_000
    ratios = [a / (sum(usual[c]) / len(usual[c])) for c, seen in fraud.items() if usual[c] for _, a in seen]
    assert sum(ratio > 5 for ratio in ratios) > 0.25 * len(ratios)
    assert sum(ratio > 1.2 for ratio in ratios) > 0.7 * len(ratios)


def test_drift_scales_amounts_and_shifts_countries_from_its_point_on_only() -> None:
    options = {"fraud": 0.0, "malformed": 0.0, "duplicates": 0.0}
    steady = [json.loads(line) for line in payments(20_000, **options)]
    drifted = [json.loads(line) for line in payments(20_000, drift_at=0.5, **options)]
    assert drifted[:10_000] == steady[:10_000]
    later = list(zip(steady[10_000:], drifted[10_000:], strict=True))
    assert all(b["amount"] == pytest.approx(1.6 * a["amount"], abs=0.02) for a, b in later)
    assert 0.15 < sum(a["country"] != b["country"] for a, b in later) / len(later) < 0.3


def test_workload_w_is_as_published() -> None:
    stream = workload()
    assert (stream.events, stream.cards, stream.zipf, stream.malformed) == (500_000, 20_000, 1.1, 0.0)
    assert set(Counter(row.kind for row in workload(5000).rows())) == VALID


def test_a_stream_of_malformed_lines_and_duplicates_only_still_starts_with_a_payment() -> None:
    kinds = [row.kind for row in Payments(500, duplicates=0.5, malformed=0.5).rows()]
    assert kinds[0] in VALID - {"duplicate"}
    assert "duplicate" in kinds


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fraud": 1.5}, "payments: fraud: wanted a share between 0 and 1, got 1.5"),
        ({"duplicates": 0.7, "malformed": 0.7}, "payments: wanted duplicates + malformed"),
        ({"cards": 0}, "cards of at least 1"),
        ({"seed": -1}, "events and seed of at least 0"),
    ],
)
def test_options_that_make_no_stream_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(PlanError, match=re.escape(text)):
        Payments(10, **options)


def test_a_duration_without_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_disorder"):
        Payments(10, max_disorder="soon")
