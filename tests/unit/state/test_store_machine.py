"""Each store against a dict, by random sequences of operations."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from streamml.state.checkpoints import Checkpoints, restore_files
from streamml.state.memory import MemoryStore
from streamml.state.rocks import RocksOptions, RocksStore
from streamml.state.store import Store

KEYS = st.binary(max_size=3) | st.sampled_from([b"", b"\x00", b"a", b"a\x00", b"\xff", b"\xff\xff"])
VALUES = st.binary(max_size=20) | st.just(b"") | st.just(b"x" * 5000)
OPTIONS = RocksOptions(write_buffer_mb=1, block_cache_mb=1, background_jobs=1)


class StoreMachine(RuleBasedStateMachine):
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.checkpoints = Checkpoints(self.folder / "checkpoints", fsync=False)
        self.number = 0
        self.model: dict[bytes, bytes] = {}
        self.saved: dict[int, dict[bytes, bytes]] = {}
        self.store = self.open(None)

    def open(self, db: Path | None) -> Store:
        raise NotImplementedError

    @initialize(target=keys, key=KEYS)
    def first_key(self, key: bytes) -> bytes:
        return key

    @rule(target=keys, key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> bytes:
        self.store.write({key: value})
        self.model[key] = value
        return key

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.store.write({key: None})
        self.model.pop(key, None)

    @rule(batch=st.dictionaries(KEYS, st.none() | VALUES, max_size=8))
    def write(self, batch: dict[bytes, bytes | None]) -> None:
        self.store.write(batch)
        for key, value in batch.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    @rule(known=st.lists(keys, max_size=3), others=st.lists(KEYS, max_size=3))
    def get(self, known: list[bytes], others: list[bytes]) -> None:
        asked = [*others, *known]
        assert self.store.get_many(asked) == [self.model.get(key) for key in asked]

    @rule(start=KEYS, stop=KEYS | st.just(b"\xff\xff\xff\xff"), key=keys, value=VALUES)
    def scan_while_writing(self, start: bytes, stop: bytes, key: bytes, value: bytes) -> None:
        wanted = sorted(row for row in self.model.items() if start <= row[0] < stop)
        rows = self.store.scan(start, stop)
        self.put(key, value)
        assert list(rows) == wanted

    @rule()
    def checkpoint(self) -> None:
        self.number += 1
        self.checkpoints.save(self.number, self.store, {"rows": len(self.model)})
        self.saved[self.number] = dict(self.model)
        self.saved = {number: self.saved[number] for number in sorted(self.saved)[-3:]}  # what `keep` leaves

    @rule(torn=st.booleans())
    def crash_and_restore(self, torn: bool) -> None:
        if torn and len(self.saved) > 1:
            newest = max(self.saved)
            del self.saved[newest]
            (self.folder / "checkpoints" / f"chk-{newest:08d}" / "MANIFEST.json").unlink()
        self.store.close()
        loaded = self.checkpoints.latest()
        if loaded is None:
            assert not self.saved
            self.model = {}
            self.store = self.open(None)
            return
        assert loaded.number == max(self.saved)
        self.number = loaded.number
        self.model = dict(self.saved[loaded.number])
        assert loaded.data == {"rows": len(self.model)}
        self.store = self.open(loaded.db)

    @invariant()
    def all_rows_are_the_model(self) -> None:
        assert list(self.store.scan(b"", b"\xff\xff\xff\xff")) == sorted(self.model.items())

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


class MemoryMachine(StoreMachine):
    def open(self, db: Path | None) -> Store:
        return MemoryStore() if db is None else MemoryStore.restore(db)


class RocksMachine(StoreMachine):
    def open(self, db: Path | None) -> Store:
        live = self.folder / "live"
        if db is not None:
            restore_files(db, live)
        elif live.exists():
            shutil.rmtree(live)
        return RocksStore(live, OPTIONS)


class TestMemoryStoreIsADict(MemoryMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class TestRocksStoreIsADict(RocksMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
