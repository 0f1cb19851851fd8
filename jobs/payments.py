"""Score card payments for fraud.

Without duplicates, with what the card did in the last minutes and in its session, and with drift watched.
"""

from __future__ import annotations

import streamml as sml
from streamml.operators import (
    Dedupe,
    DriftMonitor,
    Features,
    Infer,
    Session,
    count,
    maximum,
    mean,
    since_last,
    total,
    trailing,
)

__all__ = ["Payment", "pipeline"]


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    """One payment."""

    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int  # milliseconds since the epoch


INPUTS = ["amount", "n_10m", "sum_10m", "mean_10m", "max_10m", "n_session", "idle_ms"]


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    """Build the job. Parameters: `model` (default `fraud@prod`), `drift_every` (default `1m`)."""
    model = cfg.param("model", "fraud@prod")
    last_10m = {"n_10m": count(), "sum_10m": total("amount"), "mean_10m": mean("amount"), "max_10m": maximum("amount")}
    session = {"n_session": count(), "idle_ms": since_last()}
    return (
        sml.Pipeline("payments", schema=Payment, out_of_orderness="5s", idleness="30s")
        .key_by("card_id")
        .then(Dedupe(ttl="1h"))
        .then(Features(window=trailing("10m", tile="10s"), fields=last_10m))
        .then(Session(gap="30m", fields=session))
        .then(Infer(model, inputs=INPUTS, outputs={"score": 0}))
        # Amounts only: counts of a window and scores that rest on them follow the traffic, which is no drift.
        .then(DriftMonitor(reference=model, features=["amount"], every=cfg.param("drift_every", "1m")))
        .select("tx_id", "card_id", "score", "model_version")
    )
