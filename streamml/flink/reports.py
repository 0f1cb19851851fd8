"""What a cluster tells about a job: its failures, its logs, and the library's figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from streamml.errors import ConnectorError
from streamml.flink.rest import FlinkRest, causes_of

__all__ = ["Failure", "Figure", "failures", "figures", "log_tail"]

_AT_A_TIME = 50
"""Most metrics in one request: their names go into its address."""


class Failure(msgspec.Struct, frozen=True):
    """One failure of a job.

    Attributes:
        time: when, in ISO 8601 and UTC.
        task: the task that failed, with its subtask; empty where the job failed as a whole.
        task_manager: id of the TaskManager that it ran on, empty where none did.
        causes: the exception and what caused it, line by line.
    """

    time: str
    task: str
    task_manager: str
    causes: tuple[str, ...]


class Figure(msgspec.Struct, frozen=True):
    """One metric of one operator, over its subtasks.

    Attributes:
        operator: name of the operator, as Flink writes it.
        name: name of the metric, with its labels.
        sum, low, high: over the subtasks: counters are summed, of a percentile the worst subtask counts.
    """

    operator: str
    name: str
    sum: float
    low: float
    high: float


def failures(rest: FlinkRest, job: str, limit: int = 10) -> list[Failure]:
    """Return the newest failures of a job, the oldest of them first."""
    found = rest.call(f"/jobs/{job}/exceptions?maxExceptions={limit}")
    entries = found.get("exceptionHistory", {}).get("entries", [])
    every = [one for entry in entries for one in (entry, *entry.get("concurrentExceptions", []))]
    return sorted((_failure(entry) for entry in every), key=lambda failure: failure.time)


def _failure(entry: dict[str, Any]) -> Failure:
    time = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    causes = causes_of(entry.get("stacktrace", "")) or [entry.get("exceptionName", "no cause given")]
    return Failure(
        time.replace("+00:00", "Z"), entry.get("taskName") or "", entry.get("taskManagerId") or "", tuple(causes)
    )


def log_tail(rest: FlinkRest, job: str, lines: int = 50) -> tuple[str, list[str]]:
    """Return whose log tells most of a job, and its last lines.

    It is the log of the TaskManager on which the job failed last; of one that runs it now, where that one is gone or
    the job has not failed; else the JobManager's.
    """
    alive = {each["id"] for each in rest.call("/taskmanagers")["taskmanagers"]}
    wanted = [failure.task_manager for failure in reversed(failures(rest, job))] + _running_on(rest, job)
    for manager in wanted:
        if manager in alive:
            return f"task manager {manager}", _tail(rest, f"/taskmanagers/{quote(manager)}/log", lines)
    return "job manager", _tail(rest, "/jobmanager/log", lines)


def _running_on(rest: FlinkRest, job: str) -> list[str]:
    found: dict[str, None] = {}
    for vertex in reversed(rest.job(job)["vertices"]):
        for subtask in rest.call(f"/jobs/{job}/vertices/{vertex['id']}")["subtasks"]:
            found[subtask.get("taskmanager-id", "")] = None
    return list(found)


def _tail(rest: FlinkRest, path: str, lines: int) -> list[str]:
    return rest.read(path).decode(errors="replace").splitlines()[-lines:]


def figures(rest: FlinkRest, job: str) -> list[Figure]:
    """Return the library's metrics of a running job, by operator and name."""
    found: list[Figure] = []
    for vertex in rest.job(job)["vertices"]:
        path = f"/jobs/{job}/vertices/{vertex['id']}/subtasks/metrics"
        try:
            ids = [metric["id"] for metric in rest.call(path) if ".streamml_" in metric["id"]]
        except ConnectorError:
            if rest.state(job) == "RUNNING":
                raise
            return found  # it has ended in the meantime
        for start in range(0, len(ids), _AT_A_TIME):
            asked = quote(",".join(ids[start : start + _AT_A_TIME]))
            for metric in rest.call(f"{path}?get={asked}"):
                operator, name = _split(metric["id"])
                found.append(Figure(operator, name, *(float(metric[which]) for which in ("sum", "min", "max"))))
    return sorted(found, key=lambda figure: (figure.operator, figure.name))


def _split(identity: str) -> tuple[str, str]:
    """Return operator and name of a metric, with its labels as Prometheus writes them.

    >>> _split("clicks/stage1__records.operator.sessions.error.KeyError.streamml_rejected_total")
    ('clicks/stage1__records', 'streamml_rejected_total{operator="sessions",error="KeyError"}')
    """
    operator, *labels, name = identity.split(".")
    shown = ",".join(f'{key}="{value}"' for key, value in zip(labels[::2], labels[1::2], strict=False))
    return operator, f"{name}{{{shown}}}" if shown else name
