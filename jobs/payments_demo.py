"""The demonstration of the payments job (`streamml run payments --demo`): its stream, and how good the scores are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamml.generate import Payments

__all__ = ["auc", "demo_report", "demo_source"]

_SEED = 7
_DRIFT_AT = 0.5
_EVENTS, _TRUTH = "events.jsonl", "truth.jsonl"


def demo_source(folder: Path, events: int) -> str:
    """Write a stream that drifts half-way, and beside it what each payment really is; return its address."""
    encode = msgspec.json.encode
    with (folder / _EVENTS).open("wb") as lines, (folder / _TRUTH).open("wb") as truth:
        for row in Payments(events, _SEED, drift_at=_DRIFT_AT).rows():
            lines.write(row.line + b"\n")
            if row.label is not None and row.kind != "duplicate":
                truth.write(encode({"tx_id": row.tx_id, "fraud": row.label}) + b"\n")
    return f"file:{folder / _EVENTS}"


def demo_report(folder: Path, output: Path) -> dict[str, str]:
    """Compare the scores with the truth."""
    decode = msgspec.json.Decoder().decode_lines
    fraud = {row["tx_id"]: row["fraud"] for row in decode((folder / _TRUTH).read_bytes())}
    scored: list[Any] = decode(output.read_bytes())
    if not scored:
        return {"AUC": "nothing was scored"}
    scores = np.array([row["score"] for row in scored], dtype=np.float64)
    labels = np.array([fraud[row["tx_id"]] for row in scored], dtype=np.int64)
    top = labels[np.argsort(-scores, kind="stable")[: max(1, len(scores) // 100)]]
    share, found = labels.mean(), top.sum() / max(1, labels.sum())
    half = len(scores) // 2  # in order of arrival, so this is where it drifts
    return {
        "AUC": f"{auc(scores, labels):.4f} of the score against what the generator knows, {len(scores):,} payments",
        "before, after drift": f"{auc(scores[:half], labels[:half]):.4f}, {auc(scores[half:], labels[half:]):.4f}",
        "top 1 %": f"{top.mean():.0%} of the highest scores are fraud (of all {share:.1%}): {found:.0%} of all fraud",
    }


def auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve: how often a fraud scores above a non-fraud, ties counted half.

    >>> auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
    0.875
    >>> auc(np.array([0.9]), np.array([1]))
    nan
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))
