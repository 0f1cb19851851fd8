from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamml.errors import CheckpointError, StateError
from streamml.state.checkpoints import Checkpoints, restore_files
from streamml.state.memory import MemoryStore
from streamml.state.rocks import RocksOptions, RocksStore

SMALL = RocksOptions(write_buffer_mb=1, block_cache_mb=1, background_jobs=1)
STEPS = [
    "left-overs removed",
    "begun",
    "store written",
    "manifest written",
    "renamed",
    "durable",
    "retired",
    "retention done",
]


def memory(value: bytes) -> MemoryStore:
    store = MemoryStore()
    store.write({b"k": value})
    return store


def save_and_retire(checkpoints: Checkpoints, number: int) -> None:
    checkpoints.save(number, memory(b"%d" % number), {})
    checkpoints.retire()


def value_in(checkpoints: Checkpoints) -> bytes | None:
    loaded = checkpoints.latest()
    assert loaded is not None
    return MemoryStore.restore(loaded.db).get_many([b"k"])[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWriting:
    def test_the_newest_one_is_loaded_with_what_was_stored_with_it(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "deep" / "root", clock=lambda: 1234)
        assert checkpoints.latest() is None
        data = {
            "offsets": {"0": 42},
            "pipeline": "payments",
            "ratio": 0.1,
            "none": None,
            "text": "ü\n",
            "list": [1, []],
        }
        checkpoints.save(1, memory(b"one"), {})
        written = checkpoints.save(7, memory(b"seven"), data)
        loaded = checkpoints.latest()
        assert loaded is not None
        assert (loaded.number, loaded.created_ms, loaded.data, loaded.problems) == (7, 1234, data, [])
        assert loaded.folder == tmp_path / "deep" / "root" / "chk-00000007"
        assert value_in(checkpoints) == b"seven"
        assert written.bytes == (loaded.db / "rows.bin").stat().st_size

    def test_the_oldest_beyond_keep_are_dropped(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, keep=2)
        for number in (1, 2, 5, 9):
            checkpoints.save(number, memory(b"%d" % number), {})
        assert len(names(tmp_path)) == 4
        checkpoints.retire()
        assert names(tmp_path) == ["chk-00000005", "chk-00000009"]
        assert [(info.number, info.valid) for info in checkpoints.list()] == [(5, True), (9, True)]
        assert checkpoints.load(5).number == 5

    def test_steps_are_told_in_their_order(self, tmp_path: Path) -> None:
        seen: list[str] = []
        checkpoints = Checkpoints(tmp_path, keep=1, on_step=seen.append)
        save_and_retire(checkpoints, 1)
        assert seen == [step for step in STEPS if step != "retired"]
        seen.clear()
        save_and_retire(checkpoints, 2)
        assert seen == STEPS

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_number_that_is_not_the_newest_is_refused_with_the_next_one(self, tmp_path: Path, number: int) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(2, memory(b"2"), {})
        with pytest.raises(CheckpointError, match=re.escape("wanted a number above 2")) as error:
            checkpoints.begin(number)
        assert "Go on from 3" in str(error.value)

    def test_commit_without_begin_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=re.escape("Call begin(1) first")):
            Checkpoints(tmp_path).commit(1, {})

    def test_a_left_over_temporary_folder_is_removed(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        (checkpoints.begin(1) / "half").write_text("x")
        assert checkpoints.latest() is None
        assert names(checkpoints.begin(1)) == []
        (tmp_path / "tmp-old-chk-00000000").mkdir()
        (tmp_path / "mine").mkdir()
        checkpoints.begin(3)
        assert names(tmp_path) == ["mine", "tmp-new-chk-00000003"]

    def test_abort_leaves_nothing_of_the_one_begun(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, memory(b"1"), {})
        checkpoints.begin(2)
        checkpoints.abort(2)
        checkpoints.abort(1)
        assert names(tmp_path) == ["chk-00000001"]

    @pytest.mark.parametrize("wrong", [{"x": {1, 2}}, {"x": float("nan")}, {"x": b"bytes"}])
    def test_a_manifest_that_json_cannot_hold_is_refused(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, memory(b"1"), {})
        with pytest.raises(CheckpointError, match="wanted a manifest of plain JSON values"):
            checkpoints.save(2, memory(b"2"), wrong)
        assert names(tmp_path) == ["chk-00000001"]

    def test_several_stores_can_share_one_checkpoint(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        folder = checkpoints.begin(1)
        for worker in range(2):
            memory(b"%d" % worker).checkpoint(folder / f"db-{worker}")
        checkpoints.commit(1, {})
        loaded = checkpoints.load(1)
        assert [MemoryStore.restore(loaded.folder / f"db-{n}").get_many([b"k"]) for n in (0, 1)] == [[b"0"], [b"1"]]

    def test_everything_is_forced_to_disk_before_its_name_appears(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: set[int] = set()
        real = os.fsync

        def fsync(handle: int) -> None:
            synced.add(os.fstat(handle).st_ino)
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        missing: dict[str, list[str]] = {}

        def look(step: str) -> None:
            if step == "manifest written":
                temporary = tmp_path / "tmp-new-chk-00000001"
                paths = [temporary, *temporary.rglob("*")]
                missing[step] = [path.name for path in paths if path.stat().st_ino not in synced]
                synced.clear()
            elif step == "durable":
                missing[step] = [] if tmp_path.stat().st_ino in synced else ["root"]

        store = RocksStore(tmp_path.parent / f"{tmp_path.name}-live", SMALL)
        store.write({b"k": b"v"})
        Checkpoints(tmp_path, on_step=look).save(1, store, {})
        store.close()
        assert missing == {"manifest written": [], "durable": []}

    def test_without_fsync_nothing_is_forced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("fsync"))
        Checkpoints(tmp_path, fsync=False).save(1, memory(b"1"), {})

    def test_files_that_did_not_change_are_not_read_again(self, tmp_path: Path) -> None:
        store = RocksStore(tmp_path / "live", SMALL)
        checkpoints = Checkpoints(tmp_path / "root")
        store.write({b"%06d" % number: os.urandom(100) for number in range(20_000)})
        first = checkpoints.save(1, store, {})
        assert checkpoints.read_bytes == first.bytes > 2_000_000
        store.write({b"%06d" % number: b"changed" for number in range(100)})
        checkpoints.save(2, store, {})
        assert checkpoints.read_bytes - first.bytes < 50_000
        store.close()
        victim = sorted((tmp_path / "root" / "chk-00000002" / "db").glob("*.sst"))[0]
        written = victim.stat().st_mtime_ns
        flip(victim, victim.stat().st_size // 2)  # one file under two names: both checkpoints are damaged
        os.utime(
            victim, ns=(written, written)
        )  # as a bad disk does it: what is remembered still fits, but is not asked
        with pytest.raises(CheckpointError, match="none can be used"):
            checkpoints.latest()


def flip(path: Path, at: int, by: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ by]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut in half": cut,
    "one byte short": shorten,
    "emptied": lambda path: os.truncate(path, 0),
    "one byte more": lengthen,
    "first byte flipped": lambda path: flip(path, 0),
    "middle byte flipped": lambda path: flip(path, path.stat().st_size // 2),
    "last byte flipped": lambda path: flip(path, path.stat().st_size - 1),
    "deleted": os.unlink,
    "made a folder": make_folder,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a RocksDB store with no file in common (`copytree` breaks the links)."""
    folder = tmp_path_factory.mktemp("two")
    store = RocksStore(folder / "live", SMALL)
    checkpoints = Checkpoints(folder / "root")
    for number in (1, 2):
        store.write({b"k": b"%d" % number, b"%d" % number: bytes(500)})
        checkpoints.save(number, store, {"number": number})
    store.close()
    shutil.copytree(folder / "root", folder / "copied")
    return folder / "copied"


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_any_damage_to_any_file_of_the_newest_gives_the_one_before(
        self, two: Path, tmp_path: Path, damage: str
    ) -> None:
        files = sorted(contents(two / "chk-00000002"))
        assert len(files) >= 6
        tried = 0
        for number, name in enumerate(files):
            root = tmp_path / str(number)
            shutil.copytree(two, root)
            victim = root / "chk-00000002" / name
            if victim.stat().st_size == 0 and damage not in {"one byte more", "deleted", "made a folder"}:
                continue
            if name == "MANIFEST.json" and damage in {"one byte short"}:
                continue  # that byte is a line end, and nothing is lost with it
            DAMAGES[damage](victim)
            loaded = Checkpoints(root).latest()
            assert loaded is not None
            assert (loaded.number, loaded.data) == (1, {"number": 1}), name
            assert len(loaded.problems) == 1
            assert Path(name).name in loaded.problems[0]
            assert str(root / "bad-chk-00000002") in loaded.problems[0]
            assert names(root) == ["bad-chk-00000002", "chk-00000001"]
            again = Checkpoints(root).latest()
            assert again is not None and again.number == 1 and again.problems == []
            tried += 1
        assert tried >= len(files) - 2

    def test_no_flipped_byte_of_the_manifest_is_believed(self, two: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        shutil.copytree(two, root)
        manifest = root / "chk-00000002" / "MANIFEST.json"
        whole = manifest.read_bytes()
        for at in range(len(whole)):
            for by in (0x01, 0x80):
                manifest.write_bytes(whole)
                flip(manifest, at, by)
                info = Checkpoints(root).list()[1]
                assert not info.valid, (at, by, whole[at])

    def test_a_file_that_the_manifest_does_not_list_makes_a_checkpoint_unusable(
        self, two: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "root"
        shutil.copytree(two, root)
        RocksStore(root / "chk-00000002" / "db", SMALL).close()
        loaded = Checkpoints(root).latest()
        assert loaded is not None and loaded.number == 1
        assert "was it opened here?" in loaded.problems[0] or "is missing" in loaded.problems[0]

    def test_a_checkpoint_under_the_name_of_another_is_not_taken_for_it(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, memory(b"1"), {})
        shutil.copytree(tmp_path / "chk-00000001", tmp_path / "chk-00000005")
        loaded = checkpoints.latest()
        assert loaded is not None and loaded.number == 1
        assert "MANIFEST.json is of checkpoint 1" in loaded.problems[0]

    def test_a_file_that_cannot_be_read_for_another_reason_is_not_taken_for_damage(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for number in (1, 2):
            checkpoints.save(number, memory(b"%d" % number), {})
        victim = tmp_path / "chk-00000002" / "db" / "rows.bin"
        victim.unlink()
        victim.symlink_to(victim)  # ELOOP, as good as a lack of rights or of file handles
        with pytest.raises(CheckpointError, match=r"it can't be read: .* Remove the cause, and start again"):
            checkpoints.latest()
        assert names(tmp_path) == ["chk-00000001", "chk-00000002"]

    def test_what_was_put_aside_is_whole_and_a_second_one_does_not_replace_it(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, memory(b"1"), {})
        for _ in range(2):
            checkpoints.save(2, memory(b"2"), {})
            cut(tmp_path / "chk-00000002" / "db" / "rows.bin")
            before = contents(tmp_path / "chk-00000002")
            assert value_in(checkpoints) == b"1"
        assert names(tmp_path) == ["bad-chk-00000002", "bad-chk-00000002.2", "chk-00000001"]
        assert contents(tmp_path / "bad-chk-00000002.2") == before

    def test_when_none_is_usable_each_is_named_and_none_is_moved(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for number in (1, 2):
            checkpoints.save(number, memory(b"%d" % number), {})
        (tmp_path / "chk-00000001" / "MANIFEST.json").unlink()
        cut(tmp_path / "chk-00000002" / "db" / "rows.bin")
        for _ in range(2):  # a supervisor that starts the job again must not get an empty state at the second attempt
            with pytest.raises(CheckpointError, match="none can be used") as error:
                Checkpoints(tmp_path).latest()
            assert "chk-00000001: MANIFEST.json is missing" in str(error.value)
            assert "chk-00000002: db/rows.bin has" in str(error.value)
            assert "move it elsewhere to start from empty state" in str(error.value)
            assert names(tmp_path) == ["chk-00000001", "chk-00000002"]

    def test_folders_put_aside_alone_do_not_mean_an_empty_state(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path).save(1, memory(b"1"), {})
        (tmp_path / "chk-00000001").rename(tmp_path / "bad-chk-00000001")
        with pytest.raises(CheckpointError, match="bad-chk-00000001: was put aside as damaged"):
            Checkpoints(tmp_path).latest()

    def test_a_newer_format_is_refused_and_not_passed_over(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for number in (1, 2):
            checkpoints.save(number, memory(b"%d" % number), {})
        as_format(tmp_path / "chk-00000002", 2)
        with pytest.raises(CheckpointError, match="has format 2, and this version of streamml reads format 1") as error:
            checkpoints.latest()
        assert "Run the version of streamml that wrote it" in str(error.value)
        assert names(tmp_path) == ["chk-00000001", "chk-00000002"]
        assert [info.valid for info in checkpoints.list()] == [True, False]
        assert checkpoints.load(1).number == 1

    def test_an_older_checkpoint_of_a_newer_format_does_not_matter(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for number in (1, 2):
            checkpoints.save(number, memory(b"%d" % number), {})
        as_format(tmp_path / "chk-00000001", 2)
        assert value_in(checkpoints) == b"2"

    def test_the_list_names_each_problem_and_changes_nothing(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, clock=lambda: 5)
        for number in (1, 2, 3):
            checkpoints.save(number, memory(b"%d" % number), {})
        flip(tmp_path / "chk-00000002" / "db" / "rows.bin", 20)
        before = contents(tmp_path)
        infos = checkpoints.list()
        assert [(info.number, info.created_ms, info.valid) for info in infos] == [
            (1, 5, True),
            (2, None, False),
            (3, 5, True),
        ]
        assert infos[1].problem == "the checksum of db/rows.bin does not fit its content"
        assert [info.valid for info in checkpoints.list(contents=False)] == [True, True, True]
        assert contents(tmp_path) == before

    def test_loading_by_number_says_what_there_is(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        with pytest.raises(CheckpointError, match="there are: none at all"):
            checkpoints.load(4)
        for number in (1, 2):
            checkpoints.save(number, memory(b"%d" % number), {})
        with pytest.raises(CheckpointError, match=re.escape("there are: [1, 2]")):
            checkpoints.load(4)
        cut(tmp_path / "chk-00000002" / "db" / "rows.bin")
        with pytest.raises(CheckpointError, match=re.escape("Others are: [1]")):
            checkpoints.load(2)
        assert names(tmp_path) == ["chk-00000001", "chk-00000002"]

    def test_rewinding_puts_newer_ones_aside_and_frees_their_numbers(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for number in (1, 2, 3):
            checkpoints.save(number, memory(b"%d" % number), {})
        moved = checkpoints.rewind(checkpoints.load(1).number)
        assert [text.split(":")[0] for text in moved] == ["chk-00000003", "chk-00000002"]
        checkpoints.save(2, memory(b"other"), {})
        assert value_in(checkpoints) == b"other"


def as_format(folder: Path, version: int) -> None:
    """Rewrite a manifest as a later version would, with a checksum by the rule that every format keeps."""
    body = json.loads((folder / "MANIFEST.json").read_text())
    del body["checksum"]
    body["format"] = version
    crc = zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    (folder / "MANIFEST.json").write_text(json.dumps({**body, "checksum": f"{crc:08x}"}))


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, and return its exit code. No RocksDB there: its threads do not survive a fork."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: str) -> Callable[[str], None]:
    return lambda now: os._exit(7) if now == step else None


KILL_ROCKS = """
import os, sys
from pathlib import Path
from streamml.state.checkpoints import Checkpoints
from streamml.state.rocks import RocksStore
root, live, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = RocksStore(live)
for number in (1, 2, 3):
    store.write({b"%05d" % row: b"%d" % number for row in range(number * 1000)})
    die = (lambda now: os._exit(7) if now == step else None) if number == 3 else None
    checkpoints = Checkpoints(root, keep=2, on_step=die)
    checkpoints.save(number, store, {"number": number})
    checkpoints.retire()
"""


@pytest.mark.fault
class TestKill:
    @pytest.mark.parametrize("step", STEPS)
    def test_a_process_killed_between_two_steps_leaves_the_old_or_the_new_one(self, tmp_path: Path, step: str) -> None:
        for number in (1, 2):
            Checkpoints(tmp_path, keep=2).save(number, memory(b"%d" % number), {})
        checkpoints = Checkpoints(tmp_path, keep=2, on_step=die_at(step))
        assert in_child(lambda: save_and_retire(checkpoints, 3)) == 7
        survivor = Checkpoints(tmp_path, keep=2)
        renamed = STEPS.index(step) >= STEPS.index("renamed")
        assert value_in(survivor) == (b"3" if renamed else b"2")
        assert all(info.valid for info in survivor.list())
        save_and_retire(survivor, 4)
        assert value_in(survivor) == b"4"
        assert names(tmp_path) == [f"chk-{3 if renamed else 2:08d}", "chk-00000004"]

    def test_a_process_killed_while_the_store_writes_leaves_the_old_one(self, tmp_path: Path) -> None:
        class Half(MemoryStore):
            def checkpoint(self, folder: Path) -> None:
                super().checkpoint(folder)
                cut(folder / "rows.bin")
                os._exit(7)

        Checkpoints(tmp_path).save(1, memory(b"1"), {})
        assert in_child(lambda: Checkpoints(tmp_path).save(2, Half(), {})) == 7
        assert value_in(Checkpoints(tmp_path)) == b"1"

    def test_the_first_checkpoint_killed_before_it_is_renamed_means_there_is_none(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, on_step=die_at("manifest written"))
        assert in_child(lambda: checkpoints.save(1, memory(b"1"), {})) == 7
        assert Checkpoints(tmp_path).latest() is None

    @pytest.mark.parametrize("step", STEPS)
    def test_a_killed_rocksdb_worker_restores_all_rows_of_the_checkpoint_it_finds(
        self, tmp_path: Path, step: str
    ) -> None:
        root, live = tmp_path / "root", tmp_path / "live"
        assert subprocess.run([sys.executable, "-c", KILL_ROCKS, root, live, step], timeout=60).returncode == 7
        loaded = Checkpoints(root).latest()
        assert loaded is not None and loaded.problems == []
        assert loaded.number == (3 if STEPS.index(step) >= STEPS.index("renamed") else 2)
        restore_files(loaded.db, live)
        store = RocksStore(live, SMALL)
        wanted = {b"%05d" % row: b"%d" % loaded.number for row in range(loaded.number * 1000)}
        assert dict(store.scan(b"", b"\xff")) == wanted
        store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if made.returncode:
        pytest.skip(f"a small disk can't be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class TestFullDisk:
    @pytest.mark.parametrize("kind", ["memory", "rocks"])
    def test_a_full_disk_is_named_and_costs_no_earlier_checkpoint(
        self, small_disk: Path, tmp_path: Path, kind: str
    ) -> None:
        store = MemoryStore() if kind == "memory" else RocksStore(tmp_path / "live", SMALL)
        checkpoints = Checkpoints(small_disk / "root")
        store.write({b"k": b"1"})
        checkpoints.save(1, store, {})
        before = contents(small_disk / "root")
        store.write({b"%d" % number: os.urandom(1000) for number in range(8000)})
        with pytest.raises(CheckpointError, match=r"\d+ bytes are free there") as error:
            checkpoints.save(2, store, {})
        assert str(small_disk / "root") in str(error.value)
        assert "No space left" in str(error.value)
        assert "Free space on that disk" in str(error.value)
        assert contents(small_disk / "root") == before
        assert names(small_disk / "root") == ["chk-00000001"]
        # The store lives on another disk, so it goes on, and so do checkpoints when there is space.
        store.write({b"%d" % number: None for number in range(8000)})
        if kind == "memory":
            checkpoints.save(2, store, {})
            assert value_in(checkpoints) == b"1"
        else:
            assert store.get_many([b"k", b"7"]) == [b"1", None]
        store.close()

    def test_a_disk_that_is_full_for_the_manifest_costs_no_earlier_checkpoint(self, small_disk: Path) -> None:
        checkpoints = Checkpoints(small_disk / "root")
        checkpoints.save(1, memory(b"1"), {})
        folder = checkpoints.begin(2)
        memory(b"2").checkpoint(folder / "db")
        with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(CheckpointError, match=r"No space left.* \d+ bytes are free there"):
            checkpoints.commit(2, {"big": "x" * 100_000})
        assert names(small_disk / "root") == ["chk-00000001"]
        assert value_in(checkpoints) == b"1"

    def test_a_rocksdb_store_whose_own_disk_is_full_says_so_and_its_checkpoint_restores(
        self, small_disk: Path, tmp_path: Path
    ) -> None:
        checkpoints = Checkpoints(tmp_path / "root")
        store = RocksStore(small_disk / "live", SMALL)
        store.write({b"k": b"1"})
        checkpoints.save(1, store, {})
        with pytest.raises(StateError, match="No space left"):
            for part in range(20):
                store.write({b"%d-%d" % (part, number): os.urandom(1000) for number in range(1000)})
        with pytest.raises(StateError, match="Free space on that disk and restart the job"):
            store.close()
        loaded = checkpoints.latest()
        assert loaded is not None
        restore_files(loaded.db, small_disk / "live")
        store = RocksStore(small_disk / "live", SMALL)
        assert dict(store.scan(b"", b"\xff")) == {b"k": b"1"}
        store.close()

    def test_a_limit_on_file_size_is_reported_the_same_way(self, tmp_path: Path) -> None:
        """The test of a disk that takes no more for users who can't mount one."""
        checkpoints = Checkpoints(tmp_path / "root")
        checkpoints.save(1, memory(b"1"), {})

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                checkpoints.save(2, memory(bytes(500_000)), {})
            except CheckpointError as exc:
                os.write(writing, str(exc).encode())

        reading, writing = os.pipe()
        assert in_child(work) == 0
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        assert re.search(r"File too large.* \d+ bytes are free there", said), said
        assert str(tmp_path / "root") in said
        assert names(tmp_path / "root") == ["chk-00000001"]
        assert value_in(checkpoints) == b"1"


class TestRestoreFiles:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        """The `db` folder of a checkpoint with 500 rows."""
        store = RocksStore(tmp_path / "first", SMALL)
        store.write({b"%03d" % number: bytes(100) for number in range(500)})
        Checkpoints(tmp_path / "root").save(1, store, {})
        store.close()
        return tmp_path / "root" / "chk-00000001" / "db"

    def test_immutable_files_are_shared_and_all_others_copied(self, saved: Path, tmp_path: Path) -> None:
        restore_files(saved, tmp_path / "deep" / "live")
        assert names(tmp_path / "deep" / "live") == names(saved)
        for path in saved.iterdir():
            shared = path.stat().st_ino == (tmp_path / "deep" / "live" / path.name).stat().st_ino
            assert shared == (path.suffix == ".sst"), path.name

    def test_what_the_live_store_does_never_changes_the_checkpoint(self, saved: Path, tmp_path: Path) -> None:
        before = contents(saved)
        restore_files(saved, tmp_path / "live")
        store = RocksStore(tmp_path / "live", SMALL)
        for part in range(6):  # enough flushes for a compaction, which removes the files that are shared
            store.write({b"%03d" % number: b"%d" % part for number in range(500)})
            store.checkpoint(tmp_path / f"copy-{part}")
        store.write({b"%03d" % number: None for number in range(500)})
        store.close()
        assert contents(saved) == before
        assert Checkpoints(tmp_path / "root").load(1).problems == []

    def test_what_a_store_left_is_replaced(self, saved: Path, tmp_path: Path) -> None:
        store = RocksStore(tmp_path / "live", SMALL)
        store.write({b"left": b"over"})
        store.close()
        restore_files(saved, tmp_path / "live")
        store = RocksStore(tmp_path / "live", SMALL)
        assert store.get_many([b"left", b"000"]) == [None, bytes(100)]
        store.close()

    def test_a_folder_with_files_of_something_else_is_not_touched(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("x")
        (tmp_path / "home" / "000001.sst").write_text("x")
        with pytest.raises(StateError, match=re.escape("got thesis.tex. Nothing was removed")):
            restore_files(saved, tmp_path / "home")
        assert names(tmp_path / "home") == ["000001.sst", "thesis.tex"]

    def test_a_folder_that_another_process_has_open_is_not_touched(self, saved: Path, tmp_path: Path) -> None:
        hold = (
            "import sys; from pathlib import Path; from streamml.state.rocks import RocksStore\n"
            "store = RocksStore(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", hold, str(tmp_path / "live")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None and other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            before = names(tmp_path / "live")
            with pytest.raises(StateError, match="another process has this store open"):
                restore_files(saved, tmp_path / "live")
            assert names(tmp_path / "live") == before
            other.stdin.close()

    def test_files_are_copied_where_they_cannot_be_linked(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        restore_files(saved, tmp_path / "live")
        assert contents(tmp_path / "live") == contents(saved)

    def test_a_checkpoint_that_is_not_there_leaves_the_live_folder(self, tmp_path: Path) -> None:
        RocksStore(tmp_path / "live", SMALL).close()
        before = names(tmp_path / "live")
        with pytest.raises(StateError, match="wanted the db folder of a checkpoint"):
            restore_files(tmp_path / "root" / "chk-00000001" / "db", tmp_path / "live")
        assert names(tmp_path / "live") == before
