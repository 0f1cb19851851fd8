"""One program of `test_runinference.py`: score rows with `Infer` or with Beam's `RunInference`.

`python tests/bench/inference.py infer|fnapi|bundles ROWS MODEL` prints the CPU seconds, and the sum of the scores.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

FIELDS = [f"x{i}" for i in range(16)]
KEPT: list[float] = []
T0 = 1_700_000_000_000


def rows(count: int) -> list[dict[str, Any]]:
    import numpy as np

    values = np.random.default_rng(1).normal(0, 1, (count, len(FIELDS))).tolist()
    return [{"id": f"e{n}", "ts": T0 + n, **dict(zip(FIELDS, row, strict=True))} for n, row in enumerate(values)]


def keep(score: float) -> None:
    KEPT.append(score)


def infer(given: list[dict[str, Any]], model: str) -> float:
    import streamml as sml
    from streamml.connectors.memory import MemorySink, MemorySource
    from streamml.local import LocalEngine
    from streamml.operators import Infer

    kinds = {"id": str, "ts": int, **dict.fromkeys(FIELDS, float)}
    schema = type("Row", (sml.Event,), {"__annotations__": kinds}, id="id", time="ts")
    pipeline = sml.Pipeline("bench", schema=schema).then(Infer(model, inputs=FIELDS, outputs={"y": 0}))
    sink = MemorySink()
    LocalEngine(pipeline, {spec.tag: MemorySource(given) for spec in pipeline.sources}, sink, {}).run()
    return float(sum(row["y"] for row in sink.rows))


def beam(given: list[dict[str, Any]], model: str, runner: str) -> float:
    import apache_beam as b
    import numpy as np
    import onnxruntime as ort
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy
    from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from inference import KEPT, keep  # by its name, so that Beam does not pickle a copy of the list

    class OneThread(OnnxModelHandlerNumpy):  # type: ignore[misc,unused-ignore]
        def load_model(self) -> ort.InferenceSession:
            options = ort.SessionOptions()  # can't be pickled with the handler
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    handler = OneThread(model, min_batch_size=256, max_batch_size=1024)
    KEPT.clear()
    with b.Pipeline(runner=FnApiRunner() if runner == "fnapi" else BundleBasedDirectRunner()) as p:
        _ = (
            p
            | b.Create(given, reshuffle=False)
            | b.Map(lambda row: np.array([row[name] for name in FIELDS], np.float32))
            | RunInference(handler)
            | b.Map(lambda result: float(np.ravel(result.inference)[0]))
            | b.Map(keep)
        )
    return sum(KEPT)


def main() -> None:
    which, count, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    given = rows(count)
    few = given[: count // 20]
    score = (lambda part: infer(part, model)) if which == "infer" else (lambda part: beam(part, model, which))
    score(few)  # imports, first calls
    taken = []
    for part in (few, given):
        started = time.process_time()
        total = score(part)
        taken.append(time.process_time() - started)
    per_row = (taken[1] - taken[0]) / (len(given) - len(few))
    print(json.dumps({"us": per_row * 1e6, "total": total}))


if __name__ == "__main__":
    main()
