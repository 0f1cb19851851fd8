"""`DriftMonitor` against a plain count of the same stream, cut everywhere, restored everywhere."""

import math
import re
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.contract import KeyedOperator, Opening
from streamml.drift import Profile, Verdict, compare
from streamml.errors import ModelError, PlanError, StreamMLError
from streamml.models import Bundle
from streamml.observability import Metrics
from streamml.operators import DriftMonitor
from streamml.operators.drift_monitor import MAX_OPEN_WINDOWS
from streamml.operators.drift_windows import Tally, Windows
from streamml.records import Batch, Record
from streamml.runtime import StageRuntime
from streamml.state import ObjectState
from streamml.state.memory import MemoryStore
from streamml.times import MAX_TIME, MIN_TIME

RNG = np.random.default_rng(7)
REFERENCE = Profile.fit(
    {
        "amount": RNG.lognormal(3.0, 1.0, 20_000),
        "country": [("de", "fr", "pl", "us")[i] for i in RNG.integers(0, 4, 20_000)],
        "n": RNG.integers(0, 5, 20_000),
    }
)
FEATURES = ["amount", "country", "n"]

Row = tuple[dict[str, Any], int, int, Any]  # value, time, watermark in force before it, key


class LoopMonitor(DriftMonitor):
    """The same without its batch form."""

    on_batch = KeyedOperator.on_batch


def stream(seed: int = 1, rows: int = 1200, disorder: int = 400, drift_from: int | None = 20_000) -> list[Row]:
    """30 s of events; some come late, some values are missing or strange; from `drift_from` on amounts double."""
    rng = np.random.default_rng(seed)
    made: list[Row] = []
    watermark, newest = MIN_TIME, MIN_TIME
    for i in range(rows):
        time = int(i * 30_000 / rows) - int(rng.integers(0, disorder))
        if i % 50 == 49:
            time -= 7_000
        amount: Any = float(rng.lognormal(3.0, 1.0)) * (2 if drift_from is not None and time >= drift_from else 1)
        value: dict[str, Any] = {"amount": amount, "n": int(rng.integers(0, 5))}
        value["country"] = ("de", "fr", "pl", "us")[int(rng.integers(0, 4))]
        if i % 97 == 0:
            value["amount"] = (None, "text", math.nan, 10**400, Decimal("3.5"), True)[i // 97 % 6]
            value["country"] = (None, 7, True, math.nan, "xx", ["de"])[i // 97 % 6]
        if i % 131 == 0:
            del value["n"]
        made.append((value, time, watermark, f"card-{rng.integers(0, 40)}"))
        newest = max(newest, time)
        watermark = max(watermark, newest - disorder)
    return made


def batch(rows: list[Row], watermark: int, first: int = 0) -> Batch:
    return Batch(
        [row[0] for row in rows],
        times=[row[1] for row in rows],
        ids=[f"e{first + i}" for i in range(len(rows))],
        watermarks=[row[2] for row in rows],
        watermark=watermark,
        keys=[row[3] for row in rows],
    )


def play(
    rows: list[Row], size: int, monitor: DriftMonitor, *, restore_at: int | None = None, end: int = MAX_TIME
) -> tuple[list[str], list[dict[str, Any]], dict[bytes, bytes], dict[str, Any]]:
    """Run a stream in micro-batches of a size; return emitted ids, drift records, the stored rows and the metrics."""
    store, metrics = MemoryStore(), Metrics(clock=lambda: 0.0)
    opening = Opening(pipeline="p", metrics=metrics)
    stage = StageRuntime([monitor], store, opening=opening)
    emitted: list[str] = []
    drift: list[dict[str, Any]] = []
    for first in range(0, len(rows), size):
        stop = min(first + size, len(rows))
        if restore_at is not None and first <= restore_at < stop:
            stage.flush(0)
            stage = StageRuntime([monitor], store, memory=stage.snapshot(), opening=opening)
        after = rows[stop][2] if stop < len(rows) else end
        out = stage.process(batch(rows[first:stop], after, first), now=0)
        assert set(out.sides) <= {"drift"}
        emitted += out.main.ids
        drift += out.sides.get("drift", [])
    stage.flush(0)
    figures = {name: value for name, value in metrics.snapshot().items() if name != "elapsed_seconds"}
    return emitted, drift, dict(store.scan(b"", b"\xff" * 32)), figures


def monitor(cls: type[DriftMonitor] = DriftMonitor, **options: Any) -> DriftMonitor:
    return cls(**{"reference": REFERENCE, "features": FEATURES, "every": "5s", "name": "watch", **options})


def number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf


def expected_alarms(rows: list[Row], every: int, rate: float) -> list[tuple[str, int, list[int]]]:
    """Count in the plainest way: one value at a time into dicts; judge all windows at the end."""
    counts: dict[int, dict[str, list[int]]] = defaultdict(
        lambda: {feature: [0] * len(REFERENCE[feature].counts) for feature in FEATURES}
    )
    for value, time, watermark, _ in rows:
        start = time // every * every
        if start + every <= watermark:
            continue
        for feature in FEATURES:
            found = value.get(feature)
            if feature != "country":
                found = number(found)
            elif found is not None and found == found:
                found = str(found)
            counts[start][feature][REFERENCE.bin_index(feature, found)] += 1
    return [
        (feature, start, counts[start][feature])
        for start in sorted(counts)
        for feature in FEATURES
        if compare(REFERENCE, feature, counts[start][feature], rate, len(FEATURES)).verdict is Verdict.DRIFT
    ]


@pytest.mark.parametrize("cls", [DriftMonitor, LoopMonitor])
def test_alarms_are_those_of_a_plain_count(cls: type[DriftMonitor]) -> None:
    rows = stream()
    emitted, drift, _, _ = play(rows, 100, monitor(cls))
    assert emitted == [f"e{i}" for i in range(len(rows))]
    found = [(d["feature"], d["window_start"], d["counts"]) for d in drift]
    assert found == expected_alarms(rows, 5_000, 0.01)
    assert {(feature, start) for feature, start, _ in found} >= {("amount", 20_000), ("amount", 25_000)}


def test_an_event_is_passed_on_unchanged() -> None:
    value = {"amount": 3.0, "country": "de", "n": 1, "other": object()}
    stage = StageRuntime([monitor()], MemoryStore())
    (record,) = stage.process(batch([(value, 1, MIN_TIME, "k")], 0), now=0).main.records()
    assert record.value is value
    assert (record.key, record.timestamp, record.id, record.fields) == ("k", 1, "e0", {})


@pytest.mark.parametrize("cls", [DriftMonitor, LoopMonitor])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 333, 5000])
def test_nothing_depends_on_the_batch_size(cls: type[DriftMonitor], size: int) -> None:
    for end in (12_345, MAX_TIME):
        rows = [row for row in stream() if row[2] <= end]
        assert play(rows, size, monitor(cls), end=end) == play(rows, 100, monitor(), end=end)


