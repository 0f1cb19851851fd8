"""What `streamml submit` was told, kept with the job in Flink, so that the job can be submitted again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streamml.errors import PlanError

if TYPE_CHECKING:
    from streamml.flink.rest import FlinkRest
    from streamml.flink.submit import SubmitOptions
    from streamml.pipeline import Pipeline

__all__ = ["Submission"]

_NOTE = "streamml.submission"


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `streamml submit`, as they were typed.

    Attributes:
        folder: where it was called; paths are relative to it.
        The others are the options of the same names.
    """

    job: str
    source: tuple[str, ...] = ()
    sink: str | None = None
    side: tuple[str, ...] = ()
    parallelism: int = 1
    checkpoint_interval: str = "10s"
    state_backend: str | None = None
    from_savepoint: str | None = None
    python_archive: str | None = None
    latency: str = "50ms"
    batch_size: int = 1024
    models: tuple[str, ...] = ()
    param: tuple[str, ...] = ()
    setting: tuple[str, ...] = ()
    folder: str = "."

    def check(self, rest: FlinkRest, freed: int = 0) -> Pipeline:
        """Build the plan, and refuse what could not run.

        Args:
            rest: the cluster.
            freed: slots that will be free by then.

        Raises:
            PlanError: the job's own error, or the cluster has too few slots.
        """
        from streamml.cli.loading import load_job
        from streamml.cli.wiring import named

        with self._there():
            loaded = load_job(self.job)
            models = loaded.models(self.models)
            pipeline = loaded.pipeline(named("--param", self.param, "name=value"), models)
        if self.parallelism > pipeline.key_groups:
            msg = (
                f"--parallelism {self.parallelism}: pipeline {pipeline.name!r} has {pipeline.key_groups} key groups, "
                "and can't run on more subtasks than those"
            )
            raise PlanError(msg)
        free = rest.overview()["slots-available"] + freed
        if free < self.parallelism:
            msg = (
                f"--parallelism {self.parallelism}: jobmanager {rest.address} has {free} slots for the job; "
                "start more task managers, or take less"
            )
            raise PlanError(msg)
        return pipeline

    def send(self, jobmanager: str) -> str:
        """Submit the job; returns its id."""
        from streamml.cli.loading import load_job
        from streamml.cli.wiring import named, side_uris, source_uris
        from streamml.flink.submit import submit

        with self._there():
            loaded = load_job(self.job)
            folders = loaded.models(self.models)
            pipeline = loaded.pipeline(named("--param", self.param, "name=value"), folders)
            target = self.sink or pipeline.sink_uri
            if target is None:
                msg = (
                    "--sink: a submitted job has no terminal; pass --sink kafka://HOST:PORT/TOPIC or --sink file:FOLDER"
                )
                raise PlanError(msg)
            sides = side_uris(pipeline, target, named("--side", self.side, "name=URI"))
            sources = source_uris(pipeline, self.source)
            options = self._options(jobmanager)
            return submit(pipeline, sources, target, sides, options, module=loaded.module, models=folders)

    def _options(self, jobmanager: str) -> SubmitOptions:
        from streamml.cli.wiring import named
        from streamml.connectors.kafka_settings import is_secret
        from streamml.flink.submit import SubmitOptions
        from streamml.times import to_millis

        settings = named("--set", self.setting, "name=value")
        # The note is shown to everyone who may look at the job.
        notes = {} if any(map(is_secret, settings)) else {_NOTE: msgspec.json.encode(self).decode()}
        return SubmitOptions(
            jobmanager=jobmanager,
            parallelism=self.parallelism,
            checkpoint_interval=to_millis(self.checkpoint_interval, where="--checkpoint-interval"),
            state_backend=self.state_backend,
            from_savepoint=self.from_savepoint,
            python_archive=self.python_archive,
            latency=to_millis(self.latency, where="--latency"),
            batch_size=self.batch_size,
            settings=settings,
            notes=notes,
        )

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        if not Path(self.folder).is_dir():
            msg = f"job {self.job!r} was submitted from {self.folder}, which is not on this machine; submit it there"
            raise PlanError(msg)
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)

    @classmethod
    def of(cls, rest: FlinkRest, job: str) -> Submission:
        """Return what a job was submitted with.

        Raises:
            PlanError: it was not submitted by `streamml submit`.
        """
        noted = rest.call(f"/jobs/{job}/config").get("execution-config", {}).get("user-config", {}).get(_NOTE)
        if noted is None:
            msg = (
                f"job {job}: Flink does not know how it was submitted, since that was not by `streamml submit`, or "
                "with a secret in --set. Stop it with `streamml flink stop`, and submit it again with --from-savepoint."
            )
            raise PlanError(msg)
        return msgspec.json.decode(noted, type=cls)
