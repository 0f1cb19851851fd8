"""One run by several workers on the embedded engine, as `streamml.cli.running` is one in this process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamml.cli.running import Outcome, Places, newest_checkpoint, serving, side_sink
from streamml.cli.stopping import stop_on_signals
from streamml.cli.view import View
from streamml.errors import PlanError

if TYPE_CHECKING:
    from streamml.local import LocalEngine, LocalOptions
    from streamml.local.worker import Place
    from streamml.pipeline import Pipeline
    from streamml.state.workers import WorkerFolders

__all__ = ["execute_workers", "make", "wants_workers"]


def wants_workers(count: int | None, state_dir: Path | None) -> bool:
    """Return whether a run takes processes of its own: several workers are asked for, or its state is that of workers.

    Raises:
        PlanError: several workers, and no state folder.
    """
    from streamml.state.workers import read_workers

    if state_dir is None:
        if count is not None and count > 1:
            msg = f"--workers {count}: a worker that dies goes on from its own checkpoint, so give --state-dir DIR"
            raise PlanError(msg)
        return False
    return (count or 1) > 1 or read_workers(state_dir).generation > 0


def execute_workers(
    pipeline: Pipeline,
    places: Places,
    options: LocalOptions,
    view: View,
    *,
    count: int | None,
    job: str,
    params: Mapping[str, str],
    models: tuple[str, ...] = (),
    metrics: str | None = None,
    debug: bool = False,
) -> Outcome:
    """Run a pipeline by several workers until its sources end or a signal stops it.

    Args:
        pipeline: the plan.
        places: where to read and write.
        options: of each worker; its state folder is the job's.
        view: what is shown.
        count: how many workers, None for as many as there were.
        job: what the workers build the plan from.
        params: its parameters.
        models: folders of bundles.
        metrics: `[HOST:]PORT`; worker i serves at PORT + i, those of further segments after them.
        debug: workers show the traceback of an error.

    Raises:
        StreamMLError: what ended the run; state and output are those of the last checkpoints.
    """
    from streamml.local.job import WorkerJob
    from streamml.local.parts import part_uri
    from streamml.local.segments import stage_names
    from streamml.local.share import Share
    from streamml.state.workers import read_workers

    root = options.state_dir
    assert root is not None
    there = read_workers(root)
    _refuse(places, count or there.count)
    if metrics is not None:
        address(metrics, 0)
    found = [newest_checkpoint(folder) for folder in there.all_folders()]
    processes = (count or there.count) * len(stage_names(pipeline))
    resumed = min((number for number in found if number is not None), default=None)
    arguments = {
        "job": job,
        "params": dict(params),
        "models": list(models),
        "sources": dict(places.sources),
        "sink": places.sink,
        "sides": dict(places.sides),
        "metrics": metrics,
        "options": {
            "checkpoint_interval": options.checkpoint_interval,
            "batch_size": options.batch_size,
            "latency_target": options.latency_target,
            "cache_mb": max(1, options.cache_mb // processes),
            "overwrite": options.overwrite,
        },
    }
    running_folders = [there]

    def started(folders: WorkerFolders) -> None:
        running_folders.append(folders)
        if metrics is not None:
            last = folders.count * folders.segments - 1
            view.say(f"metrics of worker 0 to {last} at http://{address(metrics, 0)}/metrics and the ports after it")

    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(lambda: running.stop()))
        running = WorkerJob(
            pipeline, root, count, "streamml.cli.workers:make", arguments,
            say=view.say, on_progress=view.progress, on_start=started, debug=debug,
        )  # fmt: skip
        if resumed is not None:
            view.say(f"going on from checkpoint {resumed} in {root}")
        stack.enter_context(view)
        result = running.run()
        view.finish(result.run.figures)
    last = running_folders[-1]
    first, final = (Share(0, last.count, last.generation, segment, last.segments) for segment in (0, last.segments - 1))
    written = Places(
        places.sources,
        part_uri(places.sink, final, all_parts=True),
        {name: part_uri(uri, first, all_parts=True) for name, uri in places.sides.items()},
    )
    return Outcome(result.run, written, result.kinds, resumed, stop.signal)


def make(arguments: dict[str, Any], place: Place) -> LocalEngine:
    """Build the engine of one worker, in its process."""
    from streamml.cli.loading import load_job
    from streamml.connectors import open_sink, open_source
    from streamml.local import LocalEngine, LocalOptions, Meter

    models = tuple(arguments["models"])
    pipeline = load_job(arguments["job"]).pipeline(arguments["params"], models)
    options = LocalOptions(state_dir=place.state_dir, **arguments["options"])
    sides = {name: side_sink(name, place.part(uri), options.overwrite) for name, uri in arguments["sides"].items()}
    place.kinds = lambda: {name: dict(side.kinds) for name, side in sides.items()}
    meter = Meter()
    if arguments["metrics"] is not None:
        serving(meter, address(arguments["metrics"], place.share.number)).__enter__()  # until the process ends
    return LocalEngine(
        pipeline,
        {tag: open_source(uri) for tag, uri in arguments["sources"].items()},
        open_sink(place.part(arguments["sink"]), overwrite=options.overwrite),
        sides,
        options=options,
        models=models,
        meter=meter,
        **place.engine,
    )


def address(metrics: str, index: int) -> str:
    """Return where a worker serves its metrics.

    Raises:
        PlanError: that is no port.

    >>> address("0.0.0.0:9464", 2), address("0", 2)
    ('0.0.0.0:9466', '127.0.0.1:0')
    """
    host, _, port = metrics.rpartition(":")
    if not port.isdigit():
        msg = f"--metrics-port {metrics}: wanted a port such as 9464, or 0.0.0.0:9464 to be reached from other machines"
        raise PlanError(msg)
    return f"{host or '127.0.0.1'}:{int(port) + index if int(port) else 0}"


def _refuse(places: Places, count: int) -> None:
    """Refuse, before any process is started, what workers can't share."""
    from streamml.connectors import open_source
    from streamml.local.parts import part_uri
    from streamml.local.share import Share

    for uri in (places.sink, *places.sides.values()):
        part_uri(uri, Share(0, count, 1))
    for uri in places.sources.values():
        if not open_source(uri).replayable:
            msg = f"--workers {count}: each reads all of the input, and {uri} can be read only once; name a file"
            raise PlanError(msg)
