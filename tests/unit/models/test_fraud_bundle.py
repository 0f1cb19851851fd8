"""The committed fraud model: what it is, how good it is, and that batches do not change it."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.drift import Verdict, compare
from streamml.generate import Payments
from streamml.jobs.train_fraud import FEATURES, dataset, features, train
from streamml.models import Bundle, LoadedModel, open_model
from streamml.operators import Dedupe, Features, Session, count, maximum, mean, since_last, total, trailing
from streamml.testing import advance, event, run


@pytest.fixture(scope="module")
def folder() -> Path:
    with as_file(files("streamml.jobs") / "bundles" / "fraud") as path:
        return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return open_model(folder)


@pytest.fixture(scope="module")
def demo() -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a stream of 40,000 events that the model was not trained on."""
    return dataset(Payments(40_000, seed=7))


def test_the_committed_bundle_is_whole_and_small(folder: Path) -> None:
    bundle = Bundle.load(folder)
    bundle.verify()
    assert (bundle.manifest.name, bundle.manifest.version, bundle.manifest.features) == ("fraud", 1, FEATURES)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000


def test_its_profile_knows_every_feature_and_the_score(model: LoadedModel) -> None:
    assert model.profile is not None
    assert model.profile.features == (*FEATURES, "score")


def test_scores_are_probabilities_that_tell_fraud_from_the_rest(
    model: LoadedModel, demo: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, labels = demo
    scores = np.array(model.score([column.tolist() for column in rows.T], len(rows))["score"])
    assert scores.min() >= 0 and scores.max() <= 1
    # The area under the ROC curve is the chance that a fraud is ranked above another payment.
    ranks = np.argsort(np.argsort(scores)) + 1
    fraud = int(labels.sum())
    area = (ranks[labels == 1].sum() - fraud * (fraud + 1) / 2) / (fraud * (len(labels) - fraud))
    assert area > 0.95


def test_a_score_has_the_same_bits_in_a_batch_of_any_size(
    model: LoadedModel, demo: tuple[np.ndarray, np.ndarray]
) -> None:
    rows = demo[0][:2048]
    whole = model.runtime.predict({"features": rows})["score"]
    for size in range(1, 1025):
        start = size * 7 % 1000
        part = model.runtime.predict({"features": rows[start : start + size]})["score"]
        assert part.tobytes() == whole[start : start + size].tobytes(), f"batch of {size}"
    singles = [model.runtime.predict({"features": row[None]})["score"].tobytes() for row in rows]
    assert b"".join(singles) == whole.tobytes()


def test_amounts_of_another_seed_are_no_drift_and_those_after_a_drift_are(
    model: LoadedModel, demo: tuple[np.ndarray, np.ndarray]
) -> None:
    profile = model.profile
    assert profile is not None
    drifted, _ = dataset(Payments(10_000, seed=7, drift_at=0.0))
    verdicts = [
        compare(profile, "amount", profile.bin_counts("amount", rows[:, 0]), false_alarm_rate=0.001).verdict
        for rows in (demo[0], drifted)
    ]
    assert verdicts == [Verdict.STABLE, Verdict.DRIFT]


def test_features_are_those_of_a_search_through_all_earlier_payments() -> None:
    """The oracle keeps every payment and looks back through the list; no tiles, no sessions."""
    lines = list(Payments(1500, cards=80, rate=0.3, seed=3, malformed=0.02, late_by="20m"))
    found = dict(features(lines))
    kept: list[tuple[str, str, float, int]] = []
    newest, starts = -(10**15), 0
    for line in lines:
        try:
            row = json.loads(line)
            tx, card, amount, ts = row["tx_id"], row["card_id"], float(row["amount"]), int(row["ts"])
        except (ValueError, KeyError, TypeError):
            continue
        if card is None or ts > 4_000_000_000_000:
            continue
        late, newest = ts < newest - 5000, max(newest, ts)
        if late or tx in {k[0] for k in kept}:
            continue
        kept.append((tx, card, amount, ts))
        mine = [(a, t) for _, c, a, t in kept if c == card]
        end = ts // 10_000 * 10_000 + 10_000
        window = [a for a, t in mine if end - 600_000 <= t < end]
        times = [t for _, t in mine]
        first = len(times) - 1
        while first > 0 and times[first] - max(times[:first]) < 1_800_000:
            first -= 1
        session = times[first:]
        idle = max(session[-1] - max(session[:-1]), 0) if len(session) > 1 else -1
        expected = (amount, len(window), sum(window), sum(window) / len(window), max(window), len(session), idle)
        starts += idle == -1
        assert found.pop(tx) == pytest.approx(expected), tx
    assert found == {}
    assert len(kept) > 1000
    assert starts > len({card for _, card, _, _ in kept}), "no session ended in this stream"


def test_features_are_those_that_the_operators_of_the_job_compute() -> None:
    lines = list(Payments(2500, cards=100, rate=0.5, seed=3, malformed=0.0, late_by="20m"))
    script: list[Any] = []
    watermark = None
    for line in lines:
        row = json.loads(line)
        card, ts = row.pop("card_id"), row.pop("ts")
        script.append(event(card, t=ts, id=row["tx_id"], **row))
        if watermark is None or ts - 5000 > watermark:
            watermark = ts - 5000
            script.append(advance(watermark))
    last_10m = {"n_10m": count(), "sum_10m": total("amount"), "mean_10m": mean("amount"), "max_10m": maximum("amount")}
    operators = [
        Dedupe(ttl="1h"),
        Features(window=trailing("10m", tile="10s"), fields=last_10m),
        Session(gap="30m", fields={"n_session": count(), "idle_ms": since_last()}),
    ]
    found = {row.tx_id: [row[name] for name in FEATURES] for row in run(operators, script, engine="local").main}
    trained_on = dict(features(lines))
    assert found.keys() == trained_on.keys()
    for tx_id, values in trained_on.items():
        assert found[tx_id] == pytest.approx(values), tx_id


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_again_gives_a_model_as_good(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    again, committed = train(tmp_path / "fraud").manifest, Bundle.load(folder).manifest
    for metric, value in committed.metadata["metrics"].items():
        assert again.metadata["metrics"][metric] == pytest.approx(value, abs=0.01)