@pytest.mark.parametrize("cls", [DriftMonitor, LoopMonitor])
def test_a_restart_at_any_cut_changes_nothing(cls: type[DriftMonitor]) -> None:
    rows = stream(rows=600)
    unbroken = play(rows, 40, monitor(cls))
    assert unbroken[1], "the stream must alarm, or this compares nothing"
    for cut in range(0, len(rows), 40):
        assert play(rows, 40, monitor(cls), restore_at=cut) == unbroken


def test_an_alarm_says_what_moved() -> None:
    rows = stream()
    _, drift, _, _ = play(rows, 100, monitor())
    alarm = next(d for d in drift if d["window_start"] == 20_000)
    assert alarm["id"] == "p/watch/amount/20000"
    assert (alarm["window_end"], alarm["timestamp"], alarm["key"]) == (25_000, 25_000, None)
    assert (alarm["operator"], alarm["feature"], alarm["verdict"]) == ("watch", "amount", "drift")
    assert (alarm["n"], alarm["n_reference"]) == (sum(alarm["counts"]), 20_000)
    assert (alarm["false_alarm_rate"], alarm["design_effect"]) == (0.01, 1.0)
    assert alarm["psi"] > alarm["threshold"] > 0
    assert len(alarm["bins"]) == len(alarm["counts"]) == len(alarm["expected"]) == 11
    assert sum(alarm["expected"]) == pytest.approx(1.0)
    assert alarm["counts"][9] / alarm["n"] > 2 * alarm["expected"][9], "amounts doubled: the top bin has grown"
    assert alarm["bins"][0].startswith("up to ") and alarm["bins"][-1] == "missing"
    again = compare(REFERENCE, "amount", alarm["counts"], 0.01, comparisons=3)
    assert (alarm["psi"], alarm["threshold"]) == (again.psi, again.threshold)


