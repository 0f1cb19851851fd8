"""A registry that mirrors MLflow's: versions become bundles with the same numbers, aliases and stages rollouts.

MLflow has no exclusive writes, no history of aliases, and its aliases change without a time. So no job follows it: one
process mirrors it into a registry of streamml's, and jobs follow that.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from streamml.errors import ModelError, StreamMLError
from streamml.models.bundle import Bundle
from streamml.models.mlflow_bundle import bundle_from_mlflow, origin
from streamml.models.mlflow_rollout import RULES, Rule, Wanted, roll_out, wanted_of
from streamml.models.mlflow_server import MlflowServer, MlflowVersion, RegisteredModel
from streamml.models.policy import Policy
from streamml.models.registry import Registry
from streamml.models.registry_change import LEAD
from streamml.models.rolling import write_down_prod
from streamml.models.rollout import Rollout

__all__ = ["MlflowMirror", "Step", "watch"]

_LONGEST = 60.0
"""Most seconds between two tries while MLflow or the registry is gone."""


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a pass over MLflow has done, or could not do.

    Attributes:
        model: name of the model.
        what: `added` (a version), `refused` (a version that can't be a bundle), `rollout` (a record was written),
            `blocked` (what an alias or stage asks for can't be done).
        text: what was done, or why not.
        version: the version, if it is about one.
        record: the record that was written.
    """

    model: str
    what: str
    text: str
    version: int | None = None
    record: Rollout | None = None


