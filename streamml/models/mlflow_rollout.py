"""What MLflow's aliases and stages ask for, and the record of a model's history that says so."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from streamml.errors import ModelError, PlanError
from streamml.models.bundle import Bundle
from streamml.models.mlflow_server import MlflowVersion, RegisteredModel
from streamml.models.policy import Policy
from streamml.models.registry import Conflict, Registry, now
from streamml.models.registry_change import LEAD, Change
from streamml.models.registry_checks import check_fit, check_version
from streamml.models.rollout import Guard, History, Rollout, Split
from streamml.times import MIN_TIME

__all__ = ["RULES", "Rule", "Wanted", "roll_out", "rule_of", "wanted_of"]

_ROLES = ("champion", "canary", "shadow", "ignore")
_BY = "mlflow"
"""How the name of who wrote a record begins when it says what MLflow said."""


class Rule(NamedTuple):
    """What an alias or a stage of MLflow means.

    Attributes:
        pattern: name of the alias, with `*` for any text, or `stage:` with the name of a stage.
        role: `champion`, `canary`, `shadow` or `ignore`.
        alias: the alias of the registry for which it is that.
    """

    pattern: str
    role: str
    alias: str = "prod"


RULES = (
    Rule("champion", "champion"),
    Rule("prod", "champion"),
    Rule("stage:Production", "champion"),
    Rule("canary", "canary"),
    Rule("shadow*", "shadow"),
)
"""What counts unless something else is said."""


class Wanted(msgspec.Struct, frozen=True):
    """What MLflow asks for, for one alias of the registry.

    Attributes:
        champion: the version that is to score; None when MLflow says nothing of it.
        canary: the version that is to score a share of the keys, if any.
        percent: its share.
        shadows: the versions that are to score without effect.
        named: the aliases and stages that say so, by version.
        problem: why that can't be done as it is said: several champions, or a canary without a share.
    """

    champion: int | None = None
    canary: int | None = None
    percent: float = 0.0
    shadows: tuple[int, ...] = ()
    named: dict[int, str] = {}
    problem: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """All versions that it names."""
        found = (self.champion, self.canary, *self.shadows)
        return tuple(dict.fromkeys(version for version in found if version is not None))


def rule_of(text: str) -> Rule:
    """Read a rule.

    Raises:
        PlanError: it is none.

    >>> rule_of("staging=champion@staging")
    Rule(pattern='staging', role='champion', alias='staging')
    """
    pattern, _, meant = text.partition("=")
    role, _, alias = meant.partition("@")
    if not pattern or role not in _ROLES or set(alias) & set(":/\\@"):
        msg = f"{text!r}: wanted NAME=ROLE or NAME=ROLE@ALIAS, such as stage:Staging=shadow; roles: {', '.join(_ROLES)}"
        raise PlanError(msg)
    return Rule(pattern, role, alias or "prod")


def wanted_of(
    model: RegisteredModel, versions: Sequence[MlflowVersion], rules: Sequence[Rule] = RULES
) -> dict[str, Wanted]:
    """Return what a model's aliases and stages ask for, by alias of the registry.

    Each alias or stage means what the first rule says that fits it. When several of them name a champion, or a canary,
    the one whose rule comes first counts.
    """
    names = [(alias.alias, alias.version) for alias in model.aliases]
    names += [(f"stage:{each.current_stage}", each.version) for each in versions if each.current_stage != "None"]
    tags = {each.version: {tag.key: tag.value for tag in (*model.tags, *each.tags)} for each in versions}
    found: dict[str, dict[str, list[tuple[int, str, int]]]] = {}
    for name, version in names:
        at = next((at for at, rule in enumerate(rules) if fnmatchcase(name, rule.pattern)), None)
        if at is not None and rules[at].role != "ignore":
            found.setdefault(rules[at].alias, {}).setdefault(rules[at].role, []).append((at, name, version))
    return {alias: _wanted(model.name, said, tags) for alias, said in found.items()}


def _wanted(
    model: str, said: Mapping[str, Sequence[tuple[int, str, int]]], tags: Mapping[int, Mapping[str, str]]
) -> Wanted:
    """Return what the aliases and stages of each role ask for together, given as place of the rule, name, version."""
    one: dict[str, int] = {}
    problem = ""
    for role in ("champion", "canary"):
        first = min((at for at, _, _ in said.get(role, ())), default=None)
        found = {version: name for at, name, version in said.get(role, ()) if at == first}
        if len(found) > 1:
            listed = ", ".join(f"{name} on {version}" for version, name in sorted(found.items()))
            problem = f"{model}: MLflow names several versions as {role} ({listed}); leave it on one, or set an alias"
        elif found:
            one[role] = next(iter(found))
    champion, canary = one.get("champion"), one.get("canary")
    percent = 0.0
    if canary == champion:
        canary = None
    if canary is not None:
        text = tags.get(canary, {}).get("canary_percent")
        with contextlib.suppress(ValueError):
            percent = float(text or "")
        if not 0 < percent < 100:
            got = "none" if text is None else repr(text)
            problem = problem or (
                f"{model}:{canary}: as a canary it needs the tag canary_percent, a number above 0 and below 100, "
                f"got {got}"
            )
    shadows = {version for _, _, version in said.get("shadow", ())} - {champion, canary}
    named: dict[int, str] = {}
    for _, name, version in (each for role in ("champion", "canary", "shadow") for each in said.get(role, ())):
        named[version] = f"{named[version]}, {name}" if version in named else name
    return Wanted(champion, canary, percent, tuple(sorted(shadows)), named, problem)


def roll_out(
    registry: Registry,
    name: str,
    alias: str,
    wanted: Wanted,
    *,
    lead: int = LEAD,
    policy: Policy | None = None,
) -> list[Rollout]:
    """Write what MLflow asks for into the history, and return the records; none when it asks for what it did last.

    So what others write is left alone, such as the rollback of a canary by a job, until MLflow says something new.

    Args:
        registry: where the versions are.
        name: name of the model.
        alias: alias of the registry.
        wanted: what MLflow asks for.
        lead: milliseconds from now until it holds.
        policy: which code may run; default: from the environment.

    Raises:
        ModelError: a version is not there, is broken or does not fit; or there is no champion.
    """
    if wanted.problem:
        raise ModelError(wanted.problem)
    made: list[Rollout] = []
    bundles: dict[int, Bundle] = {}
    while True:
        records = registry.records(name)
        known = [record for record in records if record.alias == alias]
        at = now()
        current = History(known).at(at + lead) if known else None
        last = next((r for r in reversed(known) if r.who.partition(":")[0] == _BY), current)
        change = _change(wanted, current)
        if change is None or (last is not None and _said(change, wanted) == _said(last, wanted)):
            if change is None and wanted.versions:
                msg = f"{name}@{alias}: has no champion; in MLflow, set the alias that names it (champion, by default)"
                raise ModelError(msg)
            return made
        effective = at + lead
        if last is None:  # nothing was served yet, so the champion holds from the first event on; the rest comes next
            change, effective = Change(change.champion), MIN_TIME
        for version in dict.fromkeys((change.champion, *(split.version for split in change.splits), *change.shadows)):
            if version not in bundles:
                bundles[version] = check_version(registry, name, version, policy)
            against = current.champion if current is not None and version == change.champion else change.champion
            if against != version:
                check_fit(registry, name, version, against)
        action, version = _action(change, last, current)
        with contextlib.suppress(Conflict):  # another writer was faster: look at what it wrote
            made.append(
                registry.append(
                    name, alias, action, effective=effective, champion=change.champion, splits=change.splits,
                    shadows=change.shadows, guard=change.guard, who=_who(bundles[version]),
                    why=_why(wanted, bundles), at=at, after=len(records),
                )
            )  # fmt: skip


def _change(wanted: Wanted, current: Rollout | None) -> Change | None:
    """Return what is to hold; None when there is no champion."""
    champion = wanted.champion if wanted.champion is not None else current.champion if current else None
    if champion is None:
        return None
    shadows = tuple(version for version in wanted.shadows if version != champion)
    if wanted.canary is None or wanted.canary == champion:
        return Change(champion, (), shadows)
    kept = current.guard if current is not None and current.canary == wanted.canary else None
    return Change(champion, (Split(wanted.canary, wanted.percent),), shadows, kept or Guard())


def _said(state: Change | Rollout, wanted: Wanted) -> tuple[object, ...]:
    """Return of a state what MLflow has a say in."""
    canaries = [(split.version, split.percent) for split in state.splits if split.role == "canary"]
    return (state.champion if wanted.champion is not None else None, canaries, sorted(state.shadows))


def _action(change: Change, last: Rollout | None, current: Rollout | None) -> tuple[str, int]:
    """Return the action that a record is called by, and the version that it is about."""
    if current is None or current.champion != change.champion or current.action == "retire":
        return "promote", change.champion
    if change.splits and change.splits != current.splits:
        return "canary", change.splits[0].version
    if last is not None and last.splits and not change.splits:
        return "rollback", change.champion
    more = [version for version in change.shadows if version not in current.shadows]
    return "shadow", more[0] if more else change.champion


def _who(bundle: Bundle) -> str:
    """Return the user that MLflow knows: who made the version, since it does not say who moves an alias."""
    owner = bundle.manifest.metadata.get("owner")
    return f"{_BY}:{owner}" if owner else _BY


def _why(wanted: Wanted, bundles: Mapping[int, Bundle]) -> str:
    parts = []
    for version, names in wanted.named.items():
        if version in bundles:
            about = bundles[version].manifest.metadata.get("mlflow") or {}
            run = f" of run {about.get('run_name')} ({about['run_id']})" if about.get("run_id") else ""
            parts.append(f"{names} is version {version}{run}")
    return "in MLflow, " + "; ".join(parts or ["nothing runs beside the champion any more"])
