"""The Beam host of a stage, without Beam in it: one stage runtime for each key group, shared by a process."""

from __future__ import annotations

import atexit
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from streamml.beam.envelope import Envelopes
from streamml.beam.group import Cells, Group, Head
from streamml.beam.settings import StageSettings
from streamml.beam.watermark import next_look
from streamml.contract import Opening
from streamml.errors import StateError
from streamml.pickling import dumps, loads
from streamml.pipeline import RUNTIME_SIDES, SourceSpec, StageSpec
from streamml.runtime import Output, StageRuntime
from streamml.state.memory import MemoryStore

__all__ = ["HostPlan", "StageHost", "borrow", "give_back"]

_LEAST_CACHE = 1 << 20


@dataclass(frozen=True)
class HostPlan:
    """What a host has to know of the pipeline.

    Attributes:
        token: tells the stages of a process apart.
        pipeline: name of the pipeline.
        stage: the stage that it hosts.
        sources: the pipeline's sources.
        settings: how it runs.
        tag: the source whose records come in; None when rows come from a step before.
        following: the stage that comes next; None for the last one.
        selected: fields of the main output, None for all.
        groups: number of key groups.
        marks: its rows take along the watermarks before them; for a stage that reads itself.
    """

    token: str
    pipeline: str
    stage: StageSpec
    sources: tuple[SourceSpec, ...]
    settings: StageSettings
    tag: str | None = None
    following: StageSpec | None = None
    selected: tuple[str, ...] | None = None
    groups: int = 128
    marks: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the stage's side outputs."""
        return tuple(dict.fromkeys((*RUNTIME_SIDES, *(side for op in self.stage.operators for side in op.sides))))

    def pickled(self) -> bytes:
        """Return it as a DoFn carries it; `borrow` reads it."""
        return pickle.dumps((self.token, dumps(self)))


class StageHost:
    """Runs a stage in one worker process, for all DoFns of the process that host it; models are loaded once.

    Beam may run several bundles of a stage at once, in threads; they take turns.
    """

    def __init__(self, plan: HostPlan) -> None:
        self.plan = plan
        self.lock = threading.RLock()
        self.users = 0
        self.envelopes = Envelopes([spec.schema for spec in plan.sources])
        operators = plan.stage.operators
        opening = Opening(plan.pipeline, models=plan.settings.models)
        self.template = StageRuntime(operators, MemoryStore(), groups=1, opening=opening)
        self._groups: dict[int, Group] = {}
        settings = plan.settings
        self._look: Callable[[int, int], int] = partial(next_look, step=settings.watermark_step, points=settings.points)
        ttls = [ttl for op in operators for s in op.bound_states().values() if (ttl := s.millis(op)) is not None]
        self._sweep_every = max(min(ttls) // 2, 60_000) if ttls else 0

    def close(self) -> None:
        """Close the operators."""
        self._groups.clear()
        self.template.close()

    def fresh(self) -> StageRuntime:
        """Return a runtime with empty state that no bundle shares."""
        return StageRuntime(self.plan.stage.operators, MemoryStore(), groups=1, like=self.template)

    def batch(self, number: int, payload: bytes, cells: Cells, now: int) -> Output | None:
        """Handle the rows of a key group; a payload of nothing only wakes the group up."""
        with self._at_work(number, cells, now) as group:
            if not payload:
                return None
            batch = self.envelopes.decode(payload)
            return group.wait(batch, now) if self.plan.settings.order == "event_time" else group.arrive(batch, now)

    def fired(self, number: int, timer: str, watermark: int, cells: Cells, now: int) -> Output | None:
        """Handle a timer of a key group."""
        with self._at_work(number, cells, now) as group:
            group.head.timers.pop(timer, None)
            return group.runtime.tick(now) if timer == "wall" else group.advance(watermark, now)

    @contextmanager
    def _at_work(self, number: int, cells: Cells, now: int) -> Iterator[Group]:
        with self.lock:
            group = self._take(number, cells)
            yield group
            group.save(cells, self._look, now)
            self._groups[number] = group  # not when something failed: then the bundle is done again
            self._trim()

    def _take(self, number: int, cells: Cells) -> Group:
        """Return a group as Beam has it: from memory if nobody changed it since, else read anew."""
        stored = cells.head.read()
        try:
            head = msgspec.msgpack.decode(stored, type=Head) if stored else Head()
        except msgspec.MsgspecError as exc:
            msg = (
                f"stage {self.plan.stage.name!r}, key group {number}: its state was written by another version of "
                f"streamml ({exc}). Run that version, or start the pipeline without the old state."
            )
            raise StateError(msg) from exc
        group = self._groups.pop(number, None)
        if group is not None and group.head.version == head.version:
            group.attach(cells)
            return group
        return Group(
            head,
            self.plan.stage.operators,
            self.template,
            self.envelopes,
            cache_bytes=max(self.plan.settings.cache_bytes // self.plan.groups, _LEAST_CACHE),
            sweep_every=self._sweep_every,
            cells=cells,
        )

    def _trim(self) -> None:
        """Forget the groups that were not used for longest, when all of them are too large; Beam has them."""
        size = sum(group.bytes for group in self._groups.values())
        while size > self.plan.settings.cache_bytes and len(self._groups) > 1:
            size -= self._groups.pop(next(iter(self._groups))).bytes


_hosts: dict[str, StageHost] = {}
_hosts_lock = threading.Lock()
_IDLE = 8
"""So many hosts that nobody uses are kept: some runners set a DoFn up anew for each bundle."""


def borrow(plan: bytes) -> StageHost:
    """Return this process's host of a stage, opened."""
    token, pickled = pickle.loads(plan)
    with _hosts_lock:
        host = _hosts.pop(token, None) or StageHost(loads(pickled))
        _hosts[token] = host
        host.users += 1
        return host


def give_back(host: StageHost) -> None:
    """Close the hosts that nobody uses any more, but for the last few."""
    with _hosts_lock:
        host.users -= 1
        idle = [token for token, each in _hosts.items() if not each.users]
        for token in idle[:-_IDLE]:
            _hosts.pop(token).close()


@atexit.register
def _close_all() -> None:
    for host in _hosts.values():
        host.close()
