"""Promote, canary, variants, shadow, rollback, refuse, retire: what each makes of the history, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamml.errors import ModelError, PlanError
from streamml.models import Bundle, Guard, History, Registry, Rollout, Split
from streamml.models.manifest import write_manifest
from streamml.models.rolling import (
    canary,
    promote,
    push,
    refuse,
    retire,
    rollback,
    shadow,
    taken_back,
    variants,
    who_am_i,
)

NOW = 1_800_000_000_000


@pytest.fixture
def registry(bundle: Bundle, tmp_path: Path) -> Registry:
    """`fraud` with versions 1 to 4, and no history."""
    made = Registry(tmp_path / "models")
    for _ in range(4):
        made.add("fraud", bundle.path)
    return made


@pytest.fixture
def do(registry: Registry) -> Callable[..., Rollout]:
    """Do something a minute after the last one, so that it holds ten seconds later."""
    clock = iter(range(NOW, NOW + 10**8, 60_000))

    def call(verb: Callable[..., Rollout], *args: Any, **how: Any) -> Rollout:
        return verb(registry, "fraud", *args, at=next(clock), **how)

    return call


def said(rollout: Rollout) -> tuple[str, int, dict[int, float], tuple[int, ...]]:
    return rollout.action, rollout.champion, {s.version: s.percent for s in rollout.splits}, rollout.shadows


def test_a_change_holds_ten_seconds_from_now_and_says_who_and_why(registry: Registry) -> None:
    made = promote(registry, "fraud", 1, at=NOW, why="the first")
    assert (made.effective, made.at, made.who, made.why) == (NOW + 10_000, NOW, who_am_i(), "the first")
    assert registry.records("fraud") == [made]
    later = promote(registry, "fraud", 2, at=NOW, lead=500, who="ci", alias="trial")
    assert (later.effective, later.who, later.alias) == (NOW + 500, "ci", "trial")


def test_a_story_from_promotion_to_rollback(do: Callable[..., Rollout], registry: Registry) -> None:
    guard = Guard(disagreement=0.02)
    story = [
        (do(promote, 1), ("promote", 1, {}, ())),
        (do(shadow, [3, 4]), ("shadow", 1, {}, (3, 4))),
        (do(canary, 2, 5, guard), ("canary", 1, {2: 5}, (3, 4))),
        (do(canary, 2, 50), ("canary", 1, {2: 50}, (3, 4))),
        (do(promote, 2), ("promote", 2, {}, (3, 4))),
        (do(canary, 3, 1), ("canary", 2, {3: 1}, (4,))),
        (do(rollback), ("rollback", 2, {}, (4,))),
        (do(variants, {1: 30, 3: 30}), ("variants", 2, {1: 30, 3: 30}, (4,))),
        (do(rollback), ("rollback", 2, {}, (4,))),
        (do(shadow, [4], end=True), ("shadow", 2, {}, ())),
        (do(promote, 3), ("promote", 3, {}, ())),
        (do(rollback), ("rollback", 2, {}, ())),
        (do(rollback), ("rollback", 1, {}, ())),
    ]
    for made, wanted in story:
        assert said(made) == wanted
    assert [story[i][0].guard for i in (2, 3, 4, 5)] == [guard, guard, None, Guard()]
    records = registry.records("fraud")
    assert records == [made for made, _ in story]
    history = registry.history("fraud")
    assert [history.at(record.effective) for record in records] == records
    with pytest.raises(ModelError, match="no champion before version 1"):
        do(rollback)


def test_a_canary_keeps_its_share_of_keys_as_the_roles_say(do: Callable[..., Rollout]) -> None:
    do(promote, 1)
    assert do(canary, 2, 5).splits == (Split(2, 5, "canary"),)
    assert do(variants, {3: 10, 4: 90}).splits == (Split(3, 10, "variant"), Split(4, 90, "variant"))


@pytest.mark.parametrize(
    ("verb", "args", "text"),
    [
        (canary, (1, 5), "fraud:1: is the champion; name another version"),
        (canary, (2, 0), "wanted a share of the keys above 0 % and below 100 %, got 0 %"),
        (canary, (2, 100), "below 100 %, got 100 %"),
        (canary, (2, float("nan")), "got nan %"),
        (variants, ({2: 60, 3: 60},), "together at most 100 %, got version 2 at 60 %, version 3 at 60 %"),
        (variants, ({},), "got none"),
        (variants, ({1: 10},), "fraud:1: is the champion"),
        (shadow, ([1],), "fraud:1: is the champion"),
        (shadow, ([],), "wanted at least one version"),
    ],
)
def test_what_makes_no_sense_is_refused(
    do: Callable[..., Rollout], registry: Registry, verb: Callable[..., Rollout], args: Any, text: str
) -> None:
    do(promote, 1)
    with pytest.raises(PlanError, match=re.escape(text)):
        do(verb, *args)
    assert len(registry.records("fraud")) == 1


def test_a_running_experiment_is_not_replaced_by_a_canary(do: Callable[..., Rollout]) -> None:
    do(promote, 1)
    do(variants, {2: 50})
    with pytest.raises(PlanError, match=re.escape("variants are running (version 2 at 50 %); end them first")):
        do(canary, 3, 5)
    with pytest.raises(PlanError, match="it scores a share of the keys already"):
        do(shadow, [2])
    with pytest.raises(PlanError, match=re.escape("there is none to end; shadows: none")):
        do(shadow, [3], end=True)


def test_the_past_is_only_changed_when_that_is_asked_for(registry: Registry) -> None:
    promote(registry, "fraud", 1, at=NOW)
    with pytest.raises(PlanError, match=r"is 60 s in the past.*come out otherwise in a replay.*allow it: backdate"):
        promote(registry, "fraud", 2, at=NOW, effective=NOW - 60_000)
    assert promote(registry, "fraud", 2, at=NOW, effective=NOW + 1).effective == NOW + 1
    promote(registry, "fraud", 3, at=NOW, effective=NOW - 60_000, backdate=True)
    assert registry.history("fraud").at(NOW).champion == 3


def test_what_is_planned_is_taken_back_by_a_change_before_it(registry: Registry) -> None:
    promote(registry, "fraud", 1, at=NOW)
    planned = promote(registry, "fraud", 2, at=NOW, effective=NOW + 3_600_000)
    made = canary(registry, "fraud", 3, 5, at=NOW + 60_000)
    assert (made.champion, made.canary) == (1, 3)
    assert taken_back(registry.records("fraud"), made) == [planned]
    assert registry.history("fraud").at(NOW + 10**9) == made


def test_a_refused_version_never_scores_when_it_was_only_planned(registry: Registry) -> None:
    promote(registry, "fraud", 1, at=NOW)
    promote(registry, "fraud", 2, at=NOW, effective=NOW + 3_600_000)
    made = refuse(registry, "fraud", 2, at=NOW + 60_000)
    assert (made.effective, made.champion) == (NOW + 3_600_000, 1)
    history = registry.history("fraud")
    assert {history.at(NOW + hours * 3_600_000).champion for hours in range(10)} == {1}


def test_a_refused_version_leaves_champion_splits_and_shadows(do: Callable[..., Rollout], registry: Registry) -> None:
    do(promote, 1)
    do(promote, 2)
    do(shadow, [3])
    do(canary, 4, 5)
    assert said(do(refuse, 4)) == ("refuse", 2, {}, (3,))
    assert said(do(refuse, 3)) == ("refuse", 2, {}, ())
    assert said(do(refuse, 2)) == ("refuse", 1, {}, ())
    with pytest.raises(ModelError, match=re.escape("refuse fraud:2: it is not in use")):
        do(refuse, 2)
    with pytest.raises(ModelError, match="it is the only champion so far"):
        do(refuse, 1)


def test_a_retired_alias_comes_back_by_a_promotion_only(do: Callable[..., Rollout], registry: Registry) -> None:
    do(promote, 1)
    do(canary, 2, 5)
    assert said(do(retire)) == ("retire", 1, {}, ())
    for verb, args in ((canary, (2, 5)), (shadow, ([2],)), (rollback, ()), (retire, ())):
        with pytest.raises(ModelError, match="fraud@prod: has no champion; name one first"):
            do(verb, *args)
    do(promote, 2)
    assert registry.champion("fraud", at=2**60) == 2


def test_aliases_know_nothing_of_each_other(do: Callable[..., Rollout], registry: Registry) -> None:
    do(promote, 1)
    do(promote, 2, alias="trial")
    do(promote, 3, alias="trial")
    assert do(rollback, alias="trial").champion == 2
    assert registry.history("fraud").at(2**60).champion == 1
    with pytest.raises(ModelError, match=re.escape("fraud@other: has no champion; name one first: `streamml models")):
        do(rollback, alias="other")


def test_without_a_history_prod_is_the_highest_version(do: Callable[..., Rollout], registry: Registry) -> None:
    with pytest.raises(PlanError, match=re.escape("fraud:4: is the champion (without a history, the highest version")):
        do(canary, 4, 5)
    assert said(do(canary, 2, 5)) == ("canary", 4, {2: 5}, ())


def test_a_push_changes_nothing_that_runs(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "pushed")
    champions = []
    for _ in range(3):
        push(registry, "fraud", bundle.path, who="ci")
        champions.append(registry.champion("fraud"))
    assert (registry.versions("fraud"), champions) == ([1, 2, 3], [1, 1, 1])
    (pinned,) = registry.records("fraud")
    assert (pinned.action, pinned.who, pinned.champion) == ("promote", "ci", 1)
    promote(registry, "fraud", 3, at=NOW, effective=0, backdate=True)
    assert [registry.champion("fraud", at=time) for time in (-1, 0)] == [1, 3]


def spoil_golden(folder: Path) -> None:
    """Change what the golden rows should give, with right checksums: the model computes something else."""
    bundle = Bundle.load(folder)
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] + (name.startswith("output:")) for name in stored.files}
    np.savez(folder / "golden.npz", **arrays)
    digest = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    files = {**bundle.manifest.files, "golden.npz": digest}
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=files))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "golden rows": (spoil_golden, "golden rows, output 'score'"),
    "cut model": (lambda p: (p / "model.onnx").write_bytes(b"x"), "model.onnx was changed or cut short"),
    "edited": (lambda p: (p / "bundle.json").write_text("{}"), "bundle.json"),
    "no golden rows": (lambda p: (p / "golden.npz").unlink(), "golden.npz is missing"),
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize(("verb", "args"), [(promote, (2,)), (canary, (2, 5)), (shadow, ([2],)), (variants, ({2: 5},))])
def test_a_broken_version_is_refused_before_anything_is_written(
    do: Callable[..., Rollout], registry: Registry, damage: str, verb: Callable[..., Rollout], args: Any
) -> None:
    do(promote, 1)
    spoil, text = BROKEN[damage]
    spoil(registry.path("fraud", 2))
    with pytest.raises(ModelError, match=re.escape(text)):
        do(verb, *args)
    assert len(registry.records("fraud")) == 1


MISFITS = [
    ({"features": ["b", "a", "c"]}, "features are in another order: number 1 was 'a' and is 'b'"),
    ({"features": ["a", "b", "d"]}, "features differ: it lacks c and it wants d"),
]


@pytest.mark.parametrize(("options", "text"), MISFITS)
@pytest.mark.parametrize(("verb", "args"), [(promote, (5,)), (canary, (5, 5)), (shadow, ([5],)), (variants, ({5: 5},))])
def test_a_version_that_does_not_fit_the_champions_place_is_refused(
    do: Callable[..., Rollout],
    registry: Registry,
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    options: dict[str, Any],
    text: str,
    verb: Callable[..., Rollout],
    args: Any,
) -> None:
    do(promote, 1)
    assert push(registry, "fraud", make_bundle(tmp_path / "other", **options).path) == 5
    with pytest.raises(ModelError, match=re.escape(f"fraud:5: does not fit where fraud:1 serves: {text}")):
        do(verb, *args)
    assert len(registry.records("fraud")) == 1


def test_outputs_must_be_in_their_places_and_more_may_follow(
    do: Callable[..., Rollout], registry: Registry, write_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    weights = {"w": np.ones((3, 1), np.float32)}
    golden = {"x": np.ones((2, 3), np.float32)}

    def version(outputs: list[str]) -> int:
        nodes = [("MatMul", ["x", "w"], [output], {}) for output in outputs]
        graph = write_onnx(nodes, {"x": ("float32", ["n", 3])}, {o: ("float32", ["n", 1]) for o in outputs}, weights)
        folder = tmp_path / "-".join(outputs)
        Bundle.write(folder, graph, name="fraud", version=1, features=["a", "b", "c"], golden=golden)
        return push(registry, "fraud", folder)

    do(promote, 1)
    with pytest.raises(ModelError, match=re.escape("output 0 was score: float32[?, 1] and is other: float32[?, 1]")):
        do(promote, version(["other", "score"]))
    more = version(["score", "other"])
    do(promote, more)
    with pytest.raises(ModelError, match=re.escape("output 1 was other: float32[?, 1] and is missing")):
        do(promote, 1)


def test_decisions_at_the_same_time_are_each_based_on_the_one_before(registry: Registry) -> None:
    promote(registry, "fraud", 1, at=NOW)
    failures: list[BaseException] = []

    def work(version: int) -> None:
        try:
            for end in (False, True) * 5 + (False,):
                shadow(registry, "fraud", [version], end=end, at=NOW, effective=NOW + 10_000)
        except BaseException as exc:
            failures.append(exc)
            raise

    threads = [threading.Thread(target=work, args=(version,)) for version in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    records = registry.records("fraud")
    assert len(records) == 1 + 3 * 11
    for before, after in itertools.pairwise(records):
        assert len(set(before.shadows) ^ set(after.shadows)) == 1
    assert sorted(History(records).at(NOW + 10_000).shadows) == [2, 3, 4]
