"""One worker of a job: a process that `streamml.local.workers` starts, feeds and watches.

`python -m streamml.local.worker FD` reads one JSON line from standard input, what to run, and runs it. To file
descriptor FD it writes JSON lines: figures, and how it ended. Another line on its standard input says that all workers
of the segment before have ended. When its standard input ends, the process that started it is gone, and it ends at
once, as in a crash.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from streamml.errors import StreamMLError
from streamml.local.engine import LocalEngine
from streamml.local.parts import part_uri
from streamml.local.segments import Exchange
from streamml.local.share import Share
from streamml.local.together import to_plain
from streamml.observability.figures import RunFigures

__all__ = ["FAILED", "ORPHANED", "Place", "main"]

FAILED = 1
ORPHANED = 70
_NO_MORE = b""


@dataclass
class Place:
    """What a worker's factory needs to know to build its engine.

    A factory `module:function` gets the job's arguments and the place, and returns
    `LocalEngine(pipeline, sources, sink, sides, options=LocalOptions(state_dir=place.state_dir, ...),
    **place.engine)`, with sinks at `place.part(uri)`.

    Attributes:
        share: which part of the job it has.
        state_dir: its own state folder.
        engine: arguments that it has to pass to `LocalEngine`.
        kinds: for each side output, what is counted by kind; the factory may fill it.
    """

    share: Share
    state_dir: Path
    engine: dict[str, Any] = field(default_factory=dict)
    kinds: Callable[[], Mapping[str, Mapping[str, int]]] = dict

    def part(self, uri: str) -> str:
        """Return where this worker's part of an output goes."""
        return part_uri(uri, self.share)


class _Line:
    """The line to the process that started this one."""

    def __init__(self, fd: int, place: Place) -> None:
        self._fd = fd
        self._place = place
        self.engine: LocalEngine | None = None

    def say(self, **message: Any) -> None:
        """Send a message."""
        data = msgspec.json.encode(message) + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def progress(self, figures: RunFigures) -> None:
        """Send figures, and from which checkpoint it went on."""
        assert self.engine is not None
        self.say(resumed=self.engine.resumed, figures=to_plain(figures))

    def step(self, name: str) -> None:
        """Send what is counted up to a checkpoint that is being written."""
        if name == "state flushed" and self.engine is not None:
            self.say(resumed=self.engine.resumed, counted=[self.engine.checkpoint_number, self.counted()])

    def counted(self) -> dict[str, Any]:
        """Return figures and counts of side records."""
        assert self.engine is not None
        meter = self.engine.meter
        return {"figures": to_plain(meter.figures()), "sides": dict(meter.side_counts), "kinds": self._place.kinds()}


def main() -> int:
    """Run a worker; returns the exit code."""
    lines = _Input()
    request = msgspec.json.decode(lines.next())
    ended = threading.Event()
    if request["ended"]:
        ended.set()
    threading.Thread(target=_watch, args=(lines, ended), daemon=True).start()
    sys.path[:] = request["path"]
    share = Share(**request["share"])
    place = Place(share, Path(request["state_dir"]))
    line = _Line(int(sys.argv[1]), place)
    told = {name: request[name] for name in ("goal", "ends")}
    place.engine = {"share": share, **told, "on_progress": line.progress, "on_step": line.step}
    if share.segments > 1:
        place.engine["exchange"] = Exchange(Path(request["home"]), ended.is_set)
    stopped = _stop_on_sigterm(line)
    try:
        module, _, name = request["make"].partition(":")
        line.engine = engine = getattr(importlib.import_module(module), name)(request["arguments"], place)
        if stopped.is_set():
            engine.stop()
        result = engine.run()
        line.say(
            resumed=engine.resumed,
            end={
                "finished": result.finished,
                "nothing_new": result.nothing_new,
                "stopped": stopped.is_set(),
                "problems": result.problems,
                **line.counted(),
            },
        )
    except StreamMLError as exc:
        if request["debug"]:
            traceback.print_exc()
        line.say(error={"type": type(exc).__name__, "message": str(exc)})
        return FAILED
    except Exception as exc:
        traceback.print_exc()
        line.say(crash=f"{type(exc).__name__}: {exc}")
        return FAILED
    return 0


def _stop_on_sigterm(line: _Line) -> threading.Event:
    """Stop in order when told by SIGTERM. Ctrl-C in a terminal reaches all; the first process tells the others."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        if line.engine is not None:
            line.engine.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stopped


class _Input:
    """Lines of standard input. It is read by its descriptor: a thread that waits in `sys.stdin` can't be ended."""

    def __init__(self) -> None:
        self._rest = b""

    def next(self) -> bytes:
        """Return the next line; nothing when there is no more."""
        while b"\n" not in self._rest:
            data = os.read(0, 65536)
            if data == _NO_MORE:
                return data
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _watch(lines: _Input, ended: threading.Event) -> None:
    """Take notice that the workers before have ended; end this process when the one that started it is gone."""
    while lines.next() != _NO_MORE:
        ended.set()
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