def undrifted(seed: int, windows: int, n: int, repeats: int = 1) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for window in range(windows):
        columns = [
            np.repeat(rng.lognormal(3.0, 1.0, n // repeats), repeats).tolist(),
            np.repeat(rng.integers(0, 4, n // repeats), repeats).tolist(),
            np.repeat(rng.integers(0, 5, n // repeats), repeats).tolist(),
        ]
        for i, (amount, country, count) in enumerate(zip(*columns, strict=True)):
            value = {"amount": amount, "country": ("de", "fr", "pl", "us")[country], "n": count}
            time = window * 5_000 + i
            rows.append((value, time, time - 1, i // repeats))
    return rows


def alarmed(rows: list[Row], **options: Any) -> int:
    _, drift, _, _ = play(rows, 4096, monitor(**options))
    return len({d["window_start"] for d in drift})


def test_windows_without_drift_alarm_at_about_the_stated_rate() -> None:
    windows = 400
    found = alarmed(undrifted(3, windows, 200), false_alarm_rate=0.05)
    # 20 are due; beyond 3.5 standard deviations of a binomial is no luck. Bonferroni and rounding may cost some.
    assert 5 <= found <= 20 + 3.5 * math.sqrt(windows * 0.05 * 0.95)


def test_values_that_hang_together_need_the_design_effect() -> None:
    rows = undrifted(4, 150, 500, repeats=5)
    assert alarmed(rows) > 75
    assert alarmed(rows, design_effect=5.0) <= 6


def test_the_design_effect_still_finds_drift() -> None:
    _, drift, _, _ = play(stream(rows=6000), 1000, monitor(design_effect=5.0))
    assert {d["window_start"] for d in drift if d["feature"] == "amount"} == {20_000, 25_000}


def test_no_verdict_below_min_events() -> None:
    rows = stream()
    _, drift, _, figures = play(rows, 100, monitor(min_events=1000))
    assert drift == []
    checks = figures['streamml_drift_checks_total{feature="amount",operator="watch"}']
    assert checks > 5
    assert figures['streamml_drift_too_few_total{feature="amount",operator="watch"}'] == checks


def test_metrics_show_the_windows_that_did_not_alarm() -> None:
    _, drift, _, figures = play(stream(drift_from=None), 100, monitor(false_alarm_rate=1e-9))
    assert drift == []
    for feature in FEATURES:
        labels = f'{{feature="{feature}",operator="watch"}}'
        assert figures["streamml_drift_checks_total" + labels] >= 6
        assert 0 < figures["streamml_drift_psi_ratio" + labels] < 1


@pytest.mark.parametrize("cls", [DriftMonitor, LoopMonitor])
def test_events_of_judged_windows_are_passed_on_and_not_counted(cls: type[DriftMonitor]) -> None:
    value = {"amount": 1.0, "country": "de", "n": 1}
    rows: list[Row] = [(value, 100, MIN_TIME, "a"), (value, 4_999, 5_000, "b"), (value, 5_000, 5_001, "c")]
    emitted, _, _, figures = play(rows, 3, monitor(cls))
    assert emitted == ["e0", "e1", "e2"]
    assert figures['streamml_drift_uncounted_total{operator="watch",reason="late"}'] == 1
    assert figures['streamml_drift_checks_total{feature="n",operator="watch"}'] == 2


def test_an_event_behind_the_watermark_counts_while_its_window_is_open() -> None:
    rows = [({"amount": 1.0, "country": "de", "n": 1}, 100, 4_999, "a")] * 60
    _, drift, _, figures = play(rows, 7, monitor())
    assert {d["n"] for d in drift} == {60}
    assert figures['streamml_drift_uncounted_total{operator="watch",reason="late"}'] == 0


@pytest.mark.parametrize("cls", [DriftMonitor, LoopMonitor])
@pytest.mark.parametrize("size", [1, 1000, 10_000])
def test_open_windows_are_bounded(cls: type[DriftMonitor], size: int) -> None:
    value = {"amount": 1.0, "country": "de", "n": 1}
    times = [5_000 * i for i in range(MAX_OPEN_WINDOWS + 30)]
    rows: list[Row] = [(value, time, MIN_TIME, "k") for time in [*times, 0, times[-1]]]
    emitted, _, _, figures = play(rows, size, monitor(cls))
    assert len(emitted) == len(rows)
    assert figures['streamml_drift_uncounted_total{operator="watch",reason="too_many_windows"}'] == 31
    assert figures['streamml_drift_checks_total{feature="n",operator="watch"}'] == MAX_OPEN_WINDOWS


def test_windows_that_close_within_a_batch_make_room() -> None:
    value = {"amount": 1.0, "country": "de", "n": 1}
    rows: list[Row] = [(value, 5_000 * i, 5_000 * (i - 1), "k") for i in range(2 * MAX_OPEN_WINDOWS)]
    assert play(rows, len(rows), monitor())[3] == play(rows, 1, monitor())[3]
    figures = play(rows, len(rows), monitor())[3]
    assert figures['streamml_drift_uncounted_total{operator="watch",reason="too_many_windows"}'] == 0


def test_equal_counts_are_stored_alike() -> None:
    one, two = np.array([1]), np.array([2])
    assert Windows("x", {5: [one], 0: [two]}).to_wire() == Windows("x", {0: [two], 5: [one]}).to_wire()


def test_state_does_not_grow_with_events_or_keys_and_is_gone_at_the_end() -> None:
    def stored(n: int, end: int) -> int:
        value = {"amount": 1.0, "country": "de", "n": 1}
        rows: list[Row] = [(value, i % 5_000, MIN_TIME, f"card-{i}") for i in range(n)]
        return sum(len(key) + len(row) for key, row in play(rows, 500, monitor(), end=end)[2].items())

    assert 0 < stored(100, 0) < 500
    assert stored(10_000, 0) < stored(100, 0) + 50
    assert stored(10_000, MAX_TIME) == 0


def test_another_reference_after_a_restart_starts_the_open_windows_again() -> None:
    store, metrics = MemoryStore(), Metrics(clock=lambda: 0.0)
    rows: list[Row] = [({"amount": 1.0, "country": "de", "n": 1}, 100, MIN_TIME, "k")] * 60
    stage = StageRuntime([monitor()], store)
    stage.process(batch(rows, 0), now=0)
    stage.flush(0)
    other = Profile.fit({"amount": np.arange(1000.0), "n": np.arange(1000.0)}, bins=4)
    changed = monitor(reference=other, features=["amount", "n"])
    stage = StageRuntime([changed], store, memory=stage.snapshot(), opening=Opening(metrics=metrics))
    out = stage.process(batch([({"amount": 1.0, "n": 1}, 200, 0, "k")] * 70, MAX_TIME), now=0)
    assert [(d["feature"], d["counts"]) for d in out.sides["drift"]] == [
        ("amount", [70, 0, 0, 0, 0]),
        ("n", [70, 0, 0, 0, 0]),
    ]
    assert metrics.counter("streamml_drift_uncounted_total", operator="watch", reason="reference_changed").value == 60


ODD: list[Any] = [
    *(None, math.nan, "", "de", "5", "nan", "abc", True, False, 0, 1, 2.5, -math.inf, math.inf, 10**400, -(10**400)),
    *(2**63, 2**64, -(2**63), np.float32(2.0), np.int64(3), np.float64("nan"), np.bool_(True), Decimal("2"), b"2"),
    *([1, 2], {"a": 1}, np.arange(3), np.array(2.0), (1,), object, 1j, Decimal("NaN")),
]


@pytest.mark.parametrize("feature", FEATURES)
def test_any_value_can_be_counted_and_columns_agree_with_single_values(feature: str) -> None:
    tally = Tally(REFERENCE[feature])
    rng = np.random.default_rng(5)
    columns = [[value, other] for value in ODD for other in (1.0, 1, "de", None, True)]
    columns += [[ODD[i] for i in rng.integers(0, len(ODD), 20)] for _ in range(50)]
    for column in columns:
        counts = tally.many(column)
        assert counts.tolist() == sum(tally.one(value) for value in column).tolist()  # type: ignore[union-attr]
        assert counts.sum() == len(column)


def test_what_is_no_number_counts_as_missing() -> None:
    tally = Tally(REFERENCE["amount"])
    assert tally.many([None, math.nan, "abc", [1], 1.0, 10**400]).tolist() == [1, *[0] * 8, 1, 4]


def test_a_field_that_some_events_lack_counts_as_missing() -> None:
    rows: list[Row] = [({"amount": 1.0, "country": "de"}, i, MIN_TIME, "k") for i in range(60)]
    rows[::2] = [({"amount": 1.0, "country": "de", "n": 2}, *row[1:]) for row in rows[::2]]
    _, drift, _, _ = play(rows, 60, monitor())
    assert [(d["counts"][2], d["counts"][-1]) for d in drift if d["feature"] == "n"] == [(30, 30)]


# --- where the reference comes from -----------------------------------------------------------------------------------


def write_bundle(folder: Path, version: int, profile: bool) -> None:
    """A bundle as far as a monitor reads one; `Bundle.write` would need a model."""
    from streamml.models.manifest import BUNDLE_FORMAT, Manifest, write_manifest

    folder.mkdir(parents=True)
    files = {}
    if profile:
        (folder / "profile.json").write_bytes(REFERENCE.to_json())
        files["profile.json"] = "0" * 64
    blank = {"inputs": (), "outputs": (), "tolerance": 0.0, "metadata": {}}
    write_manifest(
        folder, Manifest(format=BUNDLE_FORMAT, name="fraud", version=version, model="m.onnx", files=files, **blank)
    )
    assert Bundle.load(folder).manifest.version == version


def opened(reference: Any, models: tuple[str, ...] = (), **options: Any) -> list[dict[str, Any]]:
    stage = StageRuntime([monitor(reference=reference, **options)], MemoryStore(), opening=Opening("p", models=models))
    rows: list[Row] = [({"amount": 1.0, "country": "de", "n": 1}, 100, MIN_TIME, "k")] * 60
    return stage.process(batch(rows, MAX_TIME), now=0).sides["drift"]


def test_the_reference_is_a_bundle_a_file_or_a_profile(tmp_path: Path) -> None:
    write_bundle(tmp_path / "fraud" / "3", 3, profile=True)
    path = tmp_path / "profile.json"
    path.write_bytes(REFERENCE.to_json())
    by_name = opened("fraud@prod", (str(tmp_path),))
    assert {d["reference"] for d in by_name} == {"fraud:3"}
    by_folder = opened(tmp_path / "fraud" / "3")
    by_file = [opened(path), opened(str(path))]
    by_object = opened(REFERENCE)
    for others in (by_folder, *by_file, by_object):
        assert [{**d, "reference": ""} for d in others] == [{**d, "reference": ""} for d in by_name]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda d: opened("frod", (str(d),)), ModelError, "Did you mean 'fraud'?"),
        (lambda d: opened("fraud@prod", (str(d),)), ModelError, "has no drift profile, it has: bundle.json"),
        (lambda d: opened(d / "model.onnx"), ModelError, "has no drift profile, it has: a bare model file"),
        (lambda d: opened(d / "none.json"), PlanError, "none.json' can't be read"),
        (lambda d: opened(d / "bad.json"), PlanError, "wanted JSON written by Profile.to_json"),
        (lambda d: opened(REFERENCE, features=["amuont"]), PlanError, "no feature 'amuont'. Did you mean 'amount'?"),
        (
            lambda d: opened(Profile.fit({"amount": [1.0] * 49}), features=["amount"]),
            PlanError,
            "'amount' has 49 values, and with fewer than 50 there is never a verdict",
        ),
    ],
)
def test_a_reference_that_is_not_there_is_refused_when_the_stage_opens(
    make: Any, error: type[StreamMLError], said: str, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "fraud" / "1", 1, profile=False)
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(error, match=re.escape(said)):
        make(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": None}, "wanted a bundle such as 'fraud@prod', a profile.json or a Profile, got None"),
        ({"features": "amount"}, "wanted a list of different fields such as ['amount', 'score'], got 'amount'"),
        ({"features": []}, "wanted a list of different fields"),
        ({"features": ["n", "n"]}, "wanted a list of different fields"),
        ({"every": 0}, "wanted a duration of at least 1ms"),
        ({"false_alarm_rate": 1.0}, "wanted a false_alarm_rate between 0 and 1"),
        ({"min_events": 49}, "min_events of at least 50"),
        ({"design_effect": 0.5}, "a design_effect of at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        monitor(**options)


# --- the contract: state of a stage -----------------------------------------------------------------------------------


class _Counter(KeyedOperator):
    """Counts the stage's events; its batch form fails half way."""

    total = ObjectState(new=lambda op: list, signature=lambda op: "list", scope="stage")

    def on_event(self, event: Record, ctx: Any) -> None:
        if event.value == "bad":
            raise ValueError("bad")
        self.total.get().append(event.id)
        ctx.emit(event.with_fields(n=len(self.total.get())))

    def on_batch(self, batch: Batch, ctx: Any) -> Batch:
        self.total.get().extend(batch.ids)
        if "bad" in batch.values:
            raise ValueError("bad")
        first = len(self.total.get()) - len(batch) + 1
        return batch.with_fields({"n": list(range(first, first + len(batch)))})


def test_what_a_failed_batch_form_did_to_the_state_of_the_stage_is_taken_back() -> None:
    stage = StageRuntime([_Counter()], MemoryStore())
    rows = [("a", 1, 0, "k"), ("bad", 1, 0, "l"), ("c", 1, 0, "m")]
    out = stage.process(batch(rows, 0), now=0)  # type: ignore[arg-type]
    assert out.main.fields["n"] == [1, 2]
    assert [r["id"] for r in out.sides["rejected"]] == ["e1"]
