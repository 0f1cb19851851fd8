"""How a pipeline runs on Flink, and what of Flink's configuration it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamml.errors import PlanError
from streamml.flink.store import PREFETCH

__all__ = ["StageSettings", "operator_configuration", "require_process_mode"]


@dataclass(frozen=True)
class StageSettings:
    """How stages run; none of it changes an answer.

    Attributes:
        batch_size: most records of a key group in a batch.
        batch_bytes: most bytes of a key group in a batch.
        latency: how long a record waits for others, ms.
        parallelism: number of subtasks of keyed stages, None for the environment's.
        models: folders that are searched for model bundles, as the workers see them.
        cache_bytes: bound of the state cache of each subtask.
        timed: output records carry their event time, see `HostPlan`.
    """

    batch_size: int = 1024
    batch_bytes: int = 1 << 20
    latency: int = 50
    parallelism: int | None = None
    models: tuple[str, ...] = ()
    cache_bytes: int = 256 << 20
    timed: bool = True


def require_process_mode(environment: Any) -> None:
    """Refuse thread mode.

    Raises:
        PlanError: the environment asks for it.
    """
    from pyflink.util.java_utils import get_j_env_configuration

    mode = get_j_env_configuration(environment).toMap().get("python.execution-mode")
    if mode is not None and mode != "process":
        msg = (
            f"python.execution-mode: {mode}: streamml needs `process`. In thread mode Python runs on a thread "
            f"that extensions which call "
            "PyGILState_Ensure (onnxruntime, torch, every pybind11 and PyO3 module) don't know, and they hang "
            "for ever without a message."
        )
        raise PlanError(msg)


def operator_configuration(environment: Any, settings: StageSettings) -> Any:
    """Return the Java configuration of our Python operators: the environment's, and what map states need."""
    from pyflink.java_gateway import get_gateway
    from pyflink.util.java_utils import get_j_env_configuration

    given = get_j_env_configuration(environment)
    made = get_gateway().jvm.org.apache.flink.configuration.Configuration(given)
    wanted = {
        "python.state.cache-size": "100000",  # states of all groups of a subtask
        "python.map-state.read-cache-size": "1000000",
        "python.map-state.write-cache-size": "1000000",
        "python.map-state.iterate-response-batch-size": str(PREFETCH),
        "python.fn-execution.bundle.size": "1000",
        "python.fn-execution.bundle.time": str(max(settings.latency, 1)),
        "python.fn-execution.arrow.batch.size": "1000",
    }
    there = given.toMap()
    for name, value in wanted.items():
        if name not in there:
            made.setString(name, value)
    return made
