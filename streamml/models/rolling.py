"""What can be done with the versions of a model: promote, canary, variants, shadow, rollback, refuse, retire.

Each reads the history, decides what is to hold, and appends one record. When another writer was faster, it decides
anew on what that one wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from streamml.errors import ModelError, PlanError
from streamml.models.registry import Conflict, Registry, now
from streamml.models.registry_change import Change, How, champions, change, effective_time, no_champion, who_am_i
from streamml.models.registry_checks import check_fit, check_version
from streamml.models.rollout import Guard, History, Rollout, Split
from streamml.times import MIN_TIME

__all__ = [
    "How",
    "canary",
    "promote",
    "push",
    "refuse",
    "retire",
    "rollback",
    "shadow",
    "taken_back",
    "variants",
    "who_am_i",
    "write_down_prod",
]


def promote(registry: Registry, name: str, version: int, **how: Unpack[How]) -> Rollout:
    """Make a version the champion. Canary and variants end; the shadows go on, but for the version itself.

    Raises:
        ModelError: the version is broken or does not fit where the champion serves.
        PlanError: the time is in the past.
    """

    def decide(current: Rollout | None, _: Sequence[Rollout]) -> Change:
        if current is not None and current.number and current.champion != version:
            check_fit(registry, name, version, current.champion)
        return Change(version, shadows=_without(current.shadows if current else (), version))

    check_version(registry, name, version, how.get("policy"))
    return change(registry, name, "promote", decide, how)


def canary(
    registry: Registry,
    name: str,
    version: int,
    percent: float,
    guard: Guard | None = None,
    **how: Unpack[How],
) -> Rollout:
    """Let a version score a share of the keys, watched by a guard. A canary that is running is replaced.

    Args:
        registry: where the model lies.
        name: name of the model.
        version: the version.
        percent: share of the keys, above 0 and below 100. A share that grows keeps the keys that it has.
        guard: its limits; default those that it has, or `Guard()`.
        how: see `How`.

    Raises:
        ModelError: the version is broken or does not fit, or there is no champion yet.
        PlanError: the share or the time is wrong, the version is the champion, or variants are running.
    """

    def decide(current: Rollout | None, _: Sequence[Rollout]) -> Change:
        base = _running(name, version, current, how)
        if any(split.role != "canary" for split in base.splits):
            running = _shares(base.splits)
            msg = f"canary {name}:{version}: variants are running ({running}); end them first: promote one, or rollback"
            raise PlanError(msg)
        check_fit(registry, name, version, base.champion)
        splits = (_split(name, version, percent, "canary"),)
        kept = guard or (base.guard if base.canary == version else None)
        return Change(base.champion, splits, _without(base.shadows, version), kept or Guard())

    check_version(registry, name, version, how.get("policy"))
    return change(registry, name, "canary", decide, how)


def variants(registry: Registry, name: str, shares: Mapping[int, float], **how: Unpack[How]) -> Rollout:
    """Let versions score a share of the keys each, as the arms of an A/B test; the champion scores the rest.

    Args:
        registry: where the model lies.
        name: name of the model.
        shares: percent of the keys for each version other than the champion.
        how: see `How`.

    Raises:
        ModelError: a version is broken or does not fit, or there is no champion yet.
        PlanError: the shares or the time are wrong, or one of them is the champion.
    """

    def decide(current: Rollout | None, _: Sequence[Rollout]) -> Change:
        splits = tuple(_split(name, version, share, "variant") for version, share in shares.items())
        if not splits or sum(shares.values()) > 100:
            msg = f"variants of {name}: wanted shares of together at most 100 %, got {_shares(splits) or 'none'}"
            raise PlanError(msg)
        for version in shares:
            base = _running(name, version, current, how)
            check_fit(registry, name, version, base.champion)
        return Change(base.champion, splits, _without(base.shadows, *shares))

    for version in shares:
        check_version(registry, name, version, how.get("policy"))
    return change(registry, name, "variants", decide, how)


def shadow(registry: Registry, name: str, versions: Sequence[int], *, end: bool = False, **how: Unpack[How]) -> Rollout:
    """Let versions score what the champion scores, without effect, or end that. What else is running goes on.

    Args:
        registry: where the model lies.
        name: name of the model.
        versions: the versions.
        end: end the shadows of these versions.
        how: see `How`.

    Raises:
        ModelError: a version is broken or does not fit, or there is no champion yet.
        PlanError: the time is wrong, a version scores already, or there is no such shadow to end.
    """

    def decide(current: Rollout | None, _: Sequence[Rollout]) -> Change:
        for version in versions:
            base = _running(name, version, current, how)
            if end and version not in base.shadows:
                msg = f"shadow {name}:{version}: there is none to end; shadows: {_list(base.shadows)}"
                raise PlanError(msg)
            if not end:
                check_fit(registry, name, version, base.champion)
            if not end and any(split.version == version for split in base.splits):
                msg = f"shadow {name}:{version}: it scores a share of the keys already ({_shares(base.splits)})"
                raise PlanError(msg)
        rest = _without(base.shadows, *versions)
        return Change(base.champion, base.splits, rest if end else (*rest, *versions), base.guard)

    if not versions:
        msg = f"shadow of {name}: wanted at least one version"
        raise PlanError(msg)
    for version in () if end else versions:
        check_version(registry, name, version, how.get("policy"))
    return change(registry, name, "shadow", decide, how)


def rollback(registry: Registry, name: str, **how: Unpack[How]) -> Rollout:
    """End the canary or the variants; when there are none, go back to the champion before the last promotion.

    Rolling back again goes back further. Shadows go on. The version is not checked again: this is for emergencies, and
    a job refuses a version that is broken.

    Raises:
        ModelError: there is nothing to go back to.
    """

    def decide(current: Rollout | None, before: Sequence[Rollout]) -> Change:
        if current is None:
            raise no_champion(name, how)
        if current.splits:
            return Change(current.champion, shadows=current.shadows)
        found = champions(before)
        if len(found) < 2:
            msg = f"rollback of {name}: there was no champion before version {current.champion}; promote another one"
            raise ModelError(msg)
        return Change(found[-2], shadows=_without(current.shadows, found[-2]))

    return change(registry, name, "rollback", decide, how)


def refuse(registry: Registry, name: str, version: int, **how: Unpack[How]) -> Rollout:
    """Take a version out of everything that holds or is planned; a champion gives way to the one before it.

    When it is only planned, this holds from the planned time on, so that the version never scores.

    Raises:
        ModelError: it is not in use, or is the only champion that there ever was.
    """

    def decide(current: Rollout | None, before: Sequence[Rollout]) -> Change:
        if current is None or version not in current.versions:
            msg = f"refuse {name}:{version}: it is not in use; see `streamml models history {name}`"
            raise ModelError(msg)
        left = [champion for champion in champions(before) if champion != version]
        if not left:
            msg = f"refuse {name}:{version}: it is the only champion so far; promote another one"
            raise ModelError(msg)
        champion = current.champion if current.champion != version else left[-1]
        splits = tuple(split for split in current.splits if split.version not in (version, champion))
        guard = current.guard if any(split.role == "canary" for split in splits) else None
        return Change(champion, splits, _without(current.shadows, version, champion), guard)

    if how.get("effective") is None:
        records = [record for record in registry.records(name) if record.alias == how.get("alias", "prod")]
        planned = [span.effective for span in History(records).spans if version in span.versions] if records else []
        if planned and min(planned) > effective_time(name, how):
            how["effective"] = min(planned)
    return change(registry, name, "refuse", decide, how)


def retire(registry: Registry, name: str, **how: Unpack[How]) -> Rollout:
    """Take an alias out of use: jobs that start with it later are refused; running ones and replays go on.

    Canary, variants and shadows end. Promoting a version brings the alias back.

    Raises:
        ModelError: there is no such alias.
    """

    def decide(current: Rollout | None, _: Sequence[Rollout]) -> Change:
        if current is None:
            raise no_champion(name, how)
        return Change(current.champion)

    return change(registry, name, "retire", decide, how)


def push(registry: Registry, name: str, bundle_folder: str | Path, **how: Unpack[How]) -> int:
    """Add a bundle as the next version. It changes nothing that runs: what `prod` means is written down first.

    Raises:
        ModelError: the bundle is damaged, or the registry can't be written.
    """
    why = "it was in force when the next version was pushed"
    write_down_prod(registry, name, why, who=how.get("who"), at=how.get("at"))
    return registry.add(name, bundle_folder)


def write_down_prod(registry: Registry, name: str, why: str, *, who: str | None = None, at: int | None = None) -> None:
    """Write down what `prod` means, where no rollout says so yet: before a version is added that it would mean instead.

    Raises:
        ModelError: the registry can't be written.
    """
    versions, records = registry.versions(name), registry.records(name)
    if not versions or any(record.alias == "prod" for record in records):
        return
    try:
        registry.append(
            name,
            "prod",
            "promote",
            effective=MIN_TIME,
            champion=versions[-1],
            who=who or who_am_i(),
            why=why,
            at=at or now(),
            after=len(records),
        )
    except Conflict:
        write_down_prod(registry, name, why, who=who, at=at)


def taken_back(records: Sequence[Rollout], made: Rollout) -> list[Rollout]:
    """Return what was planned for the time of a new record or later, which it takes back."""
    before = [record for record in records if record.alias == made.alias and record.number < made.number]
    return [span for span in History(before).spans if span.effective >= made.effective] if before else []


def _running(name: str, version: int, current: Rollout | None, how: How) -> Rollout:
    """Return what holds, for a version that is to run beside the champion."""
    if current is None:
        raise no_champion(name, how)
    if current.champion == version:
        implied = " (without a history, the highest version is: promote the one that is to score first)"
        msg = f"{name}:{version}: is the champion{implied if not current.number else ''}; name another version"
        raise PlanError(msg)
    return current


def _split(name: str, version: int, percent: float, role: str) -> Split:
    if not 0 < percent < 100 and not (role == "variant" and percent == 100):
        msg = f"{role} {name}:{version}: wanted a share of the keys above 0 % and below 100 %, got {percent} %"
        raise PlanError(msg)
    return Split(version, float(percent), role)


def _without(versions: Sequence[int], *removed: int) -> tuple[int, ...]:
    return tuple(version for version in versions if version not in removed)


def _shares(splits: Sequence[Split]) -> str:
    return ", ".join(f"version {split.version} at {split.percent:g} %" for split in splits)


def _list(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
