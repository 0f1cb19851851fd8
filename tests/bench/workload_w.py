"""Workload W: the payments pipeline with a tumbling window, as a job of the library and as one hand-written loop.

`python tests/bench/workload_w.py engine|floor INPUT MODEL FOLDER` runs one of them and prints as JSON what an event
cost in microseconds of CPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import streamml as sml
from streamml.operators import Dedupe, Features, Infer, Session, count, maximum, mean, since_last, total, tumbling

WINDOW, GAP, TTL, BOUND = 600_000, 1_800_000, 3_600_000, 5_000
INPUTS = ["amount", "n_10m", "sum_10m", "mean_10m", "max_10m", "n_session", "idle_ms"]
PADDING = 16 - len(INPUTS)


class Payment(sml.Event, id="tx_id", key="card_id", time="ts"):
    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int


def pipeline(model: str) -> sml.Pipeline:
    """W as a job."""
    last_10m = {"n_10m": count(), "sum_10m": total("amount"), "mean_10m": mean("amount"), "max_10m": maximum("amount")}
    return (
        sml.Pipeline("w", schema=Payment, out_of_orderness="5s", idleness="30s")
        .key_by("card_id")
        .then(Dedupe(ttl="1h"))
        .then(Features(window=tumbling("10m"), fields=last_10m))
        .then(Session(gap="30m", fields={"n_session": count(), "idle_ms": since_last()}))
        .then(Infer(model, inputs=[*INPUTS, *[0.0] * PADDING], outputs={"score": 0}, name="mlp"))
        .select("tx_id", "card_id", "score", "model_version")
    )


def engine(source: Path, model: Path, folder: Path, batch_size: int = 1024) -> dict[str, float]:
    """Run W on the embedded engine: checkpoints every 5 s on RocksDB, output committed with them."""
    from streamml.connectors.uris import open_sink, open_source
    from streamml.local import LocalEngine, LocalOptions

    job = pipeline(str(model))
    job_sides = {side: open_sink(f"file:{folder}/out.{side}.jsonl") for side in job.sides}
    options = LocalOptions(state_dir=folder / "state", checkpoint_interval="5s", batch_size=batch_size)
    run = LocalEngine(
        job, {"w": open_source(f"file:{source}")}, open_sink(f"file:{folder}/out.jsonl"), job_sides, options=options
    )
    started = time.process_time()
    result = run.run()
    seconds = time.process_time() - started
    return {
        "events": result.figures.events_in,
        "out": result.figures.events_out,
        "us": seconds / result.figures.events_in * 1e6,
    }


def floor(source: Path, model: Path, folder: Path) -> dict[str, float]:
    """W as one loop in plain Python: no engine, no checkpoints, nothing survives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    started = time.process_time()
    decode = msgspec.json.Decoder(Payment).decode
    encode = msgspec.json.Encoder().encode
    seen: dict[str, int] = {}
    windows: dict[tuple[str, int], list[float]] = {}
    sessions: dict[str, list[Any]] = {}
    newest, events, out = 0, 0, 0
    waiting: list[tuple[str, str, tuple[float, ...]]] = []
    with source.open("rb", buffering=1 << 20) as lines, (folder / "floor.jsonl").open("wb", buffering=1 << 20) as sink:

        def score() -> None:
            nonlocal out
            matrix = np.zeros((len(waiting), 16), np.float32)
            matrix[:, : len(INPUTS)] = [row for _, _, row in waiting]
            scores = session.run(None, {name: matrix})[0].ravel().tolist()
            for (tx, card, _), value in zip(waiting, scores, strict=True):
                sink.write(
                    encode({"id": "w/" + tx, "tx_id": tx, "card_id": card, "score": value, "model_version": "mlp:0"})
                )
                sink.write(b"\n")
            out += len(waiting)
            waiting.clear()

        for line in lines:
            events += 1
            event = decode(line)
            tx, card, amount, ts = event.tx_id, event.card_id, event.amount, event.ts
            if tx in seen:
                continue
            seen[tx] = ts
            if ts < newest - BOUND:
                continue
            if ts > newest:
                newest = ts
            span = (card, ts // WINDOW)
            window = windows.get(span)
            if window is None:
                window = windows[span] = [1, amount, amount]
            else:
                window[0] += 1
                window[1] += amount
                if amount > window[2]:
                    window[2] = amount
            state = sessions.get(card)
            if state is None or ts - state[2] >= GAP:
                sessions[card] = [1, None, ts]
                n_session, idle = 1, -1.0
            else:
                state[0] += 1
                n_session, before, last = state
                if ts >= last:
                    state[1], state[2] = last, ts
                    idle = float(ts - last)
                elif before is None or ts > before:
                    state[1] = ts
                    idle = 0.0
                else:
                    idle = 0.0
            n = window[0]
            waiting.append((tx, card, (amount, n, window[1], window[1] / n, window[2], n_session, idle)))
            if len(waiting) == 256:
                score()
        if waiting:
            score()
    seconds = time.process_time() - started
    return {"events": events, "out": out, "us": seconds / events * 1e6}


if __name__ == "__main__":
    which, source, model, folder = sys.argv[1], *map(Path, sys.argv[2:5])
    print(json.dumps({"engine": engine, "floor": floor}[which](source, model, folder)))
