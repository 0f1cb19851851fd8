"""The jars of the trial broker: fetched once by Maven into a cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from streamml.errors import ConnectorError

__all__ = ["KAFKA_VERSION", "cache_folder", "kafka_jars"]

KAFKA_VERSION = "4.1.1"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamml</groupId>
  <artifactId>trial-broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def cache_folder() -> Path:
    """Return this user's cache folder for streamml."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "streamml"


def kafka_jars(cache: Path | None = None) -> Path:
    """Return the folder of the broker's jars; the first call fetches them (93 jars, 54 MB).

    Args:
        cache: where to keep them, by default `cache_folder()`.

    Raises:
        ConnectorError: Maven is not there, or can't fetch them.
    """
    cache = cache or cache_folder()
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        msg = (
            f"trial broker: Kafka {KAFKA_VERSION} is fetched by Maven, and there is no `mvn` on the PATH. Install "
            "Maven, "
            f"or put the jars of a Kafka {KAFKA_VERSION} distribution (its folder libs) into {jars}."
        )
        raise ConnectorError(msg)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
        pom, lib = Path(folder, "pom.xml"), Path(folder, "lib")
        pom.write_text(_POM, encoding="utf-8")
        command = [maven, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={lib}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not any(lib.glob("kafka_2.13-*.jar")):
            said = " ".join((done.stdout + done.stderr).split())[-600:]
            msg = f"trial broker: Maven can't fetch Kafka {KAFKA_VERSION}: {said}. Check its settings and the network."
            raise ConnectorError(msg)
        try:
            lib.rename(jars)
        except OSError:
            if not jars.is_dir():  # otherwise another process was faster
                raise
    return jars