class MlflowMirror:
    """Brings what is new in MLflow's registry into one of streamml's; each call of `sync` is one pass.

    A pass that is cut off anywhere is finished by the next one, and nothing is written twice: what was done is looked
    up in the registry, not remembered. Two mirrors at once are no harm.

    Args:
        server: where the models come from.
        registry: where they go.
        names: the models; none for all.
        rules: what aliases and stages mean; see `Rule`.
        lead: milliseconds from a change's discovery until it holds, in which running jobs load the version.
        sign: private key with which bundles are signed.
        policy: which code may run, see `bundle_from_mlflow`; default: from the environment.
    """

    def __init__(
        self,
        server: MlflowServer,
        registry: Registry,
        names: Sequence[str] = (),
        *,
        rules: Sequence[Rule] = RULES,
        lead: int = LEAD,
        sign: Path | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.server, self.registry, self.names = server, registry, tuple(names)
        self._rules, self._lead, self._sign, self._policy = tuple(rules), lead, sign, policy
        self._checked: set[tuple[str, int, int]] = set()
        self._refused: dict[bytes, Step] = {}  # so that a watch does not fetch again what is refused each time

    def sync(self) -> list[Step]:
        """Make one pass, and return what was done and what could not be.

        Raises:
            NotThere: MLflow has no model of a name.
            ConnectorError: MLflow is gone.
            ModelError: the registry can't be read or written.
        """
        models = [self.server.model(name) for name in self.names] if self.names else self.server.models()
        return [step for model in models for step in self._model(model)]

    def _model(self, model: RegisteredModel) -> list[Step]:
        name = model.name
        if name.startswith(".") or set(name) & set(":@/\\"):
            return [
                Step(name, "blocked", "its name can't be one of a model here: it has ':', '@', '/' or a leading '.'")
            ]
        versions = [version for version in self.server.versions(name) if version.status == "READY"]
        wanted = wanted_of(model, versions, self._rules)
        prod = wanted.get("prod", Wanted())
        steps: list[Step] = []
        absent: dict[int, Step] = {}
        hold = "" if prod.champion is not None else prod.problem
        fresh = not self.registry.versions(name)
        for version in sorted(versions, key=lambda version: version.version != prod.champion):
            if hold and fresh:  # else this version would serve, since there is no other one
                text = f"it has to wait until it is known which version is to serve: {hold}"
                absent[version.version] = Step(name, "refused", text, version.version)
                continue
            step = self._version(model, version)
            if step is not None and step.what == "added":
                steps.append(step)
            elif step is not None:
                absent[version.version] = step
            if version.version == prod.champion:
                hold = absent[version.version].text if version.version in absent else ""
                if not hold and not any(record.alias == "prod" for record in self.registry.records(name)):
                    steps += self._roll_out(name, "prod", Wanted(prod.champion, named=prod.named))
        for alias, each in wanted.items():
            if gone := [version for version in each.versions if version in absent]:
                text = f"{name}@{alias}: {each.named[gone[0]]} is version {gone[0]}, which can't be here: see above"
                steps.append(Step(name, "blocked", text, gone[0]))
            else:
                steps += self._roll_out(name, alias, each)
        done = [step for step in steps if step.what != "blocked"]
        return [*done, *absent.values(), *(step for step in steps if step.what == "blocked")]

    def _roll_out(self, name: str, alias: str, wanted: Wanted) -> list[Step]:
        try:
            made = roll_out(self.registry, name, alias, wanted, lead=self._lead, policy=self._policy)
        except ModelError as exc:
            return [Step(name, "blocked", str(exc))]
        return [Step(name, "rollout", each.why, each.champion, each) for each in made]

    def _version(self, model: RegisteredModel, version: MlflowVersion) -> Step | None:
        """Bring a version over unless it is here; returns what was done, or why it can't be here."""
        name, number = version.name, version.version
        key = (name, number, version.creation_timestamp)
        if key in self._checked:
            return None
        if number in self.registry.versions(name):
            return self._same(version)
        asked = msgspec.json.encode((version, model.tags))
        if asked in self._refused:
            return self._refused[asked]
        tags = {tag.key: tag.value for tag in model.tags}
        with tempfile.TemporaryDirectory(prefix="streamml-mlflow-") as scratch:
            folder = Path(scratch) / "bundle"
            try:
                bundle = bundle_from_mlflow(
                    self.server, version, folder, tags=tags, sign=self._sign, policy=self._policy
                )
            except ModelError as exc:
                self._refused[asked] = Step(name, "refused", str(exc), number)
                return self._refused[asked]
            golden, _ = bundle.golden()
            write_down_prod(self.registry, name, "it was in force when the next version came from MLflow")
            if not self.registry.put(bundle):
                return self._taken(version)
        self._checked.add(key)
        said = bundle.manifest
        run = said.metadata["mlflow"].get("run_name")
        rows = max((len(each) for each in golden.values()), default=0)
        features = ", ".join(said.features) or "none named: operators can't give it columns; tag it features = a,b,c"
        text = f"{f'from run {run}, ' if run else ''}{rows} golden rows; features: {features}"
        return Step(name, "added", text, number)

    def _same(self, version: MlflowVersion) -> Step | None:
        """Refuse a version here that was made from something else."""
        name, number = version.name, version.version
        found = Bundle.load(self.registry.path(name, number)).manifest.metadata.get("mlflow") or {}
        if {key: found.get(key) for key in origin(version)} == origin(version):
            self._checked.add((name, number, version.creation_timestamp))
            return None
        made_from = found.get("source") or "something that is not in MLflow"
        text = (
            f"{self.registry.place} has a {name}:{number} that was made from {made_from}, not from {version.source}; "
            "mirror into a registry of its own, or give the model another name in MLflow"
        )
        return Step(name, "refused", text, number)

    def _taken(self, version: MlflowVersion) -> Step | None:
        """Say what took the number of a version meanwhile: another mirror, which was faster, or one that was killed."""
        name, number = version.name, version.version
        if number in self.registry.versions(name):
            return self._same(version)
        text = (
            f"another mirror writes it at this moment; if none is at work, one was killed: remove {name}/{number} in "
            f"{self.registry.place}"
        )
        return Step(name, "refused", text, number)


def watch(
    mirror: MlflowMirror,
    every: float,
    stop: threading.Event,
    tell: Callable[[Step], None],
    trouble: Callable[[str], None],
) -> None:
    """Make a pass again and again until told to stop. While MLflow or the registry is gone, it tries less often.

    Args:
        mirror: what makes the passes.
        every: seconds between two passes.
        stop: ends the watch after the pass that is under way.
        tell: gets what was done, and what can't be done once.
        trouble: gets a line when MLflow or the registry goes, and one when it is back.
    """
    standing: set[tuple[str, int | None, str]] = set()
    failures = 0
    while not stop.is_set():
        try:
            steps = mirror.sync()
        except StreamMLError as exc:
            if not failures:
                trouble(f"{exc}; what serves goes on, and this goes on trying")
            failures += 1
        else:
            if failures:
                trouble(f"MLflow {mirror.server.where}: back after {failures} failed passes")
            failures = 0
            for step in steps:
                if step.what in ("added", "rollout") or (step.model, step.version, step.text) not in standing:
                    tell(step)
            standing = {(step.model, step.version, step.text) for step in steps}
        longest = max(_LONGEST, every)
        wait = min(every * 2.0 ** min(failures, 20), longest)
        stop.wait(wait * random.uniform(0.75, 1.0) if failures else wait)
