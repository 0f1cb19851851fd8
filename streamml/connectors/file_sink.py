"""JSON lines to a file that only ever holds what was committed, plain or gzip."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from streamml.connectors.encode import Encoder
from streamml.connectors.storage import Guard, Step, checksum, copy_range, failing, lock, sync_folder, write_all
from streamml.errors import ConnectorError
from streamml.ports import FollowingSink
from streamml.records import Batch

__all__ = ["FileSink"]

_VERSION = 1
_BUFFER_BYTES = 1024 * 1024
_GZIP = 31  # zlib's window bits for a gzip member


class FileSink(FollowingSink):
    r"""Appends JSON lines to a file in two phases.

    What is written goes to `PATH.pending`; `prepare` makes that durable, `commit` appends it to `PATH` (as one more
    gzip member, if it is packed). A commit that was cut off anywhere is finished by the next `open`. If an older
    checkpoint than the newest is restored, because that is damaged, `open` cuts `PATH` back to what the older one had
    committed, and what is cut off is written again. One process writes at a time.

    Args:
        path: the file; its folder is made if it is not there.
        packed: write gzip.
        overwrite: empty a file that is there when a job starts afresh; without it, such a file is refused.
        on_step: called with the name of each durable step after it was made.
        copy_bytes: how much of a commit is appended in one step.

    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "scores.jsonl")
    >>> sink = FileSink(str(path))
    >>> sink.open(None)
    >>> sink.write_records([{"score": 0.5}])
    >>> prepared = sink.prepare(1)
    >>> prepared["committed_bytes"], prepared["pending_bytes"], path.read_text()
    (0, 14, '')
    >>> sink.commit(1)
    >>> path.read_text()
    '{"score":0.5}\n'
    >>> sink.close()
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str,
        *,
        packed: bool = False,
        overwrite: bool = False,
        on_step: Step | None = None,
        copy_bytes: int = 1 << 23,
    ) -> None:
        self._path = path
        self._pending_path = f"{path}.pending"
        self._format = "jsonl.gz" if packed else "jsonl"
        self._packed = packed
        self._overwrite = overwrite
        self._step = on_step or (lambda name: None)
        self._copy_bytes = copy_bytes
        self._encoder = Encoder()
        self._file = self._pending = -1
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._member: Any = None
        self._committed_bytes = 0
        self._pending_bytes = 0
        self._pending_crc = 0
        self._prepared: int | None = None
        self._durably = Guard(f"sink {path}")

    def open(self, prepared: Mapping[str, Any] | None) -> None:
        """See `Sink.open`.

        Raises:
            ConnectorError: the file is not what the checkpoint left, or a fresh job would overwrite it.
        """
        with failing(f"sink {self._path}", "open"):
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                msg = f"sink {self._path}: wanted a file, got a pipe or device. Write to `-` (stdout) or `null:`."
                raise ConnectorError(msg)
            self._pending = os.open(self._pending_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            lock(self._pending, self._path)
            if prepared is None:
                self._start_empty()
            else:
                self._recover(prepared)
            os.ftruncate(self._pending, 0)
            sync_folder(self._path)
            self._step("opened")

    def write(self, batch: Batch, fields: Sequence[str] | None) -> None:
        """See `Sink.write`.

        Raises:
            RecordError: a row can't be encoded; then nothing of the batch was written.
        """
        self._add(self._encoder.encode_lines(batch, fields))

    def write_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink.write_records`."""
        self._add(self._encoder.encode_records(records))

    def prepare(self, checkpoint: int) -> dict[str, Any]:
        """See `Sink.prepare`."""
        with self._durably("write the pending output of"):
            self._flush()
            if self._member is not None:
                self._append(self._member.flush())
                self._member = None
            self._step("pending written")
            os.fsync(self._pending)
            self._step("pending synced")
        self._prepared = checkpoint
        return {
            "version": _VERSION,
            "format": self._format,
            "checkpoint": checkpoint,
            "committed_bytes": self._committed_bytes,
            "pending_bytes": self._pending_bytes,
            "pending_crc": self._pending_crc,
        }

    def commit(self, checkpoint: int) -> None:
        """See `Sink.commit`; does nothing for a checkpoint that is not the one prepared last."""
        if self._prepared != checkpoint:
            return
        with self._durably("commit to"):
            self._append_pending(self._committed_bytes, self._pending_bytes)
            self._committed_bytes += self._pending_bytes
            os.ftruncate(self._pending, 0)
            os.lseek(self._pending, 0, os.SEEK_SET)
            self._pending_bytes = self._pending_crc = 0
            self._prepared = None
            self._step("committed")
            if self._buffered >= _BUFFER_BYTES:
                self._flush()

    def close(self) -> None:
        """See `Sink.close`; keeps the pending file if a stored checkpoint may still need it."""
        if self._pending >= 0 and self._prepared is None and not self._durably.failed:
            with failing(f"sink {self._pending_path}", "remove"):
                os.unlink(self._pending_path)
        self._release()

    def __del__(self) -> None:  # a sink that was dropped, not closed, as in a simulated crash
        self._release()

    def _release(self) -> None:
        for fd in (self._file, self._pending):
            if fd >= 0:
                os.close(fd)
        self._file = self._pending = -1

    def _start_empty(self) -> None:
        size = os.fstat(self._file).st_size
        if size and not self._overwrite:
            msg = (
                f"sink {self._path}: a fresh job wants an empty or new file, this one has {size} bytes. "
                "Name another file, remove this one, or allow it to be emptied with overwrite=True."
            )
            raise ConnectorError(msg)
        os.ftruncate(self._file, 0)

    def _recover(self, prepared: Mapping[str, Any]) -> None:
        """Finish the commit of the restored checkpoint if need be, and take back commits of newer ones."""
        if prepared.get("version") != _VERSION or prepared.get("format") != self._format:
            msg = (
                f"sink {self._path}: wanted a checkpoint of a {self._format} sink, version {_VERSION}, "
                f"got {dict(prepared)}. Restore with the sink that it was taken with, or start without the checkpoint."
            )
            raise ConnectorError(msg)
        start, count, crc = prepared["committed_bytes"], prepared["pending_bytes"], prepared["pending_crc"]
        size, end = os.fstat(self._file).st_size, start + count
        if size < end or checksum(self._file, start, count) != crc:
            there = os.fstat(self._pending).st_size
            if size < start:
                what = f"it has {size} bytes, fewer than the {start} that were committed: it was cut or replaced"
            elif size > end:
                what = (
                    f"it has {size} bytes, and the {count} before byte {end} are not those that were committed: "
                    "it was replaced"
                )
            elif checksum(self._pending, 0, count) != crc:
                what = (
                    f"it has {size} of {end} bytes, and {self._pending_path} ({there} bytes) does not hold the {count} "
                    "bytes that are missing"
                )
            else:
                what = ""
            if what:
                msg = (
                    f"sink {self._path}: it does not fit the restored checkpoint {prepared['checkpoint']}: {what}. "
                    "Restore the newest checkpoint, or put back the file that belongs to this one."
                )
                raise ConnectorError(msg)
            self._append_pending(start, count)
        elif size > end:  # a newer checkpoint was committed and is damaged: its rows come again
            os.ftruncate(self._file, end)
            os.fsync(self._file)
            self._step("cut back")
        self._committed_bytes = end

    def _append_pending(self, start: int, count: int) -> None:
        if not count:
            return
        copy_range(self._pending, self._file, start, count, lambda: self._step("appended"), self._copy_bytes)
        os.fsync(self._file)
        self._step("file synced")

    def _add(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= _BUFFER_BYTES and self._prepared is None:  # a prepared pending file stays as it is
            with self._durably("write the pending output of"):
                self._flush()

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        if self._packed and data:
            if self._member is None:
                self._member = zlib.compressobj(wbits=_GZIP)
            data = self._member.compress(data)
        self._append(data)

    def _append(self, data: bytes) -> None:
        write_all(self._pending, data)
        self._pending_bytes += len(data)
        self._pending_crc = zlib.crc32(data, self._pending_crc)
