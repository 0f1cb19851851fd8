"""The store on RocksDB. The only module that imports rocksdict."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import rocksdict

from streamml.errors import PlanError, StateError
from streamml.state.durable import write_error

__all__ = ["RocksOptions", "RocksStore"]

Compression = Literal["lz4", "zstd", "none"]

_MB = 1024 * 1024
_SIZES = {
    "sst_bytes": "rocksdb.live-sst-files-size",
    "live_data_bytes": "rocksdb.estimate-live-data-size",
    "memtable_bytes": "rocksdb.cur-size-all-mem-tables",
    "block_cache_bytes": "rocksdb.block-cache-usage",
    "index_and_filter_bytes": "rocksdb.estimate-table-readers-mem",
    "rows": "rocksdb.estimate-num-keys",
}
_LEAST = {
    "write_buffer_mb": 1,
    "write_buffers": 2,
    "block_cache_mb": 1,
    "block_kb": 1,
    "bloom_bits_per_key": 0,
    "target_file_mb": 1,
    "level_base_mb": 1,
    "max_open_files": 16,
    "background_jobs": 1,
}


@dataclass(frozen=True)
class RocksOptions:
    """How much memory, disk and processor one RocksDB store may use.

    Memory of a store is about `write_buffer_mb * write_buffers + block_cache_mb`, plus 1 to 2 bytes a row for filters.

    Attributes:
        write_buffer_mb: Size of a memtable in MiB; a full one becomes a file. Default 32.
        write_buffers: Number of memtables before writes wait for the disk. Default 3.
        block_cache_mb: Cache of uncompressed blocks in MiB. Default 64.
        block_kb: Size of a block in KiB, the unit of reading. Default 4, for reads by key.
        bloom_bits_per_key: Bits of the Bloom filter per key, 0 for none. Default 10: 1 % of misses read the disk.
        compression: `"lz4"`, `"zstd"` (smaller, slower) or `"none"`. Default `"lz4"`.
        target_file_mb: Size of a data file in MiB. A checkpoint reads only new files, so smaller ones make
            its cost finer and their number larger. Default 32.
        level_base_mb: Size of the first sorted level in MiB; each next one is ten times larger. Default 128.
        max_open_files: Files held open at most, -1 for all. Default 512.
        background_jobs: Threads for flushes and compactions, shared by the process. Default 2.

    >>> RocksOptions(block_cache_mb=256).write_buffer_mb
    32
    """

    write_buffer_mb: int = 32
    write_buffers: int = 3
    block_cache_mb: int = 64
    block_kb: int = 4
    bloom_bits_per_key: int = 10
    compression: Compression = "lz4"
    target_file_mb: int = 32
    level_base_mb: int = 128
    max_open_files: int = 512
    background_jobs: int = 2

    def __post_init__(self) -> None:
        if self.compression not in get_args(Compression):
            where = "RocksOptions"
            raise PlanError.unknown(where, "compression", self.compression, get_args(Compression))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least and not (name == "max_open_files" and value == -1):
                msg = f"RocksOptions: {name} must be at least {least}, got {value}"
                raise PlanError(msg)

    def to_options(self) -> rocksdict.Options:
        """Build rocksdict's options; nothing else in the library does."""
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(self.write_buffer_mb * _MB)
        options.set_max_write_buffer_number(self.write_buffers)
        options.set_compression_type(getattr(rocksdict.DBCompressionType, self.compression)())
        options.set_target_file_size_base(self.target_file_mb * _MB)
        options.set_max_bytes_for_level_base(self.level_base_mb * _MB)
        options.set_max_open_files(self.max_open_files)
        options.set_max_background_jobs(self.background_jobs)
        options.set_keep_log_file_num(2)  # its own log, not data
        options.set_max_log_file_size(8 * _MB)
        options.set_stats_dump_period_sec(0)
        table = rocksdict.BlockBasedOptions()
        table.set_block_size(self.block_kb * 1024)
        table.set_block_cache(rocksdict.Cache(self.block_cache_mb * _MB))
        if self.bloom_bits_per_key:
            table.set_bloom_filter(self.bloom_bits_per_key, False)
        options.set_block_based_table_factory(table)
        return options


