"""`streamml models`: from a model file to a rollout and back, with exit codes, and what each command prints."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from streamml.models import Bundle, Registry, open_model, rolling  # noqa: E402
from streamml.models.policy import Policy  # noqa: E402
from streamml.models.signing import new_key  # noqa: E402

FEATURES = ("amount", "count", "ratio")


def write_model(path: Path, *weights: float) -> Path:
    """Write `score = sum of weight * feature`."""
    made = [helper.make_node("MatMul", ["x", "w"], ["score"])]
    infos = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])] for name, width in
             (("x", len(weights)), ("score", 1))]  # fmt: skip
    constant = numpy_helper.from_array(np.array(weights, np.float32).reshape(-1, 1), "w")
    graph = helper.make_graph(made, "m", *infos, [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def push(cli: Any, home: Path) -> Callable[..., Any]:
    """Push a model with these weights; the registry is `models/` in the current folder."""
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(home / "rows.npz", x=rows)

    def call(*options: object, weights: tuple[float, ...] = (1, 10, 100), features: str = ",".join(FEATURES)) -> Any:
        write_model(home / "model.onnx", *weights)
        return cli("models", "push", "fraud", "model.onnx", "--features", features, "--golden", "rows.npz", *options)

    return call


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fraud` with versions 1 to 3, of which 1 is in force."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(folder / "models")
    golden = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    for version, weights in enumerate(((1, 10, 100), (1, 10, 101), (2, 10, 100)), 1):
        model = write_model(folder / "model.onnx", *weights)
        made = folder / f"bundle{version}"
        Bundle.write(made, model, name="fraud", version=version, features=FEATURES, golden=golden)
        rolling.push(registry, "fraud", made)
    return folder / "models"


@pytest.fixture
def registry(template: Path, home: Path) -> Registry:
    shutil.copytree(template, home / "models")
    return Registry(home / "models")


def millis(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%SZ").replace(tzinfo=UTC).timestamp() * 1000


def test_a_pushed_file_becomes_the_next_version_and_changes_nothing_that_runs(
    push: Callable[..., Any], home: Path
) -> None:
    first = push("--metric", "auc=0.97", "--meta", "owner=risk")
    assert (first.code, first.out) == (0, "fraud:1 is in models\n")
    second = push("--json")
    assert second.json == {"name": "fraud", "version": 2, "place": "models", "prod": 1}
    third = push()
    assert "fraud@prod stays 1; next: streamml models promote fraud:3" in third.out
    bundle = Bundle.load(home / "models" / "fraud" / "1")
    bundle.verify()
    assert (bundle.manifest.features, bundle.manifest.metadata) == (
        FEATURES,
        {"owner": "risk", "metrics": {"auc": 0.97}},
    )


def test_a_profile_comes_from_training_data_or_ready_made(push: Callable[..., Any], home: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = {name: np.arange(100.0) * (i + 1) for i, name in enumerate((*FEATURES, "label"))}
    parquet.write_table(pa.table(data), home / "train.parquet")
    np.savez(home / "train.npz", **data)
    assert push("--profile", "train.parquet").code == 0
    made = Bundle.load(home / "models" / "fraud" / "1").profile
    assert made is not None and made.features == FEATURES
    (home / "profile.json").write_bytes(made.to_json())
    for version, given in ((2, "train.npz"), (3, "profile.json")):
        assert push("--profile", given).code == 0
        assert Bundle.load(home / "models" / "fraud" / str(version)).profile == made


def test_a_bundle_is_pushed_as_it_is(cli: Any, registry: Registry) -> None:
    bundle = registry.path("fraud", 2)
    assert cli("models", "push", "copy", bundle).code == 0
    assert Bundle.load(registry.path("copy", 1)).manifest.files == Bundle.load(bundle).manifest.files
    done = cli("models", "push", "copy", bundle, "--features", "a")
    assert (done.code, "--features: " in done.err) == (2, True)


def test_a_signed_push_passes_a_policy_that_wants_signatures(
    cli: Any, push: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    key = new_key(home / "key.pem")
    assert push().code == push("--sign", "key.pem").code == 0
    open_model(home / "models" / "fraud" / "2", policy=Policy(trusted_keys=(key,), require_signature=True)).close()
    assert cli("models", "show", "fraud:2", "--json").json["signed_by"] == key
    monkeypatch.setenv("STREAMML_TRUSTED_KEYS", key)
    monkeypatch.setenv("STREAMML_REQUIRE_SIGNATURE", "1")
    refused = cli("models", "promote", "fraud:1")
    assert (refused.code, "it is not signed" in refused.err) == (5, True)
    assert cli("models", "promote", "fraud:2").code == 0


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["model.onnx"], 2, "needs --features a,b,... and --golden rows.npz"),
        (["model.onnx", "--features", "a,b", "--golden", "rows.npz"], 5, "wanted 3 different features"),
        (["absent.onnx", "--features", "a", "--golden", "rows.npz"], 5, "there is no model file absent.onnx"),
        (["model.onnx", "--features", "a,b,c", "--golden", "absent.npz"], 5, "absent.npz can't be read"),
        (["model.onnx", "--features", "a,b,c", "--golden", "rows.npz", "--metric", "auc=x"], 2, "wanted a number"),
        (["model.onnx", "--features", "a,b,c", "--golden", "rows.npz", "--profile", "rows.txt"], 2, "ends in .parquet"),
        (["model.onnx", "--features", "a,b,c", "--golden", "rows.npz", "--profile", "rows.npz"], 2, "no column 'a'"),
    ],
)
def test_a_push_that_can_not_be_says_why_and_adds_nothing(
    cli: Any, push: Callable[..., Any], home: Path, args: list[str], code: int, text: str
) -> None:
    push(features="wrong")
    done = cli("models", "push", "fraud", *args)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert Registry(home / "models").names() == []


def test_list_shows_what_each_version_is_used_as(cli: Any, registry: Registry) -> None:
    cli("models", "promote", "fraud:1", "--from", "2020-01-01T00:00Z", "--backdate")
    cli("models", "shadow", "fraud:3", "--from", "2020-01-02T00:00Z", "--backdate")
    cli("models", "canary", "fraud:2", "--percent", "5", "--from", "2020-01-03T00:00+01:00", "--backdate")
    cli("models", "promote", "fraud:3", "--alias", "trial", "--from", "2020-01-01T00:00Z", "--backdate")
    listed = cli("models", "list").out.splitlines()
    assert listed[1].split(maxsplit=4)[:4] == ["fraud", "1,", "2,", "3"]
    assert "prod 1 with canary 2 at 5 %, shadow 3; trial 3" in listed[1]
    uses = {entry["version"]: entry["used_as"] for entry in cli("models", "list", "fraud", "--json").json}
    assert uses == {1: ["prod"], 2: ["canary of prod at 5 %"], 3: ["shadow of prod", "trial"]}
    (entry,) = cli("models", "list", "--json").json
    assert (entry["name"], entry["versions"], entry["aliases"]["prod"]["champion"]) == ("fraud", [1, 2, 3], 1)
    cli("models", "promote", "fraud:2", "--from", "2999-01-01T00:00Z")
    assert "prod from 2999-01-01 00:00:00Z" in cli("models", "list", "fraud").out


def test_an_empty_registry_is_no_error_but_an_unknown_model_is(cli: Any, home: Path, registry: Registry) -> None:
    assert cli("models", "list", "--models", "nowhere").out == "nowhere has no models\n"
    for command in ("list", "show", "history", "verify"):
        done = cli("models", command, "frod")
        assert (done.code, done.out) == (5, "")
        assert "Did you mean 'fraud'" in done.err


def test_the_registry_may_be_named_by_the_environment(
    cli: Any, registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMML_MODELS", registry.place)
    monkeypatch.chdir(home / "models")
    assert [entry["name"] for entry in cli("models", "list", "--json").json] == ["fraud"]


def test_show_says_what_is_in_a_bundle(cli: Any, registry: Registry) -> None:
    shown = cli("models", "show", "fraud@prod").out
    manifest = Bundle.load(registry.path("fraud", 1)).manifest
    for text in ("fraud:1", manifest.digest, "x: float32[?, 3]", "amount, count, ratio", "4 rows, tolerance 1e-05"):
        assert text in shown
    body = cli("models", "show", "fraud:3", "--json").json
    assert (body["version"], body["features"], body["signed_by"]) == (3, list(FEATURES), None)


def test_verify_finds_the_broken_version_among_all(cli: Any, registry: Registry) -> None:
    assert cli("models", "verify", "fraud").code == 0
    (registry.path("fraud", 2) / "model.onnx").write_bytes(b"other")
    done = cli("models", "verify", "fraud", "--json")
    assert done.code == 5 and "1 of 3 versions can't serve here" in done.err
    problems = {entry["version"]: entry["problem"] for entry in done.json}
    assert problems[1] is problems[3] is None and "model.onnx was changed" in problems[2]
    assert cli("models", "verify", "fraud:1", "fraud@prod").code == 0


def test_diff_scores_the_golden_rows_of_each_by_the_other(cli: Any, push: Callable[..., Any]) -> None:
    push("--metric", "auc=0.9", weights=(1, 10, 100))
    push("--metric", "auc=0.95", weights=(1, 10, 101))
    body = cli("models", "diff", "fraud:1", "fraud:2", "--json").json
    rows = {row["what"]: (row["first"], row["second"]) for row in body["description"]}
    assert rows["metric auc"] == (0.9, 0.95)
    assert set(rows) == {"metric auc", "file golden.npz", "file model.onnx"}
    # The third feature of the golden rows is 2, 5, 8, 11, and its weight differs by 1.
    assert body["golden"][0]["other"] == "score: differ by 6.5 on average, 11 at most"
    assert body["misfit"] is None
    assert "fits in its place: yes" in cli("models", "diff", "fraud:1", "fraud:2").out
    same = cli("models", "diff", "fraud:1", "fraud:1", "--json").json
    assert (same["description"], same["golden"][0]["other"]) == ([], "score: equal")
    push(features="count,amount,ratio")
    assert "features are in another order" in cli("models", "diff", "fraud:1", "fraud:3").out


def test_a_story_and_its_history(cli: Any, registry: Registry) -> None:
    before = time.time() * 1000 // 1000 * 1000
    done = cli("models", "promote", "fraud:2", "--why", "better", "--who", "ann")
    found = re.fullmatch(r"fraud@prod: promote: version 2 from (\S+ \S+), in (\d+) s \(record 2\)\n", done.out)
    assert found is not None and 0 < int(found[2]) <= 10
    assert before + 10_000 <= millis(found[1]) <= time.time() * 1000 + 10_000
    made = cli("models", "canary", "fraud:3", "--percent", "5", "--guard", "drift=0.2", "--guard", "slowdown=off",
               "--json").json["record"]  # fmt: skip
    assert (made["champion"], made["splits"]) == (2, [{"version": 3, "percent": 5.0, "role": "canary"}])
    assert (made["guard"]["drift"], made["guard"]["slowdown"], made["guard"]["errors"]) == (0.2, None, 0.001)
    assert "rollback: version 2 from" in cli("models", "rollback", "fraud").out
    assert "variants: version 2 with variant 1 at 30 %, variant 3 at 0.5 %" in (
        cli("models", "variants", "fraud:1=30", "fraud:3=0.5").out
    )
    planned = cli("models", "promote", "fraud:1", "--from", "+1h", "--json").json["record"]
    assert 3_000_000 < planned["effective"] - time.time() * 1000 <= 3_600_000
    done = cli("models", "rollback", "fraud")
    assert "takes back: promote of version 1" in done.out and "(record 6)" in done.out
    cli("models", "retire", "fraud", "--alias", "prod")
    records = cli("models", "history", "fraud", "--json").json
    assert [record["action"] for record in records] == [
        "promote", "promote", "canary", "rollback", "variants", "promote", "rollback", "retire",
    ]  # fmt: skip
    assert [r["number"] for r in records] == list(range(1, 9))
    text = cli("models", "history", "fraud").out
    for part in ("always", "better", "ann", "canary 3 at 5 %", "retire: champion 2"):
        assert part in text
    assert cli("models", "history", "fraud", "--alias", "trial").out == "fraud@trial: nothing was rolled out\n"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["promote", "fraud"], 2, "wanted NAME:VERSION, such as `streamml models promote fraud:7`"),
        (["promote", "fraud@prod"], 2, "wanted NAME:VERSION"),
        (["promote", "a/b.onnx"], 2, "wanted NAME, NAME:VERSION or NAME@ALIAS"),
        (["promote", "fraud:9"], 5, "no version 9; versions there: 1, 2, 3"),
        (["promote", "fraud:2", "--from", "2020-01-01T00:00Z"], 2, "allow it: backdate"),
        (["promote", "fraud:2", "--from", "2030-01-01T00:00"], 2, "it has no time zone; add Z for UTC"),
        (["promote", "fraud:2", "--from", "tomorrow"], 2, "wanted a time such as 2026-11-25T12:00Z"),
        (["canary", "fraud:2"], 2, "--percent"),
        (["canary", "fraud:2", "--percent", "0"], 2, "above 0 % and below 100 %"),
        (["canary", "fraud:1", "--percent", "5"], 2, "fraud:1: is the champion"),
        (["canary", "fraud:2", "--percent", "5", "--guard", "eror=1"], 2, "no limit 'eror'. Did you mean 'errors'"),
        (["canary", "fraud:2", "--percent", "5", "--guard", "errors=-1"], 2, "wanted a number above 0, or off"),
        (["canary", "fraud:2", "--percent", "5", "--guard", "false_alarms=off"], 2, "it is no limit"),
        (["variants", "fraud:2"], 2, "wanted NAME:VERSION=PERCENT"),
        (["variants", "fraud:2=50", "other:1=50"], 2, "wanted versions of one model"),
        (["rollback", "fraud:2"], 2, "wanted the name alone, fraud"),
        (["rollback", "fraud"], 5, "no champion before version 1"),
        (["refuse", "fraud:2"], 5, "it is not in use"),
        (["shadow", "fraud:2", "--end"], 2, "there is none to end"),
    ],
)
def test_a_change_that_can_not_be_is_refused_with_a_code_of_its_kind(
    cli: Any, registry: Registry, args: list[str], code: int, text: str
) -> None:
    done = cli("models", *args)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert len(registry.records("fraud")) == 1


def test_a_broken_history_is_named(cli: Any, registry: Registry) -> None:
    cli("models", "promote", "fraud:2")
    path = Path(registry.place) / "fraud" / "rollouts" / "000001.json"
    path.write_text(path.read_text().replace('"champion":1', '"champion":2'))
    done = cli("models", "history", "fraud")
    assert (done.code, done.out) == (5, "")
    assert "record 000001.json" in done.err and "was changed after it was written" in done.err


def test_a_refusal_shows_what_it_made_void(cli: Any, registry: Registry) -> None:
    registry.append("fraud", "prod", "promote", effective=5, champion=2, who="ann", why="", at=5)
    registry.append("fraud", "prod", "refuse", effective=5, champion=1, who="job", why="golden rows", at=6, refused=2)
    text = cli("models", "history", "fraud").out
    assert "void: refused by record 3" in text and "refuse: record 2 is void" in text
    assert json.loads(cli("models", "history", "fraud", "--json").out)[2]["refused"] == 2
