"""What MLflow's aliases, stages and input examples mean, without a server."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamml.errors import ConnectorError, ModelError, PlanError
from streamml.models import Bundle, Guard, Registry, Rollout, Split, rolling
from streamml.models.mlflow_example import example_of
from streamml.models.mlflow_rollout import RULES, Rule, Wanted, roll_out, rule_of, wanted_of
from streamml.models.mlflow_server import MlflowServer, MlflowVersion, RegisteredModel
from streamml.times import MIN_TIME


def model(**aliases: int) -> RegisteredModel:
    said = {"name": "m", "aliases": [{"alias": alias, "version": version} for alias, version in aliases.items()]}
    return msgspec.convert(said, RegisteredModel)


def versions(*numbers: int, stages: dict[int, str] | None = None, percent: Any = None) -> list[MlflowVersion]:
    tags = [] if percent is None else [{"key": "canary_percent", "value": str(percent)}]
    said = [{"name": "m", "version": n, "current_stage": (stages or {}).get(n, "None"), "tags": tags} for n in numbers]
    return msgspec.convert(said, list[MlflowVersion])


def roles(wanted: Wanted) -> tuple[Any, ...]:
    return wanted.champion, wanted.canary, wanted.percent, wanted.shadows


@pytest.mark.parametrize(
    ("aliases", "stages", "expected"),
    [
        ({"champion": 1}, {}, (1, None, 0.0, ())),
        ({"prod": 2}, {}, (2, None, 0.0, ())),
        ({}, {3: "Production", 4: "Staging"}, (3, None, 0.0, ())),
        ({"champion": 1, "prod": 2}, {3: "Production"}, (1, None, 0.0, ())),
        ({"champion": 1, "canary": 2}, {}, (1, 2, 5.0, ())),
        ({"champion": 1, "shadow_b": 3, "shadow": 2, "nightly": 4}, {}, (1, None, 0.0, (2, 3))),
        ({"champion": 2, "canary": 2, "shadow": 2, "shadow_2": 3}, {}, (2, None, 0.0, (3,))),
        ({"canary": 2, "shadow": 2}, {}, (None, 2, 5.0, ())),
    ],
)
def test_the_first_rule_that_names_a_version_counts(
    aliases: dict[str, int], stages: dict[int, str], expected: tuple[Any, ...]
) -> None:
    wanted = wanted_of(model(**aliases), versions(1, 2, 3, 4, stages=stages, percent=5))
    assert {alias: roles(each) for alias, each in wanted.items()} == {"prod": expected}


def test_own_rules_go_first_and_name_other_aliases() -> None:
    own = [rule_of("prod=ignore"), rule_of("stage:Staging=champion@staging"), rule_of("stage:Staging*=shadow")]
    found = wanted_of(
        model(prod=1, blue=2), versions(1, 2, stages={2: "Staging"}), [*own, rule_of("b*=champion"), *RULES]
    )
    assert {alias: roles(each) for alias, each in found.items()} == {
        "staging": (2, None, 0.0, ()),
        "prod": (2, None, 0.0, ()),
    }
    assert rule_of("a*=shadow") == Rule("a*", "shadow", "prod")


@pytest.mark.parametrize("text", ["canary", "=canary", "x=boss", "x=shadow@a/b"])
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"{text!r}: wanted NAME=ROLE or NAME=ROLE@ALIAS")):
        rule_of(text)


@pytest.mark.parametrize("percent", [None, "many", 0, 100, -3, "nan"])
def test_a_canary_without_a_share_is_refused(percent: Any, registry: Registry) -> None:
    wanted = wanted_of(model(champion=1, canary=2), versions(1, 2, percent=percent))["prod"]
    assert wanted.champion == 1
    with pytest.raises(ModelError, match=r"m:2: as a canary it needs the tag canary_percent, a number above 0"):
        roll_out(registry, "m", "prod", wanted)


def test_two_versions_in_one_stage_are_refused(registry: Registry) -> None:
    wanted = wanted_of(model(), versions(1, 2, stages={1: "Production", 2: "Production"}))["prod"]
    assert wanted.champion is None
    with pytest.raises(ModelError, match=re.escape("several versions as champion (stage:Production on 1, stage:Prod")):
        roll_out(registry, "m", "prod", wanted)


@pytest.fixture
def registry(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Registry:
    for version in (1, 2, 3):
        about = {"owner": "ada", "mlflow": {"run_id": f"r{version}", "run_name": f"run-{version}"}}
        make_bundle(tmp_path / "models" / "m" / str(version), name="m", version=version, metadata=about)
    return Registry(tmp_path / "models")


def story(registry: Registry) -> list[tuple[Any, ...]]:
    return [
        (r.action, r.champion, [(s.version, s.percent) for s in r.splits], r.shadows) for r in registry.records("m")
    ]


def test_each_thing_that_mlflow_says_is_written_once(registry: Registry) -> None:
    said = [
        Wanted(1, named={1: "champion"}),
        Wanted(1, 2, 5.0, named={2: "canary"}),
        Wanted(1, 2, 20.0),
        Wanted(1, 2, 20.0, (3,)),
        Wanted(1, None, 0.0, (3,)),
        Wanted(2, None, 0.0, (3,)),
        Wanted(None, None, 0.0, (3,)),  # the alias of the champion was taken away: what serves goes on
        Wanted(1, None, 0.0, ()),
    ]
    for wanted in said:
        roll_out(registry, "m", "prod", wanted)
        assert roll_out(registry, "m", "prod", wanted) == []
    assert story(registry) == [
        ("promote", 1, [], ()),
        ("canary", 1, [(2, 5.0)], ()),
        ("canary", 1, [(2, 20.0)], ()),
        ("shadow", 1, [(2, 20.0)], (3,)),
        ("rollback", 1, [], (3,)),
        ("promote", 2, [], (3,)),
        ("promote", 1, [], ()),
    ]
    first, second = registry.records("m")[:2]
    assert (first.effective, first.who, first.why) == (
        MIN_TIME,
        "mlflow:ada",
        "in MLflow, champion is version 1 of run run-1 (r1)",
    )
    assert second.effective == second.at + 10_000
    assert second.guard == Guard()


def test_everything_at_once_on_a_new_registry_begins_with_the_champion(registry: Registry) -> None:
    made = roll_out(registry, "m", "prod", Wanted(2, 1, 5.0, (3,)), lead=0)
    assert [(r.action, r.effective == MIN_TIME) for r in made] == [("promote", True), ("canary", False)]
    assert story(registry) == [("promote", 2, [], ()), ("canary", 2, [(1, 5.0)], (3,))]


def test_what_others_write_is_left_alone_until_mlflow_says_something_new(registry: Registry) -> None:
    canary = Wanted(1, 2, 5.0)
    roll_out(registry, "m", "prod", canary, lead=0)
    rolling.rollback(registry, "m", who="job", why="guard: errors", lead=1)
    rolling.promote(registry, "m", 3, who="grace", lead=2)
    assert roll_out(registry, "m", "prod", canary) == []
    (made,) = roll_out(registry, "m", "prod", Wanted(1, 2, 6.0))
    assert (made.action, made.champion, made.splits) == ("promote", 1, (Split(2, 6.0),))


def test_a_guard_that_a_person_gave_a_canary_stays_when_its_share_grows(registry: Registry) -> None:
    guard = Guard(errors=0.5, slowdown=None)
    roll_out(registry, "m", "prod", Wanted(1, 2, 5.0), lead=0)
    rolling.canary(registry, "m", 2, 5.0, guard, lead=1)
    (made,) = roll_out(registry, "m", "prod", Wanted(1, 2, 20.0))
    assert (made.splits, made.guard) == ((Split(2, 20.0),), guard)
    (made,) = roll_out(registry, "m", "prod", Wanted(1, 3, 20.0))
    assert made.guard == Guard()


def test_a_registry_that_says_it_already_is_left_as_it_is(registry: Registry) -> None:
    rolling.promote(registry, "m", 1, who="grace", lead=0)
    assert roll_out(registry, "m", "prod", Wanted(1)) == []
    assert len(registry.records("m")) == 1


def test_two_mirrors_at_once_write_it_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other mirror writes between this one's decision and its record."""
    roll_out(registry, "m", "prod", Wanted(1))
    append = registry.append

    def slow(*args: Any, **fields: Any) -> Rollout:
        monkeypatch.setattr(registry, "append", append)
        assert len(roll_out(Registry(registry.place), "m", "prod", Wanted(2))) == 1
        return append(*args, **fields)

    monkeypatch.setattr(registry, "append", slow)
    assert roll_out(registry, "m", "prod", Wanted(2)) == []
    assert story(registry) == [("promote", 1, [], ()), ("promote", 2, [], ())]