class RocksStore:
    """Ordered store in a folder, by RocksDB, which one process at a time may open.

    Writes go to memory and from there into immutable files, without a write-ahead log: what must survive a crash
    must be in a checkpoint, and a restart begins with `restore_files`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = RocksStore(Path(folder.name) / "db")
    >>> store.write({b"a": b"1", b"b": b"2"})
    >>> store.checkpoint(Path(folder.name) / "copy")
    >>> store.write({b"a": None})
    >>> store.close()
    >>> copy = RocksStore(Path(folder.name) / "copy")
    >>> list(copy.scan(b"a", b"c"))
    [(b'a', b'1'), (b'b', b'2')]
    >>> copy.close()
    >>> folder.cleanup()
    """

    def __init__(self, path: Path, options: RocksOptions = RocksOptions()) -> None:
        self.path = path
        self._cursors: weakref.WeakSet[_Cursor] = weakref.WeakSet()
        self._db: rocksdict.Rdict | None = None
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[assignment, method-assign]  # the stub has a method here
        with self._errors("open"):
            path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in path.iterdir()}
        if names and "CURRENT" not in names:  # RocksDB would make an empty database here
            msg = (
                f"RocksDB store {path}: wanted an empty folder or a database, got files without CURRENT "
                f"({', '.join(sorted(names)[:5])}). Restore it from a checkpoint, or name another folder."
            )
            raise StateError(msg)
        with self._errors("open"):
            self._db = rocksdict.Rdict(str(path), options.to_options())

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        db = self._open_db()
        with self._errors("read"):
            found: list[bytes | None] = db.get(list(keys))  # type: ignore[assignment]  # a list for a list
        return found

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        db = self._open_db()
        with self._errors("write"):
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key, value in rows.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            db.write(batch, self._unlogged)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        db = self._open_db()
        with self._errors("scan"):
            bounds = rocksdict.ReadOptions()
            bounds.set_iterate_upper_bound(stop)
            rows = db.iter(bounds)
            rows.seek(start)
        cursor = _Cursor(rows, (bounds, stop))
        self._cursors.add(cursor)
        return self._yield(cursor)

    def checkpoint(self, folder: Path) -> None:
        db = self._open_db()
        try:
            rocksdict.Checkpoint(db).create_checkpoint(str(folder))  # flushes the memtables first
        except Exception as exc:
            doing = f"checkpoint of the RocksDB store {self.path} ({self.size()['memtable_bytes']} bytes to flush)"
            more = "If the store refuses writes from now on, restart the job: it goes on from the newest checkpoint."
            raise write_error(folder, exc, doing=doing, more=more) from exc

    def size(self) -> dict[str, int]:
        """Return what RocksDB knows of itself.

        `bytes` is files plus memtables, `live_data_bytes` what would stay after compaction, `rows` an estimate.
        """
        db = self._open_db()
        with self._errors("size"):
            sizes = {name: db.property_int_value(key) or 0 for name, key in _SIZES.items()}
        return {"bytes": sizes["sst_bytes"] + sizes["memtable_bytes"], **sizes}

    def close(self) -> None:
        for cursor in list(self._cursors):
            cursor.rows = None  # an open iterator keeps the database open, and its folder locked
        db, self._db = self._db, None
        if db is not None:
            with self._errors("close"):
                try:
                    db.close()
                finally:
                    del db  # or a traceback would keep the folder locked

    def _yield(self, cursor: _Cursor) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._errors("scan"):
                while True:
                    rows = cursor.rows
                    if rows is None:
                        raise self._closed()
                    if not rows.valid():
                        rows.status()  # raises where a damaged block, and not the end of the range, ended the rows
                        return
                    row = (rows.key(), rows.value())
                    rows.next()
                    del rows  # only the cursor may hold it while the caller is at work
                    yield row
        finally:
            cursor.rows = None

    def _open_db(self) -> rocksdict.Rdict:
        if self._db is None:
            raise self._closed()
        return self._db

    def _closed(self) -> StateError:
        msg = f"RocksDB store {self.path}: it was closed and can't be used again. Open a new one."
        return StateError(msg)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn what RocksDB raises (a bare `Exception` with a text) into an error that says what to do."""
        try:
            yield
        except (StateError, TypeError):
            raise
        except Exception as exc:
            text = str(exc).replace("\n", " ")
            advice = next(advice for sign, advice in _ADVICE if sign in text)
            msg = f"RocksDB store {self.path}: {doing} failed: {text}. {advice}"
            raise StateError(msg) from exc


class _Cursor:
    """Hold the iterator of one scan, so that closing the store can take it away.

    RocksDB only borrows the bytes of the bound: without `bound` they would be freed, and the scan end anywhere.
    """

    __slots__ = ("__weakref__", "bound", "rows")

    def __init__(self, rows: rocksdict.RdictIter, bound: tuple[rocksdict.ReadOptions, bytes]) -> None:
        self.rows: rocksdict.RdictIter | None = rows
        self.bound = bound


_LOCKED = (
    "The folder is open in another process or in another store of this one. "
    "Stop that one, or name another folder; don't remove the file LOCK."
)
_ADVICE = (
    ("While lock file", _LOCKED),
    ("lock hold by", _LOCKED),
    ("No space left", "Free space on that disk and restart the job: it goes on from the newest checkpoint."),
    ("Too many open files", "Raise the process's limit of open files, or lower RocksOptions.max_open_files."),
    ("Permission denied", "Give this user the right to read and write the folder, or name another one."),
    (
        "Corruption",
        "The files are damaged. Restart the job: it restores the newest checkpoint that is whole; "
        "if this happens again, check the disk.",
    ),
    ("", "Restart the job: it goes on from the newest checkpoint."),
)
