"""What a driver is: the one class by which an engine takes part in the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from streamml.errors import PlanError, UnsupportedError
from streamml.testing.case import Capability, Case
from streamml.testing.result import Result

__all__ = ["Engine", "RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """How a case is run; none of it may change its answer.

    Attributes:
        batch_size: most rows in a micro-batch.
        checkpoint_every: a checkpoint after so many events, 0 for none but the script's own; None: 2 if the script has
            a `crash()` and no `checkpoint()`, else 0.
        workers: how many workers share the keys.
        store: `memory`, or `rocksdb` in a temporary folder.
        models: folders that are searched for model bundles.
    """

    batch_size: int = 1024
    checkpoint_every: int | None = None
    workers: int = 1
    store: str = "memory"
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 1:
            msg = f"run: batch_size= and workers= want at least 1, got {self.batch_size} and {self.workers}"
            raise PlanError(msg)
        if self.store not in ("memory", "rocksdb"):
            where = "run, store="
            raise PlanError.unknown(where, "store", self.store, ("memory", "rocksdb"))


class Engine:
    """Base of drivers: what an engine does to take part in the conformance suite.

    Order of calls: `start` once, `run` or `run_many` any number of times, `stop` once; or use it in a `with`.

    Attributes:
        name: the engine's name.
        deps: modules that must be installed.
        capabilities: what it can do beyond running a script.
    """

    name: ClassVar[str] = ""
    deps: ClassVar[tuple[str, ...]] = ()
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def start(self) -> None:
        """Start what is expensive, once."""

    def stop(self) -> None:
        """Stop it."""

    def run(self, case: Case, options: RunOptions | None = None) -> Result:
        """Run one case.

        Raises:
            UnsupportedError: the engine can't do what the script asks.
        """
        missing = case.needs - self.capabilities
        if missing:
            names = ", ".join(sorted(need.name for need in missing))
            msg = f"engine {self.name!r}, case {case.name!r}: it can't do {names}; {_who_can(missing)}"
            raise UnsupportedError(msg)
        return self.execute(case, options or RunOptions())

    def run_many(self, cases: Sequence[Case], options: RunOptions | None = None) -> list[Result]:
        """Run cases; an engine for which a job is expensive runs them as one job."""
        return [self.run(case, options) for case in cases]

    def execute(self, case: Case, options: RunOptions) -> Result:
        """Run one case that asks for nothing that the engine can't do; the one method that a driver must have."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _who_can(needs: frozenset[Capability]) -> str:
    from streamml.testing.engines import ENGINES

    able = [name for name, driver in ENGINES.items() if needs <= driver.capabilities]
    return f"engines that can: {', '.join(able) or 'none yet'}"
