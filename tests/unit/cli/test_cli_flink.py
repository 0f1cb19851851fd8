"""`streamml flink` without a cluster: what is told to the job, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamml.cli.flink_submission import Submission
from streamml.errors import ConnectorError, PlanError
from streamml.flink.rest import FlinkRest


class Rest:
    """A cluster of so many free slots, with one job."""

    address = "host:1"

    def __init__(self, note: str | None = None, slots: int = 4) -> None:
        self._note, self._slots = note, slots

    def overview(self) -> dict[str, Any]:
        return {"slots-available": self._slots}

    def call(self, path: str) -> Any:
        assert path == "/jobs/j1/config"
        config: dict[str, Any] = {} if self._note is None else {"streamml.submission": self._note}
        return {"execution-config": {"user-config": config}}


def test_a_job_tells_what_it_was_submitted_with() -> None:
    given = Submission(job="payments", source=("kafka://a/b",), sink="null:", setting=("a.b=c",), folder="/tmp")
    noted = given._options("host:1").notes["streamml.submission"]
    rest: Any = Rest(noted)
    assert Submission.of(rest, "j1") == given


def test_arguments_with_a_secret_are_not_shown_to_everyone_who_sees_the_job() -> None:
    options = Submission(job="payments", setting=("s3.secret-key=xyz",))._options("host:1")
    assert options.notes == {}
    assert options.settings == {"s3.secret-key": "xyz"}
    rest: Any = Rest()
    with pytest.raises(PlanError, match="with a secret in --set"):
        Submission.of(rest, "j1")


@pytest.mark.parametrize(
    ("changes", "freed", "said"),
    [
        ({"parallelism": 5}, 0, "has 4 slots for the job"),
        ({"parallelism": 7}, 2, "has 6 slots for the job"),
        ({"parallelism": 129}, 200, "128 key groups"),
        ({"folder": "/no/such/folder"}, 0, "not on this machine"),
        ({"job": "paymints"}, 0, "no ready job"),
        ({"param": ("modle=x",)}, 0, "modle"),
    ],
)
def test_what_could_not_run_is_refused_before_the_job_is_stopped(
    changes: dict[str, Any], freed: int, said: str
) -> None:
    rest: Any = Rest()
    good = Submission(job="payments")
    assert good.check(rest).name == "payments"
    with pytest.raises(PlanError, match=said):
        msgspec.structs.replace(good, **changes).check(rest, freed)


def test_the_working_folder_is_as_before_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rest: Any = Rest()
    (tmp_path / "there").mkdir()
    with pytest.raises(PlanError, match="no such file"):
        Submission(job="./mine.py", folder=str(tmp_path / "there")).check(rest)
    assert Path.cwd() == tmp_path


def test_a_cluster_that_does_not_answer_says_how_to_start_one() -> None:
    from streamml.flink.ports import free_port

    with pytest.raises(ConnectorError, match="streamml flink cluster start"):
        FlinkRest(f"127.0.0.1:{free_port()}", timeout=2).wait_for_tasks("j1", 1)
