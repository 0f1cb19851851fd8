"""Cuts blocks of bytes into lines, quickly and in bounded memory."""

from __future__ import annotations

__all__ = ["MAX_RECORD_BYTES", "LineBuffer"]

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""A longer line is not kept, unless told otherwise."""

_SHOWN = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineBuffer:
    r"""Lines that were read and not yet handed out, with the place of the next one.

    `\r\n` ends a line like `\n`, and a byte order mark before the first line is taken off.
    A line over `max_record_bytes` is not held. In its place comes a text that is no JSON, so that it is
    rejected, and that says why: its length, the limit, and how the line starts.

    >>> buffer = LineBuffer()
    >>> buffer.feed(b'{"x": 1}\r\n\n{"x"')
    >>> buffer.take(10), buffer.record, buffer.offset
    ([b'{"x": 1}', b''], 2, 11)
    >>> buffer.feed(b': 2}')
    >>> buffer.end()
    >>> buffer.take(10), buffer.offset
    ([b'{"x": 2}'], 19)
    """

    def __init__(self, max_record_bytes: int = MAX_RECORD_BYTES, *, offset: int = 0, record: int = 0) -> None:
        self.record = record
        self._max = max_record_bytes
        self._shown = min(_SHOWN, max_record_bytes)
        self._base = offset  # of the first of `_lines` in the stream
        self._lines: list[bytes] = []
        self._next = 0
        self._longer: list[tuple[int, int]] = []  # (row, bytes that its line has more than len + 1)
        self._held: list[bytes] = []  # the start of a line whose end was not seen yet
        self._held_bytes = 0
        self._carriage_returns = False

    @property
    def waiting(self) -> int:
        """Number of lines that can be taken."""
        return len(self._lines) - self._next

    @property
    def offset(self) -> int:
        """Byte at which the next line to be taken starts."""
        taken = self._lines[: self._next]
        return self._base + sum(map(len, taken)) + len(taken) + sum(n for row, n in self._longer if row < self._next)

    def feed(self, block: bytes) -> None:
        """Add bytes as they come."""
        self._drop_taken()
        if not self._carriage_returns:
            self._carriage_returns = b"\r" in block
        last = block.rfind(b"\n")
        if last < 0:
            self._hold(block)
            return
        start = 0
        if self._held_bytes:
            start = block.find(b"\n") + 1
            self._hold(block[: start - 1])
            self._release(newline=1)
        if start <= last:
            first_row = len(self._lines)
            self._lines += block[start:last].split(b"\n")
            if len(block) > self._max:
                for row in range(first_row, len(self._lines)):
                    line = self._lines[row]
                    if len(line) > self._max:
                        self._replace(row, line, len(line), newline=1)
        self._hold(block[last + 1 :])

    def end(self) -> None:
        """Make a last line that has no line end a line."""
        self._drop_taken()
        if self._held_bytes:
            self._release(newline=0)

    def take(self, limit: int) -> list[bytes]:
        """Return at most `limit` lines, without their line ends."""
        lines = self._lines[self._next : self._next + limit]
        if self._carriage_returns:
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        if self.record == 0 and lines and lines[0].startswith(_BYTE_ORDER_MARK):
            lines[0] = lines[0][len(_BYTE_ORDER_MARK) :]
        self._next += len(lines)
        self.record += len(lines)
        return lines

    def _drop_taken(self) -> None:
        if self._next:
            self._base = self.offset
            self._longer = [(row - self._next, n) for row, n in self._longer if row >= self._next]
            self._lines = self._lines[self._next :]
            self._next = 0

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        if self._held_bytes <= self._max:
            self._held.append(part)
        self._held_bytes += len(part)
        if self._held_bytes > self._max and (len(self._held) > 1 or len(self._held[0]) > self._shown):
            self._held = [b"".join(self._held)[: self._shown]]

    def _release(self, newline: int) -> None:
        line, length = b"".join(self._held), self._held_bytes
        self._held, self._held_bytes = [], 0
        self._lines.append(line)
        row = len(self._lines) - 1
        if length > self._max:
            self._replace(row, line, length, newline)
        elif not newline:
            self._longer.append((row, -1))

    def _replace(self, row: int, line: bytes, length: int, newline: int) -> None:
        text = b"(a line of %d bytes, over max_record_bytes = %d, not kept; it starts:) %b" % (
            length,
            self._max,
            line[: self._shown].rstrip(b"\r"),
        )
        self._lines[row] = text
        self._longer.append((row, length - len(text) + newline - 1))
