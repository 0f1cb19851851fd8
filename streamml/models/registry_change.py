"""How a change of what is rolled out is written: decided on the history, appended unless that has moved on."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

from streamml.errors import ModelError, PlanError
from streamml.models.policy import Policy
from streamml.models.registry import Conflict, Registry, now
from streamml.models.rollout import Guard, History, Rollout, Split
from streamml.times import MIN_TIME

__all__ = ["LEAD", "Change", "Decide", "How", "champions", "change", "effective_time", "no_champion", "who_am_i"]

LEAD = 10_000
"""Milliseconds from now until a rollout holds, unless a time is given: by then, running jobs have loaded it."""


class How(TypedDict, total=False):
    """Options that all of them take.

    Attributes:
        alias: the alias; default `prod`.
        effective: event time in milliseconds from which it holds; default `lead` from now.
        lead: milliseconds from now, when no time is given; default 10 seconds, enough for running jobs to load it.
        backdate: allow a time in the past, which changes what a replay gives; default no.
        who: who does it; default the user and machine.
        why: the reason, for the audit.
        at: wall clock in milliseconds; default now.
        policy: code that may run, keys that are trusted; default from the environment.
    """

    alias: str
    effective: int | None
    lead: int
    backdate: bool
    who: str | None
    why: str
    at: int | None
    policy: Policy | None


class Change(NamedTuple):
    """What is to hold from now on, see `Rollout`."""

    champion: int
    splits: tuple[Split, ...] = ()
    shadows: tuple[int, ...] = ()
    guard: Guard | None = None


Decide = Callable[[Rollout | None, Sequence[Rollout]], Change]
"""Says what is to hold from what holds now (None: no champion) and all that held until then, that one last."""


def change(registry: Registry, name: str, action: str, decide: Decide, how: How) -> Rollout:
    """Append the record that `decide` gives for what holds at the time from which it is to hold.

    Raises:
        ModelError: `decide` refuses, or the registry can't be written.
        PlanError: the time is in the past.
    """
    alias = how.get("alias", "prod")
    while True:
        records = registry.records(name)
        effective = effective_time(name, how)
        known = [record for record in records if record.alias == alias]
        spans = [span for span in History(known).spans if span.effective <= effective] if known else []
        current = History(known).at(effective) if known else _implied(registry, name, alias)
        if current is not None and current.action == "retire":
            current = None
        chosen = decide(current, spans or [current] if current else spans)
        try:
            return registry.append(
                name,
                alias,
                action,
                effective=effective,
                champion=chosen.champion,
                splits=chosen.splits,
                shadows=chosen.shadows,
                guard=chosen.guard,
                who=how.get("who") or who_am_i(),
                why=how.get("why", ""),
                at=how.get("at") or now(),
                after=len(records),
            )
        except Conflict:
            continue


def _implied(registry: Registry, name: str, alias: str) -> Rollout | None:
    """Return what holds without a history: nothing, but for `prod`, which then is the highest version."""
    versions = registry.versions(name)
    if alias != "prod" or not versions:
        return None
    return Rollout(number=0, alias=alias, action="implied", effective=MIN_TIME, champion=versions[-1])


def effective_time(name: str, how: How) -> int:
    """Return the event time from which a change is to hold.

    Raises:
        PlanError: it is in the past, and that is not allowed.
    """
    at = how.get("at") or now()
    given = how.get("effective")
    if given is None:
        return at + how.get("lead", LEAD)
    if given < at and not how.get("backdate", False):
        msg = (
            f"model {name}: wanted a time from now on, got one that is {(at - given) / 1000:.0f} s in the past; what "
            "was scored since would come out otherwise in a replay. Leave the time out, or allow it: backdate"
        )
        raise PlanError(msg)
    return given


def champions(rollouts: Sequence[Rollout]) -> list[int]:
    """Return the champions that can be gone back to, the one in force last.

    >>> def rollout(action, champion):
    ...     return Rollout(number=1, alias="prod", action=action, effective=0, champion=champion)
    >>> story = [("promote", 1), ("promote", 2), ("canary", 2), ("promote", 3), ("rollback", 2)]
    >>> champions([rollout(*step) for step in story])
    [1, 2]
    """
    champions: list[int] = []
    for rollout in rollouts:
        if rollout.action in ("rollback", "refuse") and rollout.champion in champions:
            while champions[-1] != rollout.champion:
                champions.pop()
        elif not champions or champions[-1] != rollout.champion:
            champions.append(rollout.champion)
    return champions


def who_am_i() -> str:
    """Return the user and the machine, for the audit."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def no_champion(name: str, how: How) -> ModelError:
    """Return the error for an alias that has no champion, or was retired."""
    alias = how.get("alias", "prod")
    msg = f"model {name}@{alias}: has no champion; name one first: `streamml models promote {name}:VERSION`"
    return ModelError(msg if alias == "prod" else f"{msg[:-1]} --alias {alias}`")
