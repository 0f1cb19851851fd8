"""Train the fraud model of the payments job and write its bundle: `python -m streamml.jobs.train_fraud FOLDER`.

Needs the `dev` and `onnx` extras. The features are computed here a second time, by a plain loop over the lines, so that
the job and the training check each other.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamml.drift import Profile
from streamml.generate import Payments
from streamml.models import Bundle, open_model

__all__ = ["FEATURES", "dataset", "features", "train"]

FEATURES = ("amount", "n_10m", "sum_10m", "mean_10m", "max_10m", "n_session", "idle_ms")
TRAINING = {"events": 300_000, "seed": 101}
TEST = {"events": 200_000, "seed": 7}

_TILE, _TILES, _GAP, _OUT_OF_ORDERNESS = 10_000, 60, 1_800_000, 5_000
_TOO_FAR = 4_000_000_000_000  # a time after 2096 is a broken clock
_KNEES = np.array([50, 20, 1000, 50, 100, 20, 5000], dtype=np.float32)
_LAYERS = (32, 16)

Matrix = npt.NDArray[np.float32]


def features(lines: Iterable[bytes]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Compute the features of each payment, in order of arrival, as the payments job does.

    A line that can't be used, a repeated `tx_id` and a payment older than the watermark (the largest time so far less
    5 s) are left out. The trailing ten minutes are the tile of ten seconds that the payment falls into and the 59
    before it, with what has arrived so far. A session ends after 30 minutes without a payment; `idle_ms` is the time
    since the latest payment of the session, -1 if there is none, 0 for a payment out of order.

    Yields:
        The `tx_id` and the values of `FEATURES`.

    >>> line = b'{"tx_id": "a", "card_id": "c", "amount": 5.0, "merchant": 1, "country": 1, "ts": 1000}'
    >>> list(features([line, line]))
    [('a', (5.0, 1, 5.0, 5.0, 5.0, 1, -1))]
    """
    seen: set[str] = set()
    tiles: dict[str, dict[int, tuple[int, float, float]]] = {}  # card -> tile -> count, sum, maximum
    sessions: dict[str, tuple[int, int]] = {}  # card -> payments, time of the latest
    watermark = -_OUT_OF_ORDERNESS
    for line in lines:
        try:
            row = json.loads(line)
            tx, card, amount, ts = row["tx_id"], row["card_id"], row["amount"], row["ts"]
        except (ValueError, KeyError):
            continue
        if not isinstance(card, str) or not isinstance(amount, float) or ts >= _TOO_FAR:
            continue
        late = ts < watermark
        watermark = max(watermark, ts - _OUT_OF_ORDERNESS)
        if late or tx in seen:
            continue
        seen.add(tx)
        tile, mine = ts // _TILE, tiles.setdefault(card, {})
        n, total, largest = mine.get(tile, (0, 0.0, amount))
        mine[tile] = (n + 1, total + amount, max(largest, amount))
        for old in [t for t in mine if t < tile - _TILES]:
            del mine[old]  # one tile more than the window is kept, for payments out of order
        window = [found for t, found in mine.items() if tile - _TILES < t <= tile]
        n, total, largest = sum(w[0] for w in window), sum(w[1] for w in window), max(w[2] for w in window)
        count, latest = sessions.get(card, (0, 0))
        count, idle = (count + 1, max(ts - latest, 0)) if count and ts - latest < _GAP else (1, -1)
        sessions[card] = (count, max(ts, latest))
        yield tx, (amount, n, total, total / n, largest, count, idle)


def dataset(stream: Payments) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Return the features of a stream, a row per payment, and its labels."""
    labels = stream.labels()
    ids, rows = zip(*features(stream), strict=True)
    return np.array(rows, dtype=np.float32), np.array([labels[tx_id] for tx_id in ids], dtype=np.int64)


def _squash(rows: Matrix) -> Matrix:
    """Bring each feature into 0 to 1; made of exact operations, which give the same bits in a batch of any size."""
    positive = np.maximum(rows, np.float32(0))
    squashed: Matrix = positive / (positive + _KNEES)
    return squashed


def _fit(rows: Matrix, labels: npt.NDArray[np.int64]) -> tuple[list[Matrix], list[Matrix]]:
    """Train the network; return weights and biases by layer, the scaling folded into the first one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(_squash(rows))
    network = MLPClassifier(_LAYERS, batch_size=512, learning_rate_init=3e-3, max_iter=12, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after 12 passes, as meant
        network.fit(scaler.transform(_squash(rows)), labels)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    return [w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases]


def _graph(weights: list[Matrix], biases: list[Matrix]) -> bytes:
    """Write the network as ONNX: `features` float32[n, 7] to `score` float32[n, 1]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {"zero": np.array(0, np.float32), "knees": _KNEES}
    nodes = [
        helper.make_node("Max", ["features", "zero"], ["positive"]),
        helper.make_node("Add", ["positive", "knees"], ["above"]),
        helper.make_node("Div", ["positive", "above"], ["layer0"]),
    ]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        last = layer == len(weights) - 1
        constants |= {f"weight{layer}": weight, f"bias{layer}": bias}
        nodes += [
            helper.make_node("Gemm", [f"layer{layer}", f"weight{layer}", f"bias{layer}"], [f"sum{layer}"]),
            helper.make_node(
                "Sigmoid" if last else "Relu", [f"sum{layer}"], ["score" if last else f"layer{layer + 1}"]
            ),
        ]
    graph = helper.make_graph(
        nodes,
        "fraud",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, producer_name="streamml", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def train(folder: str | Path) -> Bundle:
    """Train on one stream, measure on another one, and write the bundle into an empty folder."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows, labels = dataset(Payments(**TRAINING))
    test_rows, test_labels = dataset(Payments(**TEST))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "fraud.onnx"
        path.write_bytes(_graph(*_fit(rows, labels)))
        model = open_model(path, FEATURES)

        def score(table: Matrix) -> npt.NDArray[Any]:
            return model.runtime.predict({"features": table})["score"][:, 0]

        test_scores, columns = score(test_rows), dict(zip(FEATURES, rows.T, strict=True))
        metrics = {
            "auc": round(float(roc_auc_score(test_labels, test_scores)), 4),
            "average_precision": round(float(average_precision_score(test_labels, test_scores)), 4),
            "fraud_share": round(float(test_labels.mean()), 4),
        }
        picked = np.concatenate(
            [np.flatnonzero(test_labels == 0)[:4800:100], np.flatnonzero(test_labels == 1)[:1600:100]]
        )
        return Bundle.write(
            folder,
            path,
            name="fraud",
            version=1,
            features=FEATURES,
            golden={"features": test_rows[np.sort(picked)]},
            profile=Profile.fit({**columns, "score": score(rows)}),
            metadata={
                "owner": "streamml",
                "training_data": {"generator": "streamml.generate.Payments", **TRAINING},
                "test_data": {"generator": "streamml.generate.Payments", **TEST},
                "metrics": metrics,
                "code": "streamml.jobs.train_fraud",
                "model": f"multilayer perceptron {len(FEATURES)}-{'-'.join(map(str, _LAYERS))}-1",
            },
        )


if __name__ == "__main__":
    written = train(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "bundles" / "fraud")
    written.verify()
    print(written, json.dumps(written.manifest.metadata["metrics"]))
