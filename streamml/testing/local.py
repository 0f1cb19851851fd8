"""The driver of the embedded engine: the real engine, its sources played from a script, its sinks in memory."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from streamml.errors import PlanError, UnsupportedError
from streamml.pipeline import Pipeline
from streamml.ports import FollowingSink
from streamml.records import Batch
from streamml.state.memory import MemoryStore
from streamml.testing.case import Capability, Case
from streamml.testing.driver import Engine, RunOptions
from streamml.testing.plan import plan
from streamml.testing.player import Control, Killed, Player, ScriptSource, ScriptTracker
from streamml.testing.result import OutputRecord, Result
from streamml.testing.script import Advance, Checkpoint, Crash, Script
from streamml.testing.states import StoredState

__all__ = ["LocalDriver"]

_EVERYTHING = (b"", b"\xff" * 16)


class ScriptSink(FollowingSink):
    """A sink in memory that outlives a crash as a file would; what is not committed then is gone."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.pending: list[Any] = []

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """Discard what the restored checkpoint does not know of; no crash comes between `prepare` and `commit` here."""
        self.pending.clear()
        del self.done[0 if prepared is None else prepared["rows"] :]

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """Keep records, copied as they are written."""
        chosen = None if fields is None else tuple(fields)
        self.pending += [OutputRecord.of(record, chosen) for record in batch.records()]

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep plain records."""
        self.pending += copy.deepcopy(list(map(dict, records)))

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """Say how many rows will be there."""
        return {"rows": len(self.done) + len(self.pending)}

    def commit(self, checkpoint: int) -> None:
        """Make them visible."""
        self.done += self.pending
        self.pending.clear()

    def close(self) -> None:
        """Discard what was not committed."""
        self.pending.clear()


class MemoryStorage:
    """State and checkpoints of one run in memory, in place of the engine's `Storage`; `kept` outlives the run."""

    restored = None
    checkpoints = None

    def __init__(self, kept: dict[str, Any]) -> None:
        self._kept = kept
        self.number: int = kept.get("number", 0)
        self.manifest: dict[str, Any] = msgspec.json.decode(kept["manifest"]) if kept else {}
        self.store = MemoryStore()
        self.store.write(kept.get("rows", {}))

    def save(self, manifest: dict[str, Any]) -> None:
        """Keep a checkpoint in place of the one before."""
        rows = dict(self.store.scan(*_EVERYTHING))
        self._kept.update(number=self.number, rows=rows, manifest=msgspec.json.encode(manifest))

    def close(self) -> None:
        """Close the store."""
        self.store.close()


class LocalDriver(Engine):
    """Runs scripts on the embedded engine, in this process."""

    name = "local"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.RESCALE}

    def execute(self, case: Case, options: RunOptions) -> Result:
        """See `Engine.execute`."""
        return _Run(case, options).result()


class _Run:
    """One case: the engines that play it, one after another, and what outlives them."""

    def __init__(self, case: Case, options: RunOptions) -> None:
        if options.workers > 1:
            msg = f"engine 'local': scripts run with one worker, got workers={options.workers}; leave it out"
            raise UnsupportedError(msg)
        script = Script(case.script)
        self.scripted = case.watermarks == "script"
        if not self.scripted and script.has(Advance):
            msg = "script: no advance(...) with watermarks='pipeline', where events and idleness move the watermark"
            raise PlanError(msg)
        self.pipeline, encode = plan(case.operators, script, watermarks=case.watermarks)
        every = options.checkpoint_every
        if every is None:
            every = 2 if script.has(Crash) and not script.has(Checkpoint) else 0
        self.player = Player(script, encode, checkpoint_every=every, end=case.end)
        self.options = options
        self.sink = ScriptSink()
        self.sides = {name: ScriptSink() for name in self.pipeline.sides}
        self.kept: dict[str, Any] = {}
        self.manifest: dict[str, Any] = {}
        self.stored: StoredState | None = None

    def result(self) -> Result:
        with ExitStack() as stack:
            folder: Path | None = None
            if self.options.store == "rocksdb":
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamml-script-")))
            while not self.player.ended:
                self._play(folder)
        assert self.stored is not None
        return Result(
            main=self.sink.done,
            sides={name: sink.done for name, sink in self.sides.items()},
            watermark=self.player.script.watermarks[-1] if self.scripted else self.stored.watermark,
            figures={"crashes": self.player.crashes, "checkpoints": self.player.checkpoints},
            read_state=self.stored.of,
            stored=self.stored.rows,
        )

    def _play(self, folder: Path | None) -> None:
        from streamml.local import LocalEngine, LocalOptions
        from streamml.local.storage import Storage

        player, kept = self.player, self.kept
        local = LocalOptions(
            state_dir=folder, batch_size=self.options.batch_size, checkpoint_interval="1d", fsync=False, poll=0
        )
        storages: list[Any] = []

        def storage() -> Any:
            made: Any = MemoryStorage(kept) if folder is None else Storage(local, self.pipeline.name)
            save = made.save

            def recording(manifest: dict[str, Any]) -> Any:
                self.manifest = manifest
                return save(manifest)

            made.save = recording
            storages.append(made)
            return made

        player.tracker = ScriptTracker() if self.scripted else None
        engine = LocalEngine(
            self.pipeline,
            {spec.tag: _source(player, self.pipeline, spec.tag) for spec in self.pipeline.sources},
            self.sink,
            self.sides,
            options=local,
            models=self.options.models,
            clock=player.clock,
            tracker=player.tracker,
            storage=storage,
        )

        def at_end() -> None:
            engine.checkpoint()
            self.stored = StoredState(self.pipeline, storages[-1].store, self.manifest, player.clock())

        player.control = Control(engine.stop, engine.checkpoint, at_end)
        try:
            engine.run()
        except Killed:
            return


def _source(player: Player, pipeline: Pipeline, tag: str) -> ScriptSource:
    alone = len(pipeline.sources) == 1 and tag not in player.script.sources
    return ScriptSource(player, "main" if alone else tag)