def test_a_canary_without_any_champion_is_refused(registry: Registry) -> None:
    with pytest.raises(ModelError, match=re.escape("m@prod: has no champion; in MLflow, set the alias")):
        roll_out(registry, "m", "prod", Wanted(None, 2, 5.0))
    assert roll_out(registry, "m", "prod", Wanted()) == []


def test_a_version_whose_files_were_changed_is_not_rolled_out(registry: Registry) -> None:
    roll_out(registry, "m", "prod", Wanted(1))
    (registry.path("m", 2) / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"model\.onnx was changed or cut short"):
        roll_out(registry, "m", "prod", Wanted(2))
    assert story(registry) == [("promote", 1, [], ())]


@pytest.mark.parametrize(
    ("kind", "content", "columns", "expected"),
    [
        (
            "dataframe",
            {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]},
            ("a", "b"),
            {"a": [1, 2], "b": ["x", "y"]},
        ),
        ("dataframe", {"columns": ["a"], "index": [7], "data": [[None]]}, ("a",), {"a": [np.nan]}),
        ("dataframe", [{"a": 1, "b": 2.5}, {"b": 3.5, "a": 4}], ("a", "b"), {"a": [1, 4], "b": [2.5, 3.5]}),
        ("ndarray", [[1.0, None]], (), {"": [[1.0, np.nan]]}),
        ("ndarray", {"x": [[1]], "y": [[2]]}, (), {"x": [[1]], "y": [[2]]}),
        ("ndarray", {"inputs": [[1, 2]]}, (), {"": [[1, 2]]}),
        ("json_object", {"x": ["a", "b"]}, (), {"x": ["a", "b"]}),
    ],
)
def test_an_input_example_becomes_arrays(kind: str, content: Any, columns: Any, expected: dict[str, Any]) -> None:
    found = example_of("m", kind, content)
    assert found.columns == columns
    assert {name: array.dtype.kind for name, array in found.arrays.items()} == {
        name: "O" if isinstance(value[0], str) else np.asarray(value).dtype.kind for name, value in expected.items()
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(found.arrays[name], np.asarray(value, dtype=found.arrays[name].dtype))


@pytest.mark.parametrize(
    ("kind", "content", "why"),
    [
        ("", "hello", "its input example is a text; log it with a DataFrame or arrays"),
        ("sparse_matrix_csr", {}, "its input example is a sparse_matrix_csr; log it with"),
        ("dataframe", {"columns": ["a"], "data": []}, "its input example can't be read as a dataframe"),
        ("dataframe", {"data": [[1]]}, "its input example can't be read as a dataframe (KeyError"),
        ("dataframe", {"columns": ["a"], "data": [["x"], [None]]}, "wanted numbers, or texts without gaps, got 'x'"),
        ("ndarray", [[1, 2], [3]], "its input example can't be read as a ndarray (ValueError"),
        ("ndarray", [], "its input example has no rows"),
        ("ndarray", 3, "its input example has no rows"),
    ],
)
def test_an_input_example_without_rows_is_refused(kind: str, content: Any, why: str) -> None:
    with pytest.raises(ModelError, match=re.escape(why)):
        example_of("m", kind, content)


def test_a_long_example_is_cut() -> None:
    assert len(example_of("m", "ndarray", [[float(i)] for i in range(1000)]).arrays[""]) == 256


@pytest.mark.parametrize("url", ["mlflow:", "mlflow:///x", "sqlite:///mlflow.db", "127.0.0.1:5000"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(PlanError, match=r"MLflow: wanted an address such as mlflow://host:5000"):
        MlflowServer(url)


def test_a_password_is_not_shown() -> None:
    server = MlflowServer("mlflow+https://me:secret@host/sub/", environ={})
    assert server.where == "mlflow+https://host/sub"
    assert "secret" not in repr(server)


def test_a_server_that_is_gone_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(ConnectorError, match=rf"MLflow mlflow://127\.0\.0\.1:{port}: can't be reached"):
        MlflowServer(f"mlflow://127.0.0.1:{port}").models()
