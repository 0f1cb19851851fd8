from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamml.errors import CheckpointError, PlanError, StateError
from streamml.state.memory import MemoryStore
from streamml.state.rocks import RocksOptions, RocksStore
from streamml.state.store import Store

SMALL = RocksOptions(write_buffer_mb=1, block_cache_mb=1, target_file_mb=1, background_jobs=1)
EDGES = [b"", b"\x00", b"\x00\x00", b"\x00\xff", b"a", b"a\x00", b"a\xff", b"b", b"\xff", b"\xff\x00", b"\xff\xff"]
END = b"\xff\xff\xff"


class Stores:
    """Opens stores of one kind, and closes them after the test."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.opened: list[Store] = []

    def new(self) -> Store:
        if self.kind == "memory":
            return self._opened(MemoryStore())
        return self._opened(RocksStore(self.folder / f"live-{len(self.opened)}", SMALL))

    def restore(self, checkpoint: Path) -> Store:
        if self.kind == "memory":
            return self._opened(MemoryStore.restore(checkpoint))
        return self._opened(RocksStore(checkpoint, SMALL))

    def _opened(self, store: Store) -> Store:
        self.opened.append(store)
        return store


@pytest.fixture(params=["memory", "rocks"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    made = Stores(request.param, tmp_path)
    yield made
    for store in made.opened:
        store.close()


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores.new()


def rows_of(store: Store) -> dict[bytes, bytes]:
    return dict(store.scan(b"", END))


class TestEveryStore:
    def test_a_scan_ends_at_its_bound_though_the_caller_has_dropped_it(self, store: Store) -> None:
        rows = {bytes([group, number]): b"v" for group in range(50) for number in range(20)}
        store.write(rows)
        for group in range(50):
            scan = store.scan(bytes([group]), bytes(bytearray([group, 10])))
            junk = [bytes(bytearray([255 - group, n])) for n in range(50)]  # takes the place of what is freed
            assert [key for key, _ in scan] == [bytes([group, n]) for n in range(10)], junk

    def test_values_come_in_the_order_of_the_keys_asked_for(self, store: Store) -> None:
        store.write({b"a": b"1", b"b": b"2"})
        assert store.get_many([b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
        assert store.get_many((b"a",)) == [b"1"]
        assert store.get_many([]) == []

    def test_an_empty_value_and_an_empty_key_are_not_absent(self, store: Store) -> None:
        store.write({b"empty": b"", b"": b"of the empty key"})
        assert store.get_many([b"empty", b"", b"absent"]) == [b"", b"of the empty key", None]
        assert rows_of(store) == {b"": b"of the empty key", b"empty": b""}

    def test_none_deletes_and_a_key_can_come_back(self, store: Store) -> None:
        store.write({b"a": b"1", b"b": b"2"})
        assert list(store.scan(b"", END)) == [(b"a", b"1"), (b"b", b"2")]
        store.write({b"a": None, b"never": None, b"c": b"3"})
        assert store.get_many([b"a", b"b", b"c", b"never"]) == [None, b"2", b"3", None]
        assert list(store.scan(b"", END)) == [(b"b", b"2"), (b"c", b"3")]
        store.write({b"a": b"again"})
        store.write({b"c": None})
        store.write({b"c": b"again"})
        assert list(store.scan(b"", END)) == [(b"a", b"again"), (b"b", b"2"), (b"c", b"again")]

    def test_the_last_write_wins(self, store: Store) -> None:
        for value in (b"1", b"22", b""):
            store.write({b"k": value})
            assert store.get_many([b"k"]) == [value]

    def test_an_empty_write_changes_nothing(self, store: Store) -> None:
        store.write({b"k": b"v"})
        store.write({})
        assert rows_of(store) == {b"k": b"v"}

    def test_a_scan_takes_start_and_leaves_stop_for_every_pair_of_binary_keys(self, store: Store) -> None:
        rows = {key: b"value of " + key for key in EDGES}
        store.write(dict(random.Random(3).sample(sorted(rows.items()), len(rows))))
        for start, stop in itertools.product([*EDGES, b"aa", END], repeat=2):
            wanted = sorted((key, value) for key, value in rows.items() if start <= key < stop)
            assert list(store.scan(start, stop)) == wanted, (start, stop)

    def test_what_is_written_during_a_scan_is_not_seen_by_it(self, store: Store) -> None:
        before = {b"%03d" % number: b"old" for number in range(0, 200, 2)}
        store.write(before)
        seen = []
        for number, row in enumerate(store.scan(b"", END)):
            seen.append(row)
            store.write({b"%03d" % (number * 2 + 3): b"new", b"%03d" % (number * 2 + 4): None, b"198": b"changed"})
        assert dict(seen) == before

    def test_a_scan_is_as_of_its_call_and_not_of_its_first_row(self, store: Store) -> None:
        store.write({b"a": b"1", b"b": b"2"})
        rows = store.scan(b"", END)
        store.write({b"a": None, b"b": b"changed", b"c": b"3"})
        assert list(rows) == [(b"a", b"1"), (b"b", b"2")]

    def test_two_scans_at_once_do_not_disturb_each_other(self, store: Store) -> None:
        store.write({b"a": b"1", b"b": b"2", b"c": b"3"})
        pairs = [(x, y) for x, _ in store.scan(b"", END) for y, _ in store.scan(x, END)]
        assert pairs == [(x, y) for x in (b"a", b"b", b"c") for y in (b"a", b"b", b"c") if x <= y]

    def test_a_checkpoint_has_all_that_was_written_before_it_and_nothing_after(
        self, stores: Stores, store: Store, tmp_path: Path
    ) -> None:
        store.write({b"a": b"1", b"b": b"", b"gone": b"x", b"\x00\xff": b"\xff\x00"})
        store.write({b"gone": None})
        store.checkpoint(tmp_path / "first")
        store.write({b"a": b"2", b"b": None, b"c": b"3"})
        store.checkpoint(tmp_path / "second")
        store.write({b"later": b"x"})
        assert rows_of(stores.restore(tmp_path / "first")) == {b"\x00\xff": b"\xff\x00", b"a": b"1", b"b": b""}
        assert rows_of(stores.restore(tmp_path / "second")) == {b"\x00\xff": b"\xff\x00", b"a": b"2", b"c": b"3"}
        assert store.get_many([b"later", b"a"]) == [b"x", b"2"]

    def test_an_empty_store_can_be_checkpointed(self, stores: Stores, store: Store, tmp_path: Path) -> None:
        store.checkpoint(tmp_path / "copy")
        assert rows_of(stores.restore(tmp_path / "copy")) == {}

    def test_a_checkpoint_into_a_folder_that_exists_is_refused_and_touches_nothing(
        self, store: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "mine").write_text("kept")
        with pytest.raises(CheckpointError, match="Name a folder that does not exist yet"):
            store.checkpoint(tmp_path / "copy")
        assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mine"]
        store.write({b"still": b"works"})

    def test_values_of_a_megabyte_survive_a_checkpoint(self, stores: Stores, store: Store, tmp_path: Path) -> None:
        rows = {b"big-%d" % number: random.Random(number).randbytes(1 << 20) for number in range(4)}
        store.write(rows)
        assert store.get_many(list(rows)) == list(rows.values())
        store.checkpoint(tmp_path / "copy")
        assert rows_of(stores.restore(tmp_path / "copy")) == rows

    def test_more_rows_than_one_memtable_holds_are_those_of_a_dict(self, store: Store) -> None:
        chance = random.Random(11)
        wanted: dict[bytes, bytes] = {}
        for _ in range(40):
            keys = [b"%05d" % chance.randrange(3000) for _ in range(150)]
            batch = {key: chance.choice([None, chance.randbytes(chance.randrange(900))]) for key in keys}
            store.write(batch)
            for key, value in batch.items():
                if value is None:
                    wanted.pop(key, None)
                else:
                    wanted[key] = value
        assert list(store.scan(b"", END)) == sorted(wanted.items())
        keys = [b"%05d" % number for number in range(3000)]
        assert store.get_many(keys) == [wanted.get(key) for key in keys]

    def test_size_grows_with_what_is_written(self, store: Store) -> None:
        empty = store.size()
        store.write({b"%d" % number: bytes(1000) for number in range(100)})
        full = store.size()
        assert full["rows"] == 100
        assert full["bytes"] >= empty["bytes"] + 100_000

    def test_a_closed_store_refuses_everything(self, store: Store, tmp_path: Path) -> None:
        store.write({b"a": b"1", b"b": b"2"})
        rows = store.scan(b"", END)
        assert next(rows) == (b"a", b"1")
        unread = store.scan(b"", END)
        store.close()
        store.close()
        uses: list[Callable[[], object]] = [
            lambda: store.get_many([b"a"]),
            lambda: store.write({b"a": b"1"}),
            lambda: store.scan(b"", END),
            lambda: store.checkpoint(tmp_path / "copy"),
            lambda: store.size(),
            lambda: next(rows),
            lambda: next(unread),
        ]
        for use in uses:
            with pytest.raises(StateError, match="was closed and can't be used again"):
                use()
        assert not (tmp_path / "copy").exists()


class TestMemoryStore:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        store = MemoryStore()
        store.write({b"key-%d" % number: b"v" * number for number in range(5)})
        store.checkpoint(tmp_path / "copy")
        return tmp_path / "copy" / "rows.bin"

    def test_every_flipped_byte_is_found(self, file: Path) -> None:
        whole = file.read_bytes()
        for at in range(len(whole)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            with pytest.raises(StateError, match="is damaged"):
                MemoryStore.restore(file.parent)

    def test_every_shorter_file_is_found(self, file: Path) -> None:
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises(StateError, match="is damaged"):
                MemoryStore.restore(file.parent)

    def test_another_format_is_refused_with_what_to_do(self, file: Path) -> None:
        whole = file.read_bytes()
        body = whole[:8] + (2).to_bytes(4, "little") + whole[12:-12]
        file.write_bytes(body + whole[-12:-4] + zlib.crc32(body).to_bytes(4, "little"))
        with pytest.raises(StateError, match=re.escape("got format 2. Run the version of streamml that wrote it")):
            MemoryStore.restore(file.parent)

    def test_a_folder_without_rows_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StateError, match="can't be read"):
            MemoryStore.restore(tmp_path)

    def test_bytes_are_those_of_keys_and_values(self) -> None:
        store = MemoryStore()
        store.write({b"ab": b"123", b"c": b""})
        assert store.size() == {"bytes": 6, "rows": 2}
        store.write({b"ab": b"1", b"c": None, b"d": None})
        assert store.size() == {"bytes": 3, "rows": 1}


class TestRocksStore:
    @pytest.fixture
    def live(self, tmp_path: Path) -> Path:
        """A closed store of several data files."""
        store = RocksStore(tmp_path / "live", SMALL)
        for part in range(3):
            rows = {b"%05d" % (number * 3 + part): random.Random(number).randbytes(150) for number in range(800)}
            store.write(rows)
            store.checkpoint(tmp_path / f"copy-{part}")  # flushes
        store.close()
        return tmp_path / "live"

    def test_a_second_store_on_the_same_folder_is_refused(self, tmp_path: Path) -> None:
        first = RocksStore(tmp_path / "live", SMALL)
        with pytest.raises(StateError, match=re.escape(f"RocksDB store {tmp_path / 'live'}: open failed")) as error:
            RocksStore(tmp_path / "live", SMALL)
        assert "open in another process or in another store of this one" in str(error.value)
        first.close()
        RocksStore(tmp_path / "live", SMALL).close()

    def test_a_folder_that_another_process_holds_is_refused(self, tmp_path: Path) -> None:
        hold = (
            "import sys; from pathlib import Path; from streamml.state.rocks import RocksStore\n"
            "store = RocksStore(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", hold, str(tmp_path / "live")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None and other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(StateError, match="Stop that one, or name another folder; don't remove the file LOCK"):
                RocksStore(tmp_path / "live", SMALL)
            other.stdin.close()
            assert other.wait() == 0

    def test_a_scan_left_open_does_not_keep_the_folder_locked_after_close(self, tmp_path: Path) -> None:
        store = RocksStore(tmp_path / "live", SMALL)
        store.write({b"a": b"1", b"b": b"2"})
        begun, unread = store.scan(b"", END), store.scan(b"", END)
        next(begun)
        store.close()
        RocksStore(tmp_path / "live", SMALL).close()
        del begun, unread

    # RocksDB takes a MANIFEST cut at the end for one that was being written, and opens with fewer rows. So a folder is
    # only ever opened after `Checkpoints` has checked the files that it was made of (test_checkpoints.py).
    @pytest.mark.parametrize(("pattern", "share"), [("*.sst", 0.5), ("MANIFEST-*", 0.0), ("CURRENT", 0.5)])
    def test_a_cut_file_is_refused_with_path_and_what_to_do(self, live: Path, pattern: str, share: float) -> None:
        victim = sorted(live.glob(pattern))[0]
        victim.write_bytes(victim.read_bytes()[: int(victim.stat().st_size * share)])
        with pytest.raises(StateError, match=re.escape(str(live))) as error:
            RocksStore(live, SMALL)
        assert "The files are damaged. Restart the job" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_a_flipped_byte_in_a_data_file_is_an_error_and_never_a_shorter_scan(self, live: Path, share: float) -> None:
        victim = sorted(live.glob("*.sst"))[0]
        content = bytearray(victim.read_bytes())
        content[int(len(content) * share)] ^= 0xFF
        victim.write_bytes(content)
        store = RocksStore(live, SMALL)
        with pytest.raises(StateError, match="scan failed: Corruption"):
            list(store.scan(b"", END))
        with pytest.raises(StateError, match="read failed: Corruption"):
            store.get_many([b"%05d" % number for number in range(2400)])
        store.close()

    @pytest.mark.parametrize("without", ["CURRENT", "CURRENT and logs"])
    def test_a_folder_that_lost_its_current_file_is_not_taken_for_an_empty_one(self, live: Path, without: str) -> None:
        (live / "CURRENT").unlink()
        if "logs" in without:
            for log in live.glob("*.log"):
                log.unlink()
        before = sorted(path.name for path in live.iterdir())
        with pytest.raises(StateError, match="got files without CURRENT"):
            RocksStore(live, SMALL)
        assert sorted(path.name for path in live.iterdir()) == before

    def test_a_checkpoint_shares_the_data_files_and_has_no_log(self, tmp_path: Path) -> None:
        store = RocksStore(tmp_path / "live", SMALL)
        store.write({b"%d" % number: b"v" for number in range(100)})
        assert store.size()["memtable_bytes"] > 0
        store.checkpoint(tmp_path / "copy")
        shared = {path.name: path.stat().st_ino for path in (tmp_path / "live").glob("*.sst")}
        assert shared
        assert {path.name: path.stat().st_ino for path in (tmp_path / "copy").glob("*.sst")} == shared
        store.write({b"more": b"v"})
        assert [path.stat().st_size for path in (tmp_path / "live").glob("*.log")] == [0]
        assert [path.stat().st_size for path in (tmp_path / "copy").glob("*.log")] == [0]
        store.close()

    def test_size_tells_memory_from_files(self, tmp_path: Path) -> None:
        store = RocksStore(tmp_path / "live", SMALL)
        store.write({b"%05d" % number: random.Random(number).randbytes(100) for number in range(1000)})
        assert store.size()["sst_bytes"] == 0
        store.checkpoint(tmp_path / "copy")
        flushed = store.size()
        assert flushed["rows"] == 1000
        assert flushed["sst_bytes"] == sum(path.stat().st_size for path in (tmp_path / "live").glob("*.sst"))
        assert flushed["live_data_bytes"] > 100_000
        assert flushed["bytes"] == flushed["sst_bytes"] + flushed["memtable_bytes"]
        store.get_many([b"%05d" % number for number in range(1000)])
        assert store.size()["block_cache_bytes"] > flushed["block_cache_bytes"]
        store.close()

    def test_every_option_reaches_rocksdb(self, tmp_path: Path) -> None:
        options = RocksOptions(
            write_buffer_mb=3,
            write_buffers=4,
            block_kb=16,
            bloom_bits_per_key=12,
            compression="zstd",
            target_file_mb=5,
            level_base_mb=50,
            max_open_files=77,
            background_jobs=3,
        )
        RocksStore(tmp_path / "live", options).close()
        written = sorted((tmp_path / "live").glob("OPTIONS-*"))[-1].read_text()
        for line in (
            f"write_buffer_size={3 << 20}",
            "max_write_buffer_number=4",
            "block_size=16384",
            "filter_policy=bloomfilter",
            "compression=kZSTD",
            f"target_file_size_base={5 << 20}",
            f"max_bytes_for_level_base={50 << 20}",
            "max_open_files=77",
            "max_background_jobs=3",
        ):
            assert f"  {line}\n" in written, line

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"write_buffer_mb": 0}, "write_buffer_mb must be at least 1, got 0"),
            ({"max_open_files": -2}, "max_open_files must be at least 16, got -2"),
            ({"compression": "lz5"}, "there is no compression 'lz5'. Did you mean 'lz4'?"),
        ],
    )
    def test_an_option_that_does_not_fit_is_refused(self, wrong: dict[str, object], says: str) -> None:
        with pytest.raises(PlanError, match=re.escape(says)):
            RocksOptions(**wrong)  # type: ignore[arg-type]

    def test_a_path_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StateError, match=re.escape(f"RocksDB store {tmp_path / 'file'}: open failed")):
            RocksStore(tmp_path / "file", SMALL)
