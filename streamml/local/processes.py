"""One worker process as its supervisor sees it: start, lines that come from it, end."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streamml.local.share import Share
from streamml.observability.figures import RunFigures

__all__ = ["WorkerProcess"]

_BLOCK = 1 << 16


class _Lines:
    """Cuts what comes from a pipe into lines."""

    def __init__(self, fd: int, handle: Callable[[bytes], None]) -> None:
        self.fd = fd
        self._handle = handle
        self._rest = b""
        os.set_blocking(fd, False)

    def read(self) -> bool:
        """Hand out the lines that are there; returns whether more may come."""
        while True:
            try:
                block = os.read(self.fd, _BLOCK)
            except BlockingIOError:
                return True
            if not block:
                if self._rest:
                    self._handle(self._rest)
                    self._rest = b""
                return False
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                self._handle(line)


class WorkerProcess:
    """A worker, over all of its lives.

    Attributes:
        index: its number.
        segment: number of the segment that it runs.
        name: for messages.
        figures: what it said last; None while it starts.
        kept: what it counted in each life that is over, up to the checkpoint from which the next one went on:
            `figures`, `sides`, `kinds`.
        message: how it says that it ended: `end`, `error` or `crash`, with what goes with it.
        deaths: when it died, in monotonic seconds.
        start_at: when it is to be started again; None while it runs and once it has ended for good.
        said: the last lines of its standard error.
    """

    def __init__(self, share: Share, request: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.index = share.index
        self.segment = share.segment
        self.name = f"worker {share.index}" + (f" of segment {share.segment}" if share.segments > 1 else "")
        self.request = {**request, "ended": False}
        self.figures: RunFigures | None = None
        self.kept: list[dict[str, Any]] = []
        self.message: tuple[str, Any] | None = None
        self.deaths: deque[float] = deque()
        self.start_at: float | None = None
        self.said: deque[str] = deque(maxlen=20)
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[_Lines] = []
        self._counted: dict[int, dict[str, Any]] = {}  # by checkpoint; the next life says which one counts
        self._told_where = False

    @property
    def running(self) -> bool:
        """Whether its process is there, or its end was not looked at yet."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process."""
        return None if self._process is None else self._process.pid

    def start(self, selector: selectors.BaseSelector, lock: int) -> None:
        """Start its process."""
        self.start_at = self.figures = self.message = None
        self._told_where = False
        self.said.clear()
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamml.local.worker", str(writing)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing, lock),
            )
        finally:
            os.close(writing)
        assert self._process.stdin is not None and self._process.stderr is not None
        self._readers = [_Lines(reading, self._message), _Lines(self._process.stderr.fileno(), self._log)]
        for reader in self._readers:
            selector.register(reader.fd, selectors.EVENT_READ, (self, reader))
        self._send(msgspec.json.encode(self.request))

    def tell_ended(self) -> None:
        """Tell it that the workers of the segment before have all ended."""
        if not self.request["ended"]:
            self.request["ended"] = True
            self._send(b"ended")

    def _send(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died already, which is seen when it is waited for
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()

    def read(self, selector: selectors.BaseSelector, reader: Any) -> None:
        """Read what came from it."""
        if not reader.read():
            selector.unregister(reader.fd)

    def ended(self, selector: selectors.BaseSelector) -> int | None:
        """Return the exit code once its process has ended, and forget the process; None while it runs."""
        process = self._process
        if process is None or (code := process.poll()) is None:
            return None
        for reader in self._readers:
            reader.read()
            with contextlib.suppress(KeyError):
                selector.unregister(reader.fd)
        self._forget()
        return code

    def settle(self) -> None:
        """Take the last checkpoint for the one that counts: no other life will tell."""
        if self._counted:
            self.kept.append(self._counted.pop(max(self._counted)))
            self._counted.clear()

    def tell(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End its process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        os.close(self._readers[0].fd)
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process, self._readers = None, []

    def _message(self, line: bytes) -> None:
        from streamml.local.together import from_plain

        try:
            message = msgspec.json.decode(line)
        except msgspec.DecodeError:  # the last line of one that was killed
            return
        for kind, body in message.items():
            if kind == "figures":
                self.figures = from_plain(body)
            elif kind == "counted":
                number, counts = body
                self._counted[number] = counts
            elif kind == "resumed":
                self._resumed(body)
            else:
                self.message = (kind, body)
                if kind == "end":
                    self.kept.append(body)
                    self._counted.clear()

    def _resumed(self, number: int) -> None:
        """Keep what lives before this one counted up to the checkpoint from which it went on."""
        if self._told_where:
            return
        self._told_where = True
        if number in self._counted:
            self.kept.append(self._counted[number])
        self._counted.clear()

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        self.said.append(text)
        self._say(f"{self.name}: {text}")
