"""Workload W as a Bytewax program, with Bytewax's own connectors and recovery (run in its own environment).

`python tests/bench/bytewax_w.py once|fused|serve SERVERS SOURCE SINK MODEL FOLDER`: `once` ends with the topic and
prints what an event cost in microseconds of CPU; `fused` is the same with both features written into one step by
hand, to spare the framework's cost of a step; `serve` goes on until it is ended. State is plain Python in memory, with
recovery in SQLite every 5 s: at least once. A batch of the dataflow is a batch of the model (`flat_map_batch`).
What is late is not put aside, and no model version is kept: less work than the job of the library does.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op  # type: ignore[import-not-found,unused-ignore]
import msgspec
import numpy as np
import onnxruntime
from bytewax.connectors.kafka import (  # type: ignore[import-not-found,unused-ignore]
    KafkaSinkMessage,
    KafkaSource,
)
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found,unused-ignore]
from bytewax.recovery import RecoveryConfig, init_db_dir  # type: ignore[import-not-found,unused-ignore]
from bytewax.testing import run_main  # type: ignore[import-not-found,unused-ignore]

WINDOW, GAP, TTL = 600_000, 1_800_000, 3_600_000
Row = tuple[Any, ...]
COUNTS = {"events": 0, "out": 0}


class Payment(msgspec.Struct):
    tx_id: str
    card_id: str
    amount: float
    merchant: int
    country: int
    ts: int


def dedupe(seen: dict[str, int] | None, event: Payment) -> tuple[dict[str, int], list[Payment]]:
    if seen is None:
        seen = {}
    while seen and seen[first := next(iter(seen))] < event.ts - TTL:
        del seen[first]
    if event.tx_id in seen:
        return seen, []
    seen[event.tx_id] = event.ts
    return seen, [event]


def tumbling(windows: dict[int, list[float]] | None, event: Payment) -> tuple[dict[int, list[float]], Row]:
    """Windows of 10 minutes, as running values; the newest two are kept."""
    if windows is None:
        windows = {}
    amount, start = event.amount, event.ts // WINDOW
    window = windows.get(start)
    if window is None:
        if len(windows) > 1:
            del windows[min(windows)]
        window = windows[start] = [0, 0.0, amount]
    window[0] += 1
    window[1] += amount
    window[2] = max(window[2], amount)
    n = window[0]
    return windows, (event, amount, n, window[1], window[1] / n, window[2])


def session(state: tuple[int, int] | None, row: Row) -> tuple[tuple[int, int], Row]:
    """Sessions with a gap of 30 minutes, as running values."""
    ts = row[0].ts
    if state is None or ts - state[1] >= GAP:
        return (1, ts), (*row, 1, -1.0)
    count, last = state
    return (count + 1, max(last, ts)), (*row, count + 1, float(max(0, ts - last)))


def features(state: list[Any] | None, event: Payment) -> tuple[list[Any], Row]:
    """Both in one step."""
    windows, row = tumbling(state and state[0], event)
    visit, row = session(state and state[1], row)
    return [windows, visit], row


def dataflow(servers: str, source: str, sink: str, model: str, *, tail: bool, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = loaded.get_inputs()[0].name
    decode, encode = msgspec.json.Decoder(Payment).decode, msgspec.json.Encoder().encode

    def parse(messages: list[Any]) -> list[Payment]:
        COUNTS["events"] += len(messages)
        return [decode(message.value) for message in messages]

    def score(rows: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        COUNTS["out"] += len(rows)
        matrix = np.zeros((len(rows), 16), np.float32)
        matrix[:, :7] = [row[1:] for _, row in rows]
        scores = loaded.run(None, {name: matrix})[0].ravel().tolist()
        return [
            KafkaSinkMessage(card.encode(), encode({"tx_id": row[0].tx_id, "card_id": card, "score": value}))
            for (card, row), value in zip(rows, scores, strict=True)
        ]

    flow = Dataflow("w")
    messages = op.input("in", flow, KafkaSource([servers], [source], tail=tail))
    events = op.key_on("card", op.flat_map_batch("parse", messages, parse), lambda event: event.card_id)
    unique = op.stateful_flat_map("dedupe", events, dedupe)
    if fused:
        rows = op.stateful_map("features", unique, features)
    else:
        rows = op.stateful_map("session", op.stateful_map("tumbling", unique, tumbling), session)
    kop.output("out", op.flat_map_batch("score", rows, score), brokers=[servers], topic=sink)
    return flow


def main(how: str, servers: str, source: str, sink: str, model: str, folder: str) -> None:
    recovery = Path(folder, "recovery")
    recovery.mkdir(parents=True)
    init_db_dir(recovery, 1)
    cpu, wall = time.process_time(), time.perf_counter()
    flow = dataflow(servers, source, sink, model, tail=how == "serve", fused=how == "fused")
    run_main(flow, epoch_interval=timedelta(seconds=5), recovery_config=RecoveryConfig(str(recovery)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({**COUNTS, "us": cpu / COUNTS["events"] * 1e6, "rate": COUNTS["events"] / wall}))


if __name__ == "__main__":
    main(*sys.argv[1:])
