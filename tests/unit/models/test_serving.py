"""`Serving`: rollouts are followed, prepared, refused and freed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamml.errors import ModelError
from streamml.models import Bundle
from streamml.models.registry import Registry
from streamml.models.rollout import Guard, Split
from streamml.models.serve import serve
from streamml.models.serving import Serving
from streamml.observability import Metrics


@pytest.fixture
def registry(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Registry:
    for version in (1, 2, 3, 4):
        make_bundle(tmp_path / "models" / "linear" / str(version), version=version)
    return Registry(tmp_path / "models")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(clock=time.perf_counter)


@pytest.fixture
def follow(registry: Registry, metrics: Metrics) -> Iterator[Callable[[], Serving]]:
    opened: list[Serving] = []

    def make() -> Serving:
        opened.append(serve("linear@prod", [registry.place], poll=0.01, metrics=metrics))
        return opened[-1]

    yield make
    for serving in opened:
        serving.close()


def write(registry: Registry, action: str, effective: int, champion: int, **more: Any) -> int:
    return registry.append(
        "linear", "prod", action, effective=effective, champion=champion, who="me", why="", at=0, **more
    ).number


def soon(true: Callable[[], bool]) -> None:
    """Wait until something is so that another thread does."""
    stop = time.monotonic() + 30
    while not true():
        assert time.monotonic() < stop, "did not come about"
        time.sleep(0.005)


def champions(serving: Serving, *times: int) -> list[int]:
    return [serving.rollout(serving.history, at).champion for at in times]


def test_without_a_rollout_the_highest_version_serves_until_there_is_one(
    registry: Registry, follow: Callable[[], Serving]
) -> None:
    serving = follow()
    assert champions(serving, 0, 10**13) == [4, 4]
    write(registry, "promote", 0, 2)
    soon(lambda: champions(serving, 5) == [2])


def test_a_promotion_is_loaded_before_it_counts_and_the_old_version_is_freed_once_no_event_needs_it(
    registry: Registry, follow: Callable[[], Serving], metrics: Metrics
) -> None:
    write(registry, "promote", 0, 1)
    serving = follow()
    serving.settle(900, 800)
    assert serving.loaded == (1,)
    write(registry, "promote", 1_000, 2)
    soon(lambda: serving.loaded == (1, 2))
    soon(lambda: len(serving.history.spans) == 2)
    assert champions(serving, 999, 1_000) == [1, 2]
    serving.settle(1_100, 950)
    assert serving.loaded == (1, 2)  # an event older than 1000 may still come
    serving.settle(1_200, 1_000)
    assert serving.loaded == (2,)
    assert champions(serving, 999) == [1]  # one that comes later still is scored as its time wants
    assert metrics.counter("streamml_model_swaps_total", model="linear").value == 1


def test_a_replay_walks_through_the_versions_with_at_most_two_in_memory(
    registry: Registry, follow: Callable[[], Serving]
) -> None:
    for version in (1, 2, 3, 4):
        write(registry, "promote", version * 1_000, version)
    serving = follow()
    seen = []
    for at in range(500, 5_000, 100):
        seen += champions(serving, at)
        serving.settle(at, at)
        assert len(serving.loaded) <= 2
    assert seen == [1] * 15 + [2] * 10 + [3] * 10 + [4] * 10


def test_a_broken_version_is_refused_and_the_history_says_so(
    registry: Registry, follow: Callable[[], Serving], metrics: Metrics
) -> None:
    write(registry, "promote", 0, 1)
    serving = follow()
    serving.settle(900, 900)
    model = Path(registry.place) / "linear" / "2" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-40])
    broken = write(registry, "promote", 1_000, 2)
    write(registry, "promote", 2_000, 3)
    soon(lambda: any(r.refused == broken for r in registry.records("linear")))
    soon(lambda: champions(serving, 1_500, 2_500) == [1, 3])
    assert [r.champion for r in registry.history("linear").spans] == [1, 3]
    (news,) = serving.news()
    assert (news["action"], news["versions"], news["champion"]) == ("refuse", [2], 1)
    assert "was changed or cut short" in news["why"]
    assert metrics.counter("streamml_rollouts_refused_total", model="linear").value == 1
    other = follow()  # a worker that starts later does the same without trying
    assert champions(other, 1_500, 2_500) == [1, 3]


def test_two_workers_that_refuse_the_same_rollout_write_it_once(
    registry: Registry, follow: Callable[[], Serving]
) -> None:
    write(registry, "promote", 0, 1)
    workers = [follow(), follow(), follow()]
    shutil.rmtree(Path(registry.place) / "linear" / "2" / "golden.npz", ignore_errors=True)
    (Path(registry.place) / "linear" / "2" / "golden.npz").unlink()
    broken = write(registry, "promote", 1_000, 2)
    soon(lambda: all(champions(worker, 5_000) == [1] and len(worker.history.spans) == 1 for worker in workers))
    soon(lambda: any(r.refused == broken for r in registry.records("linear")))
    for worker in workers:
        worker.close()
    assert sum(r.action == "refuse" for r in registry.records("linear")) == 1


def test_a_model_that_can_not_serve_at_all_fails_at_the_start(
    registry: Registry, follow: Callable[[], Serving]
) -> None:
    write(registry, "promote", 0, 1)
    (Path(registry.place) / "linear" / "1" / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model.onnx is missing"):
        follow()


def test_a_guard_ends_the_canary_once_from_a_time_that_every_worker_learns_of(
    registry: Registry, follow: Callable[[], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamml.models.serving._REPLAY", 10**13)  # these events are of 1970
    variant = Split(3, 10, "variant")
    number = write(registry, "canary", 0, 1, splits=(Split(2, 5), variant), guard=Guard())
    first, second = follow(), follow()
    first.settle(10_000, 9_000)
    second.settle(10_500, 9_000)
    for worker in (first, second, first):
        worker.roll_back(worker.history.at(10_000), "it fails")
    soon(lambda: len(registry.records("linear")) == 2)
    soon(lambda: first.history.at(20_000).number != number != second.history.at(20_000).number)
    for worker in (first, second):
        worker.close()
    _, record = registry.records("linear")
    assert (record.action, record.champion, record.splits, record.guard) == ("rollback", 1, (variant,), None)
    assert record.effective in (15_000, 15_500)
    assert (record.who, record.why) == ("job", "it fails")
    assert len(first.news()) == len(second.news()) == 1


def test_a_replay_does_not_roll_back(registry: Registry, follow: Callable[[], Serving]) -> None:
    write(registry, "canary", 0, 1, splits=(Split(2, 5),), guard=Guard())
    serving = follow()
    serving.settle(int(time.time() * 1000) - 3_600_000, 0)
    serving.roll_back(serving.history.at(10_000), "it fails")
    serving.close()
    assert len(registry.records("linear")) == 1
    assert serving.news() == []


def test_an_alias_that_was_retired_starts_no_job(registry: Registry, follow: Callable[[], Serving]) -> None:
    write(registry, "promote", 0, 1)
    write(registry, "retire", 0, 1)
    with pytest.raises(ModelError, match="was retired by me"):
        follow()


def test_a_registry_that_disappears_changes_nothing_and_is_followed_again_when_it_is_back(
    registry: Registry, follow: Callable[[], Serving], caplog: pytest.LogCaptureFixture
) -> None:
    write(registry, "promote", 0, 1)
    serving = follow()
    serving.settle(900, 900)
    place, away = Path(registry.place), Path(registry.place + ".away")
    place.rename(away)
    soon(lambda: "the registry can't be used" in caplog.text)
    assert champions(serving, 5_000) == [1]
    away.rename(place)
    write(registry, "promote", 1_000, 2)
    soon(lambda: champions(serving, 5_000) == [2])
    assert "the registry is back" in caplog.text


def test_a_half_written_record_is_not_taken(registry: Registry, follow: Callable[[], Serving]) -> None:
    write(registry, "promote", 0, 1)
    serving = follow()
    serving.settle(900, 900)
    write(registry, "promote", 1_000, 2)
    record = Path(registry.place) / "linear" / "rollouts" / "000002.json"
    soon(lambda: len(serving.history.spans) == 2)
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="000002"):
        registry.records("linear")
    assert champions(serving, 2_000) == [2]


def test_a_fixed_version_follows_nothing(registry: Registry) -> None:
    write(registry, "promote", 0, 1)
    serving = serve("linear:3", [registry.place])
    assert champions(serving, 0, 10**13) == [3, 3]
    assert serving.loaded == (3,)
    serving.close()
    assert serving.loaded == ()
