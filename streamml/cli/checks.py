"""What `streamml doctor` looks for. Nothing is imported to find its version."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

__all__ = ["Check", "all_checks", "extras", "satisfies"]

_MODULES = {
    "apache-flink": "pyflink",
    "apache-beam": "apache_beam",
    "confluent-kafka": "confluent_kafka",
    "kafka-python": "kafka",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "prometheus-client": "prometheus_client",
}
_NOT_SHOWN = ("all", "dev")
_TIMEOUT = 15.0
_JAR = "flink-sql-connector-kafka"
_GET_JAR = "mvn dependency:get -Dartifact=org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2 (for Flink with Kafka)"

Status = Literal["ok", "missing", "old", "broken"]


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked for, what was found, how to get it."""

    group: str
    name: str
    status: Status
    found: str
    get: str = ""


def all_checks(broker: str) -> list[Check]:
    """Run every check; those that start programs or connect run side by side."""
    slow: list[Callable[[], Check]] = [_java, _maven, _compose, lambda: _broker(broker)]
    with ThreadPoolExecutor(len(slow)) as pool:
        running = [pool.submit(check) for check in slow]
        quick = [_python(), *(check for check in extras()), _jar()]
        return [*quick[:-1], *(job.result() for job in running[:3]), quick[-1], running[3].result()]


def extras() -> Iterator[Check]:
    """Check the packages of streamml, its extras included, from the metadata of what is installed."""
    for requirement in metadata.requires("streamml") or ():
        parsed = re.match(r"([A-Za-z0-9._-]+)([^;]*)(?:;.*extra\s*==\s*[\"']([\w-]+)[\"'])?", requirement)
        if parsed is None or parsed[1] == "streamml" or parsed[3] in _NOT_SHOWN:
            continue
        name, wanted, extra = parsed[1], parsed[2].strip(" ()"), parsed[3]
        group = f"Extra [{extra}]" if extra else "Packages"
        get = f"pip install 'streamml[{extra}]'" if extra else "pip install --upgrade streamml"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(group, name, "missing", f"wanted {wanted or 'any'}", get)
            continue
        if not satisfies(version, wanted):
            yield Check(group, name, "old", f"{version}, wanted {wanted}", get)
        elif not _findable(_MODULES.get(name, name.replace("-", "_"))):
            yield Check(group, name, "broken", f"{version}, but it can't be imported", get)
        else:
            yield Check(group, name, "ok", version)


def satisfies(version: str, wanted: str) -> bool:
    """Return whether a version is one of `>=`, `==`, as far as numbers say.

    >>> satisfies("1.32.0", ">=1.20"), satisfies("1.9", ">=1.20"), satisfies("2.3.0", "==2.3.0")
    (True, False, True)
    """
    for operator, text in re.findall(r"(>=|==)\s*([\d.]+)", wanted):
        have, want = _numbers(version), _numbers(text)
        if have < want if operator == ">=" else have[: len(want)] != want:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def _findable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Check(
        "Python",
        "python",
        "ok" if fine else "old",
        f"{version}, {sys.executable}",
        "" if fine else "Python 3.11 or newer",
    )


def _java() -> Check:
    get = "a JDK 17, for the Flink engine: apt-get install openjdk-17-jre-headless, or https://adoptium.net"
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home, "bin", "java")) if home else "java"
    said = _said([program, "-version"])
    if said is None and home:
        said = _said(["java", "-version"])
    if said is None:
        return Check("Tools", "java", "missing", "", get)
    version = re.search(r'version "([^"]+)"', said)
    number = version[1] if version else said.partition("\n")[0]
    old = bool(version) and _numbers(number)[:1] < (11,)
    return Check("Tools", "java", "old" if old else "ok", number, get if old else "")


def _maven() -> Check:
    said = _said(["mvn", "--version"])
    if said is None:
        return Check("Tools", "mvn", "missing", "", "Maven, to fetch Flink's connectors: apt-get install maven")
    version = re.search(r"Apache Maven ([\w.-]+)", said)
    return Check("Tools", "mvn", "ok", version[1] if version else "")


def _compose() -> Check:
    for command in (["docker-compose", "version"], ["docker", "compose", "version"]):
        said = _said(command)
        if said is not None:
            version = re.search(r"v?(\d+\.\d+\.\d+)", said)
            return Check("Tools", " ".join(command[:-1]), "ok", version[1] if version else "")
    get = "to start Kafka, Flink and Prometheus from docker-compose.yml: apt-get install docker-compose"
    return Check("Tools", "docker-compose", "missing", "", get)


def _jar() -> Check:
    folders = [Path.home() / ".m2" / "repository" / "org" / "apache" / "flink" / _JAR]
    spec = importlib.util.find_spec("pyflink")
    folders += [Path(place) / "lib" for place in (spec.submodule_search_locations or ())] if spec else []
    jars = sorted(jar for folder in folders if folder.is_dir() for jar in folder.rglob(f"{_JAR}-*.jar"))
    if not jars:
        return Check("Tools", _JAR, "missing", "", _GET_JAR)
    return Check("Tools", _JAR, "ok", str(jars[-1]))


def _broker(address: str) -> Check:
    host, _, port = address.rpartition(":")
    get = "docker-compose up -d kafka, or --broker HOST:PORT for another one"
    try:
        with socket.create_connection((host or "localhost", int(port)), timeout=1.0):
            return Check("Services", "Kafka broker", "ok", f"something listens at {address}")
    except (OSError, ValueError, OverflowError) as exc:
        return Check("Services", "Kafka broker", "missing", f"{address}: {exc}", get)


def _said(command: list[str]) -> str | None:
    """Run a program and return all that it said, None if it is not there or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None
