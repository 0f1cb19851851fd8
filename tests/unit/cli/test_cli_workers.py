"""`streamml run --workers` and `streamml state` on what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RUN = ("run", "clicks.py", "--source", "file:in.jsonl", "--sink", "file:out.jsonl", "--state-dir", "st")


def clicks() -> list[str]:
    """Lines of 37 users, with a duplicate in ten and a broken line in fifty."""
    ids = [i - 7 if i % 10 == 9 else i for i in range(2000)]
    records = [{"id": f"c{i}", "user": f"u{i % 37}", "ts": 1_700_000_000_000 + i * 10} for i in ids]
    return ["{broken" if i % 50 == 49 else json.dumps(record) for i, record in enumerate(records)]


@pytest.mark.slow
def test_two_workers_write_parts_that_hold_the_answer_and_state_finds_each_key(
    cli: Any, home: Path, answer: Any, read: Any
) -> None:
    stream = clicks()
    (home / "in.jsonl").write_text("\n".join(stream))
    done = cli(*RUN, "--workers", "2", "--json")
    assert (done.code, done.err) == (0, "")
    body = done.json
    assert (body["finished"], body["figures"]["events_in"], body["sink"]) == (True, 2000, "file:out.g0001-w*.jsonl")
    assert body["sides"]["rejected"]["records"] == 40 == sum(body["sides"]["rejected"]["kinds"].values())
    parts = [read("out.g0001-w0000.jsonl"), read("out.g0001-w0001.jsonl")]
    assert all(parts)

    def by_user(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        users: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            users.setdefault(record["user"], []).append(record)
        return users

    assert by_user(parts[0] + parts[1]) == by_user(answer(stream))
    assert not set(by_user(parts[0])) & set(by_user(parts[1]))

    users = sorted(by_user(answer(stream)))
    for user in users:
        (entry,) = cli("state", "get", "st", "--key", user).json["found"]
        assert entry["states"]["number.seen"] == len(by_user(answer(stream))[user])
    keys = cli("state", "keys", "st", "--limit", "99", "--json").json["keys"]
    assert sorted(key["key"] for key in keys) == users
    sizes = cli("state", "sizes", "st", "--json").json
    assert sizes["checkpoint"] == {"worker 0": 1, "worker 1": 1}
    assert [stage["keys"] for stage in sizes["stages"]] == [0, len(users)]
    assert len(cli("state", "list", "st", "--json").json["workers"]) == 2
    assert [worker["finished"] for worker in cli("state", "show", "st", "--json").json["workers"]] == [True, True]
    shown = cli("state", "show", "st").out
    assert "checkpoint 1 of worker 0" in shown and "checkpoint 1 of worker 1" in shown
    assert cli("state", "list", "st").out.count("whole") == 2
    again = cli(*RUN, "--plain")
    assert again.code == 0 and "Nothing new" in again.out


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ((*RUN[:6], "--workers", "2"), "so give --state-dir DIR"),
        ((*RUN[:4], "--state-dir", "st", "--workers", "2"), "can't write to standard output"),
        (("run", "clicks.py", "--source", "-", *RUN[4:], "--workers", "2"), "can be read only once"),
        ((*RUN, "--workers", "200"), "128 key groups"),
        ((*RUN, "--workers", "2", "--metrics-port", "x"), "--metrics-port x: wanted a port"),
    ],
)
def test_what_workers_can_not_share_is_refused_before_they_start(
    more: tuple[str, ...], wanted: str, cli: Any, home: Path, stream: list[str]
) -> None:
    done = cli(*more)
    assert done.code == 2
    assert wanted in " ".join(done.err.split())
    assert not list(home.glob("out*")) and not (home / "st" / "gen-0001").exists()


@pytest.mark.slow
def test_a_pipeline_with_two_keys_runs_in_two_segments(cli: Any, home: Path) -> None:
    job = (home / "clicks.py").read_text()
    (home / "clicks.py").write_text(job.replace(".then(Number())", '.key_by("ts").then(Number())'))
    (home / "in.jsonl").write_text("\n".join(clicks()))
    assert cli(*RUN[:4], "--sink", "file:alone.jsonl", "--json").json["finished"]
    done = cli(*RUN, "--workers", "2", "--json")
    assert (done.code, done.err) == (0, "")
    body = done.json
    assert (body["finished"], body["figures"]["events_in"], body["sink"]) == (True, 2000, "file:out.g0001-s01-w*.jsonl")
    parts = [(home / f"out.g0001-s01-w000{index}.jsonl").read_text().splitlines() for index in (0, 1)]
    assert all(parts) and body["figures"]["events_out"] == len(parts[0]) + len(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted((home / "alone.jsonl").read_text().splitlines())
    assert body["sides"]["rejected"]["records"] == 40
    assert list(home.glob(Path(body["sides"]["rejected"]["uri"].removeprefix("file:")).name))
