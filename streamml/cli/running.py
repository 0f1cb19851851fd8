"""One run on the embedded engine: wire, run, stop on signals, and say how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamml.cli.sides import SideSink
from streamml.cli.stopping import stop_on_signals
from streamml.cli.view import View
from streamml.errors import ConnectorError, PlanError

if TYPE_CHECKING:
    from streamml.local import LocalOptions, Meter, RunResult
    from streamml.pipeline import Pipeline

__all__ = ["Outcome", "Places", "execute", "newest_checkpoint", "serving", "side_sink"]


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes, as addresses."""

    sources: Mapping[str, str]
    sink: str
    sides: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        result: what the engine says.
        places: where it read and wrote.
        kinds: for each side output how many records of each kind came.
        resumed: number of the checkpoint that it went on from, None for a fresh run.
        stopped_by: name of the signal that stopped it, None otherwise.
    """

    result: RunResult
    places: Places
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    resumed: int | None = None
    stopped_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for `--json`."""
        return {
            "finished": self.result.finished,
            "stopped_by": self.stopped_by,
            "resumed_from": self.resumed,
            "figures": self.result.figures,
            "sources": dict(self.places.sources),
            "sink": self.places.sink,
            "sides": {
                name: {"uri": uri, "records": self.result.sides.get(name, 0), "kinds": dict(self.kinds.get(name, {}))}
                for name, uri in self.places.sides.items()
            },
            "problems": list(self.result.problems),
        }


def execute(
    pipeline: Pipeline,
    places: Places,
    options: LocalOptions,
    view: View,
    *,
    models: tuple[str, ...] = (),
    metrics: str | None = None,
) -> Outcome:
    """Run a pipeline until its sources end or a signal stops it.

    Raises:
        StreamMLError: what ended the run; state and output are those of the last checkpoint.
    """
    from streamml.connectors import open_sink, open_source
    from streamml.local import LocalEngine, Meter

    sources = {tag: open_source(uri) for tag, uri in places.sources.items()}
    sink = open_sink(places.sink, overwrite=options.overwrite)
    sides = {name: side_sink(name, uri, options.overwrite) for name, uri in places.sides.items()}
    resumed = newest_checkpoint(options.state_dir)
    meter = Meter()
    engine: LocalEngine

    def announce(step: str) -> None:
        if stop.signal is not None:
            view.stopping(stop.signal)

    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(lambda: engine.stop()))
        engine = LocalEngine(
            pipeline, sources, sink, sides, options=options, models=models, meter=meter,
            on_step=announce, on_progress=view.progress,
        )  # fmt: skip
        if metrics is not None:
            view.say(f"metrics at {stack.enter_context(serving(meter, metrics))}")
        if resumed is not None:
            view.say(f"going on from checkpoint {resumed} in {options.state_dir}")
        if sink.decides and options.state_dir is None:
            view.say("state is in memory only: after a crash records may come twice; pass --state-dir for exactly once")
        stack.enter_context(view)
        result = engine.run()
        view.finish(result.figures)
    return Outcome(result, places, {name: dict(side.kinds) for name, side in sides.items()}, resumed, stop.signal)


def side_sink(name: str, uri: str, overwrite: bool) -> SideSink:
    """Return the sink of a side output."""
    from streamml.connectors import open_sink

    return SideSink(name, uri, lambda replace: open_sink(uri, overwrite=replace), overwrite=overwrite)


def newest_checkpoint(state_dir: Path | None) -> int | None:
    """Return the number of the newest checkpoint that looks whole, None if there is none."""
    if state_dir is None or not (state_dir / "checkpoints").is_dir():
        return None
    from streamml.state.checkpoints import Checkpoints

    found = Checkpoints(state_dir / "checkpoints").list(contents=False)
    return max((info.number for info in found if info.valid), default=None)


@contextmanager
def serving(meter: Meter, address: str) -> Iterator[str]:
    """Serve metrics at `[HOST:]PORT`; yields the address of the page."""
    from streamml.observability.prometheus import serve

    host, _, port = address.rpartition(":")
    if not port.isdigit():
        msg = f"--metrics-port {address}: wanted a port such as 9464, or 0.0.0.0:9464 to be reached from other machines"
        raise PlanError(msg)
    try:
        server = serve(meter.metrics, int(port), host or "127.0.0.1")
    except OSError as exc:
        raise ConnectorError(str(exc)) from exc
    with server:
        yield server.url
