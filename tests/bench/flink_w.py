"""Workload W on Flink, as a job of the library and as the PyFlink program that its documentation leads to.

`python tests/bench/flink_w.py ours|by-hand INPUT MODEL` runs one of them on an in-process cluster, one slot, process
mode, checkpoints every 5 s, and prints the job's seconds as JSON. The start of a job costs 10 to 20 s, so a rate is
the difference of two runs of different size.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

SETTINGS = {
    "python.executable": sys.executable,
    "python.pythonpath": str(HERE),
    "execution.checkpointing.interval": "5 s",
    "execution.checkpointing.dir": "file:///tmp/streamml-bench-checkpoints",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
}


def environment(**more: str) -> Any:
    from pyflink.common import Configuration
    from pyflink.datastream import StreamExecutionEnvironment

    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
    os.environ["OMP_NUM_THREADS"] = "1"
    configuration = Configuration()
    for name, value in {**SETTINGS, **more}.items():
        configuration.set_string(name, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(1)
    return env


def ours(source: Path, model: Path) -> float:
    from workload_w import pipeline

    from streamml.flink.graph import Graph, add_jar
    from streamml.flink.places import attach_sink, attach_source
    from streamml.flink.settings import StageSettings

    env = environment()
    java = env._j_stream_execution_environment
    add_jar(java)
    job = pipeline(str(model))

    class Wrapped:
        _j_data_stream = attach_source(java, job.sources[0], f"file:{source}", "w")

    graph = Graph(job, {"w": Wrapped()}, StageSettings(timed=False), form="keyed")  # type: ignore[dict-item]
    attach_sink(graph.main, "null:", pipeline="w", output="main")
    return float(env.execute("w").get_net_runtime()) / 1000


def by_hand(source: Path, model: Path) -> float:
    from pyflink.common import Types, WatermarkStrategy
    from pyflink.datastream import KeyedProcessFunction, MapFunction, RuntimeContext
    from pyflink.datastream.connectors.file_system import FileSource, StreamFormat
    from pyflink.datastream.state import ValueStateDescriptor

    class Dedupe(KeyedProcessFunction):
        def open(self, ctx: RuntimeContext) -> None:
            self.seen = ctx.get_state(ValueStateDescriptor("seen", Types.PICKLED_BYTE_ARRAY()))

        def process_element(self, value: dict[str, Any], ctx: Any) -> Any:
            seen = self.seen.value() or {}
            if value["tx_id"] in seen:
                return
            seen[value["tx_id"]] = value["ts"]
            self.seen.update({k: t for k, t in seen.items() if t > value["ts"] - 3_600_000})
            yield value

    class Features(KeyedProcessFunction):
        def open(self, ctx: RuntimeContext) -> None:
            self.window = ctx.get_state(ValueStateDescriptor("window", Types.PICKLED_BYTE_ARRAY()))

        def process_element(self, value: dict[str, Any], ctx: Any) -> Any:
            start = value["ts"] // 600_000
            at, n, total, most = self.window.value() or (start, 0, 0.0, 0.0)
            if at != start:
                n, total, most = 0, 0.0, 0.0
            amount = value["amount"]
            n, total, most = n + 1, total + amount, max(most, amount) if n else amount
            self.window.update((start, n, total, most))
            yield {**value, "n": n, "total": total, "mean": total / n, "most": most}

    class Session(KeyedProcessFunction):
        def open(self, ctx: RuntimeContext) -> None:
            self.session = ctx.get_state(ValueStateDescriptor("session", Types.PICKLED_BYTE_ARRAY()))

        def process_element(self, value: dict[str, Any], ctx: Any) -> Any:
            last, n = self.session.value() or (value["ts"], 0)
            n = 1 if value["ts"] - last > 1_800_000 else n + 1
            self.session.update((value["ts"], n))
            yield {**value, "n_session": n, "idle": value["ts"] - last}

    class Score(MapFunction):
        def open(self, ctx: RuntimeContext) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.model = onnxruntime.InferenceSession(str(model), options)
            self.name = self.model.get_inputs()[0].name

        def map(self, value: dict[str, Any]) -> str:
            row = [value[f] for f in ("amount", "n", "total", "mean", "most", "n_session", "idle")]
            import numpy as np

            out = self.model.run(None, {self.name: np.array([row + [0.0] * 9], dtype=np.float32)})
            return json.dumps({"tx_id": value["tx_id"], "score": float(out[0][0][0])})

    env = environment(
        **{
            "python.state.cache-size": "200000",
            "python.fn-execution.bundle.size": "10000",
        }
    )
    lines = FileSource.for_record_stream_format(StreamFormat.text_line_format(), str(source)).build()
    events = env.from_source(lines, WatermarkStrategy.no_watermarks(), "w", Types.STRING())
    stream = events.map(json.loads)
    for function in (Dedupe(), Features(), Session()):
        stream = stream.key_by(lambda value: value["card_id"], Types.STRING()).process(function)
    out = stream.map(Score(), Types.STRING())
    from pyflink.java_gateway import get_gateway

    out._j_data_stream.sinkTo(get_gateway().jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink())
    return float(env.execute("by hand").get_net_runtime()) / 1000


if __name__ == "__main__":
    seconds = {"ours": ours, "by-hand": by_hand}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps({"seconds": seconds}))
