"""`streamml state` on the state of a real run, without the job's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamml.state.rows import key_in
from streamml.state.table import encode_key

pytestmark = pytest.mark.slow


@pytest.fixture
def state(cli: Any, home: Path, stream: list[str]) -> Path:
    """The state folder of a finished run; the job's file is gone."""
    assert cli("run", "clicks.py", "--source", "in.jsonl", "--sink", "out.jsonl", "--state-dir", "st").code == 0
    (home / "clicks.py").unlink()
    return home / "st"


def expected(lines: list[str], user: str) -> tuple[int, list[str], dict[int, str]]:
    """What the job keeps for a user, by a plain loop: its count, its recent ids, its pages."""
    ids: dict[str, int] = {}
    for line in lines:
        if line != "{broken":
            record = json.loads(line)
            if record["user"] == user:
                ids.setdefault(record["id"], record["ts"])
    pages = {ts % 3: id for id, ts in ids.items()}
    return len(ids), list(ids), pages


def test_get_decodes_every_kind_of_state_by_name(cli: Any, state: Path, stream: list[str]) -> None:
    count, ids, pages = expected(stream, "u1")
    found = cli("state", "get", state, "--key", "u1").json
    assert found["checkpoint"] == 1
    (entry,) = found["found"]
    assert (entry["stage"], entry["key"]) == ("stage1", "u1")
    assert entry["states"]["number.seen"] == count
    assert entry["states"]["number.recent"] == ids
    assert {int(page): id for page, id in entry["states"]["number.pages"].items()} == pages
    assert sorted(entry["states"]["dedupe.seen"]) == sorted(f"clicks/{id}" for id in ids)


def test_get_reads_lists_and_sets_that_are_spilled_in_chunks(cli: Any, home: Path) -> None:
    lines = [json.dumps({"id": f"i{i}", "user": "u", "ts": i}) for i in range(1500)]
    (home / "in.jsonl").write_text("\n".join(lines))
    cli("run", "clicks.py", "--source", "in.jsonl", "--sink", "out.jsonl", "--state-dir", "st")
    assert cli("state", "sizes", "st", "--json").json["stages"][1]["rows"]["chunks"] > 2
    (entry,) = cli("state", "get", "st", "--key", "u").json["found"]
    assert entry["states"]["number.recent"] == [f"i{i}" for i in range(1500)]
    assert sorted(entry["states"]["dedupe.seen"]) == sorted(f"clicks/i{i}" for i in range(1500))


def test_a_key_without_state_is_4_and_says_how_to_list_keys(cli: Any, state: Path) -> None:
    done = cli("state", "get", state, "--key", "nobody")
    assert (done.code, done.out) == (4, "")
    assert "streamml state keys" in done.err


def test_keys_lists_every_key_once_with_its_size(cli: Any, state: Path, stream: list[str]) -> None:
    users = {json.loads(line)["user"] for line in stream if line != "{broken"}
    found = cli("state", "keys", state, "--json").json
    assert sorted(entry["key"] for entry in found["keys"]) == sorted(users)
    assert found["more"] is False
    few = cli("state", "keys", state, "--json", "--limit", "2").json
    assert (len(few["keys"]), few["more"]) == (2, True)


def test_sizes_add_up_to_what_is_stored(cli: Any, state: Path, stream: list[str]) -> None:
    found = cli("state", "sizes", state, "--json").json
    (stage,) = [stage for stage in found["stages"] if stage["stage"] == "stage1"]
    keys = cli("state", "keys", state, "--json", "--limit", "1000").json["keys"]
    assert stage["keys"] == len(keys)
    assert sum(stage["rows"].values()) == sum(key["rows"] for key in keys)
    assert sum(stage["bytes"].values()) == sum(key["bytes"] for key in keys)
    assert stage["rows"]["states"] == len(keys)
    sizes = sorted((key["bytes"] for key in keys), reverse=True)[:10]
    assert [key["bytes"] for key in stage["largest"]] == sizes
    one = cli("state", "get", state, "--key", stage["largest"][0]["key"]).json
    assert one["found"][0]["bytes"] == sizes[0]


