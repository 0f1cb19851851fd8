"""Scores each click with two models that would like all cores: torch and onnxruntime."""

from __future__ import annotations

import streamml as sml
from streamml.operators import Dedupe, Infer


class Click(sml.Event, id="n", key="user", time="ts"):
    n: str
    user: str
    ts: int
    x: float


def pipeline(cfg: sml.JobConfig) -> sml.Pipeline:
    return (
        sml.Pipeline("heavy", schema=Click, out_of_orderness="1h")
        .key_by("user")
        .then(Dedupe(ttl="1h"))
        .then(Infer("torchnet:1", inputs=["x"], outputs={"torch": 0}, name="by_torch"))
        .then(Infer("onnxnet:1", inputs=["x"], outputs={"onnx": 0}, name="by_onnx"))
        .select("n", "torch", "onnx")
    )
