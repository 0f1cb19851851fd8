"""The Java half: where its jar is, and whether it is that of these sources."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from streamml.errors import ConnectorError, PlanError

__all__ = ["KAFKA_CONNECTOR", "jar", "kafka_connector", "python_jar", "sources_hash", "stamp"]

KAFKA_CONNECTOR = "5.0.0-2.2"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamml</groupId>
  <artifactId>flink-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.flink</groupId>
      <artifactId>flink-sql-connector-kafka</artifactId>
      <version>{KAFKA_CONNECTOR}</version>
      <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>
    </dependency>
  </dependencies>
</project>
"""

_FOLDER = Path(__file__).parent
_JAVA = _FOLDER / "java"
_JAR = _FOLDER / "jars" / "streamml-flink.jar"
_STAMP = _FOLDER / "jars" / "streamml-flink.sha256"


def jar() -> Path:
    """Return the jar that Flink needs beside PyFlink's own.

    Raises:
        PlanError: it is not there, or was built from other sources.
    """
    if not _JAR.is_file():
        msg = f"{_JAR} is not there. It comes with the wheel; `make jar` builds it (a JDK and Maven are needed)."
        raise PlanError(msg)
    if _JAVA.is_dir() and (not _STAMP.is_file() or _STAMP.read_text().strip() != sources_hash()):
        msg = f"{_JAR} was built from other sources than those in {_JAVA}; `make jar` builds it again."
        raise PlanError(msg)
    return _JAR


def python_jar() -> Path:
    """Return PyFlink's own jar, which a cluster's workers need beside ours."""
    from streamml.flink.cluster import flink_home

    return next((flink_home() / "opt").glob("flink-python-*.jar"))


def kafka_connector(cache: Path | None = None) -> Path:
    """Return the jar of Flink's Kafka connector; the first call fetches it by Maven (10 MB).

    Args:
        cache: where to keep it, by default this user's cache folder.

    Raises:
        ConnectorError: Maven is not there, or can't fetch it.
    """
    from streamml.connectors.broker_jars import cache_folder

    cache = cache or cache_folder()
    path = cache / f"flink-sql-connector-kafka-{KAFKA_CONNECTOR}.jar"
    if path.is_file():
        return path
    where = f"Flink's Kafka connector {KAFKA_CONNECTOR}"
    maven = shutil.which("mvn")
    if maven is None:
        msg = (
            f"{where} is fetched by Maven, and there is no `mvn` on the PATH. Install Maven, or put the jar at {path}."
        )
        raise ConnectorError(msg)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
        pom = Path(folder, "pom.xml")
        pom.write_text(_POM, encoding="utf-8")
        command = [maven, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder, path.name)
        if done.returncode != 0 or not fetched.is_file():
            said = " ".join((done.stdout + done.stderr).split())[-600:]
            msg = f"{where}: Maven can't fetch it: {said}. Check its settings and the network."
            raise ConnectorError(msg)
        fetched.rename(path)
    return path


def sources_hash() -> str:
    """Return the hash of the Java sources that go into the jar."""
    digest = hashlib.sha256()
    for path in sorted([_JAVA / "pom.xml", *(_JAVA / "src" / "main").rglob("*.java")]):
        digest.update(path.relative_to(_JAVA).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def stamp() -> None:
    """Note that the jar is that of the sources; called by `make jar` when it is built."""
    _STAMP.write_text(sources_hash() + "\n")


if __name__ == "__main__":
    stamp()