def test_list_and_show_say_what_there_is(cli: Any, state: Path) -> None:
    found = cli("state", "list", state, "--json").json
    assert [(info["number"], info["problem"]) for info in found["checkpoints"]] == [(1, None)]
    shown = cli("state", "show", state)
    assert "pipeline clicks" in shown.out and "number.pages: map of int to str" in shown.out
    assert cli("state", "show", state, "--json").json["sources"]["clicks"]


def test_a_damaged_checkpoint_is_listed_with_its_problem_and_left_where_it_is(cli: Any, state: Path) -> None:
    (file, *_) = sorted((state / "checkpoints" / "chk-00000001" / "db").glob("*.sst"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # linked: not to damage the live file too
    file.write_bytes(content)
    assert "checksum" in cli("state", "list", state).out
    done = cli("state", "get", state, "--key", "u1")
    assert done.code == 4
    assert (state / "checkpoints" / "chk-00000001").is_dir()


def test_looking_leaves_nothing_behind(cli: Any, state: Path) -> None:
    before = sorted(path.relative_to(state) for path in state.rglob("*"))
    for command in (("get", "--key", "u1"), ("keys",), ("sizes",), ("show",), ("list",)):
        assert cli("state", command[0], state, *command[1:]).code == 0
    assert sorted(path.relative_to(state) for path in state.rglob("*")) == before


def test_a_running_job_can_be_looked_at(
    start: Any, cli: Any, home: Path, stream: list[str], answer: Any, read: Any
) -> None:
    slow = ("--batch-size", "20", "--checkpoint-interval", "50ms", "--param", "pause=0.003")
    process = start("run", "clicks.py", "--source", "in.jsonl", "--sink", "out.jsonl", "--state-dir", "st", *slow)
    while not list((home / "st" / "checkpoints").glob("chk-*")):
        assert process.poll() is None
    counts = []
    while len(set(counts)) < 4:
        assert process.poll() is None
        done = cli("state", "get", "st", "--key", "u1")
        assert done.code == 0, done.err
        counts.append(done.json["found"][0]["states"]["number.seen"])
    assert counts == sorted(counts)
    process.terminate()
    process.communicate(timeout=60)
    assert cli("run", "clicks.py", "--source", "in.jsonl", "--sink", "out.jsonl", "--state-dir", "st").code == 0
    assert read("out.jsonl") == answer(stream)


def test_pending_timers_are_shown_while_they_are_pending(start: Any, cli: Any, home: Path, stream: list[str]) -> None:
    slow = ("--batch-size", "20", "--checkpoint-interval", "50ms", "--param", "pause=0.003")
    process = start("run", "clicks.py", "--source", "in.jsonl", "--sink", "out.jsonl", "--state-dir", "st", *slow)
    while not (home / "out.jsonl").exists() or not (home / "out.jsonl").stat().st_size:
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    entry = cli("state", "get", "st", "--key", "u1").json["found"][0]
    times = [timer["time"] for timer in entry["timers"]]
    assert len(times) == entry["states"]["number.seen"]
    assert {(timer["operator"], timer["name"], timer["clock"]) for timer in entry["timers"]} == {
        ("number", "day", "event")
    }


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_a_folder_without_checkpoints_is_4(cli: Any, home: Path, folder: str) -> None:
    done = cli("state", "list", folder)
    assert (done.code, "there are no checkpoints" in done.err) == (4, True)


def test_an_unknown_stage_is_2(cli: Any, state: Path) -> None:
    done = cli("state", "keys", state, "--stage", "stage2")
    assert (done.code, "Did you mean 'stage1'?" in done.err) == (2, True)


KEYS = [
    "",
    "card-1",
    "é" * 40,
    "x" * 300,
    0,
    5,
    -3,
    200,
    70_000,
    2**40,
    -(2**40),
    True,
    None,
    1.5,
    b"raw",
    ("a", 1),
    (("b", None), 2),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("kind", [b"k", b"c", b"m", b"t"])
def test_the_key_is_found_in_the_key_of_a_row(key: Any, kind: bytes) -> None:
    raw = encode_key(key)
    timer = bytes(11) if kind == b"t" else b""
    for rest in (b"", b"\x00\x01" + bytes(8), b"\xff" * 12):
        assert key_in(bytes(3) + kind + timer + raw + rest, kind) == raw
