"""The engines that scripts can run on, and `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamml.contract import Operator
from streamml.errors import PlanError
from streamml.pipeline import Pipeline
from streamml.testing.beam import BeamDriver
from streamml.testing.case import Case
from streamml.testing.driver import Engine, RunOptions
from streamml.testing.flink import FlinkDriver
from streamml.testing.local import LocalDriver
from streamml.testing.result import Result
from streamml.testing.script import Script, Step

__all__ = ["ENGINES", "Engine", "RunOptions", "run"]

ENGINES: Mapping[str, type[Engine]] = {"local": LocalDriver, "flink": FlinkDriver, "beam": BeamDriver}
"""The driver of each engine by its name."""


def run(
    operators: Sequence[Operator] | Pipeline,
    script: Sequence[Step],
    engine: str | Engine = "local",
    *,
    end: bool = True,
    watermarks: str = "script",
    **options: Any,
) -> Result:
    """Run a script of events through operators, or through a pipeline, and return what came out.

    Operators get the script's keys if one of them needs a key. The input ends after the script (`end=True`), so windows
    that are still open give their result, as on any bounded source; `result.state` and `result.watermark` are as of the
    moment before that. Only `advance` moves the watermark; whether a row is late is judged by the watermark just before
    it, and timers fire between the two rows between which the watermark passed them, whatever the micro-batches.
    Without `advance` in the script the watermark stays before every event until then.

    Args:
        operators: a chain of operators, or a pipeline; its sources are the script's `source=` tags (a pipeline's single
            source gets every event of a script that names none), its sinks are in memory.
        script: what happens: `event`, `advance`, `idle`, `crash` and so on.
        engine: name of the engine, or a started driver.
        end: whether the input ends after the script.
        watermarks: `script`: only `advance` moves the watermark. `pipeline`: events and idleness move it by the
            pipeline's own `out_of_orderness` and `idleness`.
        options: see `RunOptions`: batch_size, checkpoint_every, workers, store, models. The result does not depend on
            them.

    >>> from streamml.operators import Dedupe
    >>> from streamml.testing import crash, event
    >>> script = [event("k", t="1s", n=1), crash(), event("k", t="2s", n=1), event("k", t="3s", n=2)]
    >>> result = run([Dedupe("n")], script)
    >>> result.main == [{"n": 1}, {"n": 2}]
    True
    >>> [record["id"] for record in result.side("duplicates")]
    ['script/e1']
    """
    case = Case("script", operators, script, end=end, watermarks=watermarks)
    try:
        chosen = RunOptions(**options)
    except TypeError as exc:
        odd = next(iter(set(options) - set(RunOptions.__dataclass_fields__)), str(exc))
        where = "run"
        raise PlanError.unknown(where, "option", odd, RunOptions.__dataclass_fields__) from exc
    Script(script)
    if isinstance(engine, Engine):
        return engine.run(case, chosen)
    if engine not in ENGINES:
        where = "run, engine="
        raise PlanError.unknown(where, "engine", engine, ENGINES)
    with ENGINES[engine]() as driver:
        return driver.run(case, chosen)
