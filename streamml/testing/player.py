"""Plays a script to an engine as its sources: watermarks between any two rows, faults between micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamml.ports import Chunk
from streamml.testing.script import (
    Advance,
    Checkpoint,
    Crash,
    Idle,
    ProcessingTime,
    Rescale,
    Restart,
    Script,
    ScriptEvent,
    Step,
)
from streamml.watermarks import WatermarkTracker

__all__ = ["Control", "Killed", "Player", "ScriptSource", "ScriptTracker"]

PARTITION = "0"


class Killed(BaseException):
    """Raised out of a source in place of `kill -9`; nothing may catch it but the driver."""


class ScriptTracker(WatermarkTracker):
    """The watermark that a script dictates: one for each run of a chunk, and one between chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[int] = []
        self._next: int | None = None

    def plan(self, runs: Sequence[int]) -> None:
        """Say which watermark is in force for each run of the chunk that comes next."""
        self._runs = list(runs)

    def advance(self, watermark: int) -> None:
        """Say where the watermark goes before the next chunk."""
        self._next = watermark

    def observe(self, partition: str, times: list[int], now: int) -> list[int]:
        self.current = self._runs.pop(0)
        return [self.current] * len(times)

    def finish(self, partition: str) -> None:
        """The end of a source moves nothing here."""  # noqa: D401

    def idle(self, now: int) -> int:
        if self._next is not None:
            self.current, self._next = self._next, None
        return self.current


class Control:
    """What a player asks of the engine that it plays to; `stop` and `checkpoint` are the engine's."""

    def __init__(self, stop: Callable[[], None], checkpoint: Callable[[], None], at_end: Callable[[], None]) -> None:
        self.stop = stop
        self.checkpoint = checkpoint
        self.at_end = at_end


class Player:
    """Where a script stands. It outlives the engines that it is played to.

    The wall clock is part of the script: what is read once more after a crash sees the same times again.

    Args:
        script: what to play.
        encode: from an event to the payload that a source hands out.
        checkpoint_every: a checkpoint after so many events; 0 for none.
        end: whether the input ends after the script.
    """

    def __init__(
        self, script: Script, encode: Callable[[ScriptEvent], Any], *, checkpoint_every: int = 0, end: bool = True
    ) -> None:
        self.script = script
        self.tracker: ScriptTracker | None = None
        self.control: Control | None = None
        self.finished = False
        self.crashes = self.checkpoints = 0
        self._encode = encode
        self._every = checkpoint_every
        self._end = end
        self._at = 0
        self._since = 0
        self._done: set[int] = set()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether every step was played."""
        return self._ended

    def clock(self) -> int:
        """Return the wall clock."""
        return self.script.clocks[self._at]

    def position(self) -> int:
        """Return the number of the next step."""
        return self._at

    def seek(self, position: int) -> None:
        """Go on from a step."""
        self._at = position
        self._since = 0
        self.finished = False

    def poll(self, source: str, limit: int) -> Chunk | None:
        """Return the next rows of a source, at most `limit`; None when something else has its turn."""
        steps = self.script.steps
        start = self._at
        payloads: list[Any] = []
        offsets: list[int] = []
        counts, planned = [0], [self.script.watermarks[start]]
        while self._at < len(steps):
            step = steps[self._at]
            if isinstance(step, ScriptEvent):
                if step.source != source or len(payloads) == limit:
                    break
                if self._every and self._since >= self._every:
                    if not payloads:
                        self._checkpoint()
                        continue
                    break
                payloads.append(self._encode(step))
                offsets.append(self.script.offsets[self._at])
                counts[-1] += 1
                self._at += 1
                self._since += 1
            elif isinstance(step, Advance) and payloads and limit > 1:
                self._at += 1
                counts.append(0)
                planned.append(step.to)
            elif payloads:
                break
            else:
                self._act(step, self._at)
                return None
        if payloads:
            if self.tracker is not None:
                self.tracker.plan(planned)
            return Chunk(payloads, [(PARTITION, count) for count in counts], offsets)
        if self._at == len(steps):
            self._finish()
        return None

    def _act(self, step: Step, number: int) -> None:
        assert self.control is not None
        match step:
            case Advance(to):
                if self.tracker is not None:
                    self.tracker.advance(to)
            case Checkpoint():
                self._at += 1
                self._checkpoint()
                return
            case Crash() if number not in self._done:
                self._done.add(number)
                self.crashes += 1
                raise Killed
            case Restart() | Rescale() if number not in self._done:
                self._done.add(number)
                self.control.stop()
            case ProcessingTime() | Idle() | Crash() | Restart() | Rescale():
                pass
        self._at += 1

    def _checkpoint(self) -> None:
        assert self.control is not None
        self._since = 0
        self.checkpoints += 1
        self.control.checkpoint()

    def _finish(self) -> None:
        assert self.control is not None
        self.control.at_end()
        self._ended = True
        if self._end:
            self.finished = True
        else:
            self.control.stop()


class ScriptSource:
    """One source of a script; see `streamml.ports.Source`."""

    replayable = True

    def __init__(self, player: Player, tag: str) -> None:
        self._player = player
        self._tag = tag

    def open(self, positions: Mapping[str, Any] | None) -> None:
        self._player.seek(positions["step"] if positions else 0)

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        return self._player.poll(self._tag, limit)

    def positions(self) -> dict[str, Any]:
        return {"step": self._player.position()}

    def partitions(self) -> Sequence[str]:
        return [PARTITION]

    @property
    def finished(self) -> bool:
        return self._player.finished

    def progress(self) -> float | None:
        return None

    def lag(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass
