"""Sends a pipeline to a Flink cluster as a job."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from streamml.errors import PlanError
from streamml.flink.rest import FlinkRest
from streamml.keying import keeps_record_key
from streamml.pipeline import Pipeline

__all__ = ["APPLICATION", "BACKENDS", "SubmitOptions", "submit"]

APPLICATION = "application"
"""In place of a JobManager's address: this process is the program of an application cluster."""

BACKENDS = ("hashmap", "rocksdb", "forst")


@dataclass(frozen=True)
class SubmitOptions:
    """How a job is submitted.

    Attributes:
        jobmanager: `host:port` of the REST API, or `APPLICATION`.
        parallelism: subtasks of keyed stages and sources.
        checkpoint_interval: ms between checkpoints, which also make output visible.
        state_backend: one of `BACKENDS`; None for the cluster's.
        from_savepoint: savepoint or checkpoint to go on from.
        python_archive: a packed Python environment for workers that have none.
        latency: how long a record may wait for others, ms.
        batch_size: most records of a key group in a batch.
        settings: more of Flink's settings.
        notes: what Flink shows of the job beside its own, as its global parameters.
    """

    jobmanager: str = "localhost:8081"
    parallelism: int = 1
    checkpoint_interval: int = 10_000
    state_backend: str | None = None
    from_savepoint: str | None = None
    python_archive: str | None = None
    latency: int = 50
    batch_size: int = 1024
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def submit(
    pipeline: Pipeline,
    sources: Mapping[str, str],
    sink: str,
    sides: Mapping[str, str],
    options: SubmitOptions,
    *,
    module: ModuleType | None = None,
    models: Sequence[str] = (),
) -> str:
    """Submit a pipeline and return the job's id; it runs on when this process ends.

    Args:
        pipeline: what to run.
        sources: address of each source by its tag.
        sink: address of the main output.
        sides: address of side outputs by name; one that is left out is dropped.
        options: see `SubmitOptions`.
        module: the job's own module, sent along with the modules beside it that it imported.
        models: folders of model bundles, sent along.

    Raises:
        ConnectorError: the cluster does not answer, or refuses the job.
        PlanError: an option makes no sense, or the environment asks for thread mode.
    """
    import cloudpickle
    from pyflink.datastream import StreamExecutionEnvironment

    from streamml.flink.graph import Graph, add_jar
    from streamml.flink.jars import kafka_connector, python_jar
    from streamml.flink.places import attach_sink, attach_source, needs_kafka
    from streamml.flink.settings import StageSettings

    pipeline.check()
    if options.jobmanager == APPLICATION:
        environment = StreamExecutionEnvironment.get_execution_environment()
        _configure(environment._j_stream_execution_environment, options)
    else:
        FlinkRest(options.jobmanager).overview()
        environment = StreamExecutionEnvironment(_remote(options))
    environment.set_parallelism(options.parallelism)
    environment.get_config().set_global_job_parameters(dict(options.notes))
    java = environment._j_stream_execution_environment
    add_jar(java)
    jars = [python_jar()]
    if needs_kafka([*sources.values(), sink, *sides.values()]):
        jars.append(kafka_connector())
    environment.add_jars(*(path.resolve().as_uri() for path in jars))
    with tempfile.TemporaryDirectory(prefix="streamml-submit-") as folder:
        sent = _send_models(environment, models, Path(folder))
        by_value = module is not None and not module.__name__.startswith("streamml.")
        if module is not None and by_value:
            cloudpickle.register_pickle_by_value(module)
            for path in _beside(module):
                environment.add_python_file(str(path))
        try:
            streams = {
                spec.tag: attach_source(
                    java,
                    spec,
                    sources[spec.tag],
                    pipeline.name,
                    keyed=keeps_record_key(pipeline.stages, spec.tag),
                )
                for spec in pipeline.sources
            }
            settings = StageSettings(
                batch_size=options.batch_size,
                latency=options.latency,
                parallelism=options.parallelism,
                models=sent,
                timed=False,
            )
            graph = Graph(pipeline, {tag: _Wrapped(stream) for tag, stream in streams.items()}, settings, form="keyed")
            attach_sink(graph.main, sink, pipeline=pipeline.name, output="main")
            for name, uri in sides.items():
                attach_sink(graph.side(name), uri, pipeline=pipeline.name, output=name)
            client = environment.execute_async(pipeline.name)
        finally:
            if module is not None and by_value:
                cloudpickle.unregister_pickle_by_value(module)
    return str(client.get_job_id())


class _Wrapped:
    """A Java stream where a PyFlink one is wanted."""

    def __init__(self, stream: Any) -> None:
        self._j_data_stream = stream


def _remote(options: SubmitOptions) -> Any:
    """Return Java's environment of a cluster; the one that PyFlink makes for a script is always local."""
    from pyflink.java_gateway import get_gateway

    gateway = get_gateway()
    host, _, port = options.jobmanager.rpartition(":")
    none = gateway.new_array(gateway.jvm.java.lang.String, 0)
    environments = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    made = environments.createRemoteEnvironment(host, int(port), _configuration(options)._j_configuration, none)
    _configure(made, options)  # once more: Flink 2.3 has put defaults of its own over some of it
    return made


def _configure(environment: Any, options: SubmitOptions) -> None:
    from pyflink.util.java_utils import get_j_env_configuration

    get_j_env_configuration(environment).addAll(_configuration(options)._j_configuration)


def _configuration(options: SubmitOptions) -> Any:
    from pyflink.common import Configuration

    if options.state_backend not in (None, *BACKENDS):
        where = "--state-backend"
        raise PlanError.unknown(where, "state backend", str(options.state_backend), BACKENDS)
    settings = {
        "execution.attached": "false",
        "execution.checkpointing.interval": f"{options.checkpoint_interval} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "python.client.executable": sys.executable,
        "pipeline.object-reuse": "true",
    }
    if options.state_backend is not None:
        settings["state.backend.type"] = options.state_backend
    if options.from_savepoint is not None:
        settings["execution.state-recovery.path"] = options.from_savepoint
    if options.python_archive is not None:
        archive = Path(options.python_archive).resolve()
        if not archive.is_file():
            msg = f"--python-archive {options.python_archive}: there is no such file; wanted a packed environment"
            raise PlanError(msg)
        settings["python.archives"] = f"{archive}#streamml-python"
        settings["python.executable"] = "streamml-python/bin/python"
    made = Configuration()
    for name, value in {**settings, **options.settings}.items():
        made.set_string(name, value)
    return made


def _send_models(environment: Any, folders: Sequence[str], workspace: Path) -> tuple[str, ...]:
    """Send folders of bundles along; returns where a worker finds them. Registries with an address are read there."""
    names: list[str] = []
    for number, folder in enumerate(folders):
        if "://" in folder:
            names.append(folder)
            continue
        name = f"streamml-models-{number}"
        archive = shutil.make_archive(str(workspace / name), "zip", folder)
        environment.add_python_archive(archive, name)
        names.append(name)
    return tuple(names)


def _beside(module: ModuleType) -> list[Path]:
    """Return the modules and packages in the job's folder that were imported."""
    folder = Path(module.__file__ or "").resolve().parent
    found: dict[Path, None] = {}
    for other in list(sys.modules.values()):
        origin = getattr(other, "__file__", None)
        if origin is None or other is module:
            continue
        path = Path(origin).resolve()
        if folder in path.parents and "site-packages" not in path.parts:
            found[folder / path.relative_to(folder).parts[0]] = None
    found.pop(Path(module.__file__ or "").resolve(), None)
    return list(found)
