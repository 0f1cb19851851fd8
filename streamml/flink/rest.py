"""A Flink cluster's REST API, as far as jobs need it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import msgspec

from streamml.errors import ConnectorError, PlanError

__all__ = ["ENDED", "FlinkRest", "causes_of"]

ENDED = frozenset(("FINISHED", "CANCELED", "FAILED"))
"""States of a job that is over."""


class FlinkRest:
    """Asks a JobManager.

    Args:
        address: `host:port`.
        timeout: seconds for one request.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        if not address.rpartition(":")[2].isdigit():
            msg = f"jobmanager {address!r}: wanted HOST:PORT of its REST API, such as localhost:8081"
            raise PlanError(msg)
        self.address = address
        self._timeout = timeout

    def call(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """Return the decoded answer to a request.

        Raises:
            ConnectorError: nobody answers there, or the answer is an error.
        """
        raw = self.read(path, body, method=method)
        return msgspec.json.decode(raw) if raw else None

    def read(self, path: str, body: Any = None, *, method: str | None = None) -> bytes:
        """Return the answer to a request as it is.

        Raises:
            ConnectorError: nobody answers there, or the answer is an error.
        """
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                raw: bytes = answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                said = _first_error(exc.read())
            msg = f"jobmanager {self.address}, {path}: {exc.code}: {said}"
            raise ConnectorError(msg) from exc
        except OSError as exc:
            reason = getattr(exc, "reason", exc)
            msg = (
                f"jobmanager {self.address}: it does not answer ({reason}). Is the cluster up? "
                "`streamml flink cluster start` starts one on this machine."
            )
            raise ConnectorError(msg) from exc
        return raw

    def overview(self) -> dict[str, Any]:
        """Return the cluster's task managers, slots and numbers of jobs."""
        found: dict[str, Any] = self.call("/overview")
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, the newest first."""
        found: list[dict[str, Any]] = self.call("/jobs/overview")["jobs"]
        return sorted(found, key=lambda job: -job["start-time"])

    def find(self, job: str) -> str:
        """Return the id of a job that is given by its id, the start of its id, or its name: the newest of that name.

        Raises:
            PlanError: there is none.
        """
        jobs = self.jobs()
        for each in jobs:
            if each["jid"].startswith(job) or each["name"] == job:
                return str(each["jid"])
        where = f"jobmanager {self.address}"
        raise PlanError.unknown(where, "job", job, [each["name"] for each in jobs])

    def job(self, job: str) -> dict[str, Any]:
        """Return what the JobManager knows of a job."""
        found: dict[str, Any] = self.call(f"/jobs/{job}")
        return found

    def state(self, job: str) -> str:
        """Return a job's state, such as RUNNING."""
        return str(self.job(job)["state"])

    def failure(self, job: str) -> str:
        """Return the cause of a job's last failure, empty when there was none."""
        found = self.call(f"/jobs/{job}/exceptions")
        entries = found.get("exceptionHistory", {}).get("entries", [])
        text = entries[0].get("stacktrace", "") if entries else found.get("root-exception") or ""
        return "\n".join(causes_of(text))

    def checkpoints(self, job: str) -> dict[str, Any]:
        """Return the numbers of checkpoints, and the newest ones."""
        found: dict[str, Any] = self.call(f"/jobs/{job}/checkpoints")
        return found

    def cancel(self, job: str) -> None:
        """End a job without a savepoint."""
        self.call(f"/jobs/{job}?mode=cancel", method="PATCH")

    def savepoint(self, job: str, target: str | None, *, stop: bool, patience: float = 120.0) -> str:
        """Take a savepoint once all tasks run, and end the job with it if asked; returns where it is.

        Raises:
            ConnectorError: it failed, the job has ended, or it took longer than `patience` seconds.
        """
        self.wait_for_tasks(job, patience)
        what = "stop" if stop else "savepoints"
        # The canonical format can be read by another backend; ForSt knows its own only, and fails the job over others.
        backend = self.call(f"/jobs/{job}/checkpoints/config").get("state_backend", "")
        kind = "NATIVE" if "ForSt" in backend else "CANONICAL"
        body: dict[str, Any] = {"target-directory": target, "cancel-job": False, "formatType": kind}
        if stop:
            body = {"targetDirectory": target, "drain": False, "formatType": kind}
        request = self.call(f"/jobs/{job}/{what}", body)["request-id"]
        deadline = time.monotonic() + patience
        while True:
            found = self.call(f"/jobs/{job}/savepoints/{request}")
            if found["status"]["id"] == "COMPLETED":
                operation = found["operation"]
                if "location" in operation:
                    return str(operation["location"])
                trace = operation.get("failure-cause", {}).get("stack-trace", "no cause given")
                msg = f"job {job}: the savepoint failed: {_causes(trace)}"
                raise ConnectorError(msg)
            if time.monotonic() > deadline:
                msg = f"job {job}: the savepoint took longer than {patience:.0f} s; it may still be completed"
                raise ConnectorError(msg)
            time.sleep(0.2)

    def wait_for_tasks(self, job: str, patience: float = 120.0) -> None:
        """Wait until every task of a job runs: Flink takes no savepoint before.

        Raises:
            ConnectorError: the job has ended, or it took longer than `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            found = self.job(job)
            starting = [v["name"] for v in found["vertices"] if v["status"] not in ("RUNNING", "FINISHED")]
            if found["state"] == "RUNNING" and not starting:
                return
            if found["state"] in ENDED:
                why = self.failure(job)
                msg = f"job {job}: it is {found['state'].lower()}, wanted a running one{': ' if why else ''}{why}"
                raise ConnectorError(msg)
            if time.monotonic() > deadline:
                said = f"{starting[0].partition(' -> ')[0]!r} does not run" if starting else f"it is {found['state']}"
                msg = f"job {job}: after {patience:.0f} s {said}; `streamml flink logs` may tell why"
                raise ConnectorError(msg)
            time.sleep(0.2)

    def wait(self, job: str, states: frozenset[str] = ENDED, patience: float = 600.0) -> str:
        """Wait until a job is in one of these states; returns it.

        Raises:
            ConnectorError: it took longer than `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while (state := self.state(job)) not in states:
            if time.monotonic() > deadline:
                msg = f"job {job}: it is still {state} after {patience:.0f} s, wanted {' or '.join(sorted(states))}"
                raise ConnectorError(msg)
            time.sleep(0.2)
        return state


def causes_of(trace: str) -> list[str]:
    """Return the lines of a Java stack trace that say something: the exception and its causes, without places."""
    causes = [line for line in trace.splitlines() if line and not line.startswith(("\tat", "\t... "))]
    return list(dict.fromkeys(causes[:1] + causes[-12:]))


def _first_error(raw: bytes) -> str:
    try:
        errors = msgspec.json.decode(raw).get("errors", [])
    except (msgspec.DecodeError, AttributeError):
        return raw[:300].decode(errors="replace")
    return _causes(errors[-1]) if errors else "no reason given"


def _causes(trace: str) -> str:
    lines = [line.strip() for line in trace.splitlines() if line and not line.lstrip().startswith(("at ", "... "))]
    return " / ".join(lines[-3:])
