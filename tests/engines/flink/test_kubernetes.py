"""The recipe for Kubernetes, as far as it can be checked without one: schema, memory, image, and its program."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")

pytestmark = pytest.mark.flink

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "deploy" / "kubernetes"
OPERATOR = "1.10.0"
"""Release of the operator whose schema is used."""
NEWER = {"v2_3"}
"""Values of `flinkVersion` that are newer than that release."""


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RECIPE / "payments.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The operator's own schema, out of its jar; a field that it does not know is an error."""
    if shutil.which("mvn") is None:
        pytest.skip("the operator's schema is fetched by Maven, which is not here")
    cached = ROOT / ".cache" / "kubernetes" / f"flink-kubernetes-operator-api-{OPERATOR}.jar"
    if not cached.is_file():
        folder = tmp_path_factory.mktemp("operator")
        everything = "<exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion>"
        (folder / "pom.xml").write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            "<groupId>streamml</groupId><artifactId>schema</artifactId><version>1</version><packaging>pom</packaging>"
            "<dependencies><dependency><groupId>org.apache.flink</groupId>"
            f"<artifactId>flink-kubernetes-operator-api</artifactId><version>{OPERATOR}</version>"
            f"<exclusions>{everything}</exclusions></dependency></dependencies></project>"
        )
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            pytest.skip(f"Maven can't fetch the operator's schema: {done.stdout[-200:]}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / cached.name, cached)
    with zipfile.ZipFile(cached) as jar:
        found = yaml.load(
            jar.read("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"),
            Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
        )
    made = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    _strict(made)
    made["properties"].update(apiVersion={"const": "flink.apache.org/v1beta1"}, kind={"const": "FlinkDeployment"})
    made["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    made["properties"]["spec"]["properties"]["flinkVersion"]["enum"] += sorted(NEWER)
    return jsonschema.Draft7Validator(made)


def _strict(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "object" and isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
        for value in node.values():
            _strict(value)


def test_the_deployment_fits_the_schema_of_the_operator(schema: Any, deployment: dict[str, Any]) -> None:
    errors = [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in schema.iter_errors(deployment)]
    assert errors == []
    broken = copy.deepcopy(deployment)
    broken["spec"]["taskManager"]["resources"] = broken["spec"]["taskManager"].pop("resource")
    broken["spec"]["job"]["upgradeMode"] = "savepiont"
    broken["spec"]["flinkConfiguration"]["metrics.reporter.prom.port"] = 9249
    assert sorted("/".join(map(str, error.path)) for error in schema.iter_errors(broken)) == [
        "spec/flinkConfiguration/metrics.reporter.prom.port",
        "spec/job/upgradeMode",
        "spec/taskManager",
    ]


@pytest.mark.parametrize(
    ("role", "command", "wanted"),
    [
        ("taskManager", "GET_TM_RESOURCE_PARAMS", "-Xmx671088640"),
        ("jobManager", "GET_JM_RESOURCE_PARAMS", "-Xmx939524096"),
    ],
)
def test_the_parts_of_the_memory_add_up_to_the_pods(
    flink: None, deployment: dict[str, Any], tmp_path: Path, role: str, command: str, wanted: str
) -> None:
    from streamml.flink.cluster import flink_home

    memory = deployment["spec"][role]["resource"]["memory"]
    settings = {**deployment["spec"]["flinkConfiguration"], f"{role.lower()}.memory.process.size": memory}
    settings["jobmanager.rpc.address"] = "localhost"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    home = flink_home()
    jars = [home / "bin" / "bash-java-utils.jar", next((home / "lib").glob("flink-dist-*.jar"))]
    program = ["org.apache.flink.runtime.util.bash.BashJavaUtils", command, "-c", str(tmp_path)]
    done = subprocess.run(
        ["java", "-Xmx128m", "-cp", os.pathsep.join(map(str, jars)), *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert f"BASH_JAVA_UTILS_EXEC_RESULT:{wanted}" in done.stdout, done.stdout[-1500:]


def test_the_image_has_what_the_deployment_names(deployment: dict[str, Any]) -> None:
    from streamml.flink.jars import KAFKA_CONNECTOR

    dockerfile = (RECIPE / "Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", dockerfile, re.M)
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+", image)] == []
    version = re.search(r"apache-flink==([\d.]+)", (ROOT / "deploy" / "flink" / "Dockerfile").read_text())
    assert version is not None
    spec = deployment["spec"]
    assert spec["job"]["jarURI"] == f"local:///opt/flink/opt/flink-python-{version[1]}.jar"
    assert spec["flinkVersion"] == "v" + "_".join(version[1].split(".")[:2])
    for text in (dockerfile, (RECIPE / "jars.xml").read_text()):
        assert f"flink-sql-connector-kafka-{KAFKA_CONNECTOR}" in text or f"<version>{KAFKA_CONNECTOR}<" in text
        assert f"flink-s3-fs-presto-{version[1]}" in text or f"<version>{version[1]}<" in text
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.M) for word in line.split()[:-1]]
    assert [name for name in copied if not name.startswith("--") and not (ROOT / name).exists()] == []
    assert spec["job"]["args"][spec["job"]["args"].index("--parallelism") + 1] == str(spec["job"]["parallelism"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_program_of_the_deployment_runs_in_application_mode(
    flink: None, deployment: dict[str, Any], tmp_path: Path
) -> None:
    from streamml.flink.cluster import TrialCluster, flink_home
    from streamml.flink.ports import free_port

    lines, out = tmp_path / "payments.jsonl", tmp_path / "scores"
    binary = str(Path(sys.executable).parent / "streamml")
    for command in (
        ["generate", "payments", "--events", "300", "--to", f"file:{lines}"],
        ["run", "payments", "--source", f"file:{lines}", "--sink", f"file:{tmp_path / 'local.jsonl'}", "--plain"],
    ):
        subprocess.run([binary, *command], check=True, capture_output=True, timeout=100, cwd=tmp_path)

    job, home = deployment["spec"]["job"], flink_home()
    places = {
        "--source": f"file:{lines}",
        "--sink": f"file:{out}",
        "--parallelism": "1",
        "-pyclientexec": sys.executable,
    }
    args = list(job["args"])
    for option, value in places.items():
        args[args.index(option) + 1] = value
    jar = job["jarURI"].replace("/opt/flink", str(home), 1)
    folder = tmp_path / "cluster"
    TrialCluster(folder, port=free_port(), slots=1)._configure()
    environment = {
        **os.environ,
        "FLINK_CONF_DIR": str(folder / "conf"),
        "FLINK_LOG_DIR": str(folder / "log"),
        "FLINK_PID_DIR": str(folder),
    }
    starts = (
        ["standalone-job.sh", "start-foreground", "--jars", jar, "--job-classname", job["entryClass"], *args],
        ["taskmanager.sh", "start-foreground"],
    )
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for name, *rest in starts:
            log = stack.enter_context((folder / "log" / f"{name}.out").open("wb"))
            process = subprocess.Popen(
                ["bash", str(home / "bin" / name), *rest],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            started.append(process)
            stack.callback(_kill, process)
        deadline = time.monotonic() + 240
        while started[0].poll() is None and started[1].poll() is None:
            assert time.monotonic() < deadline, "the application did not end"
            time.sleep(0.3)
        said = (folder / "log" / "standalone-job.sh.out").read_text()[-3000:]
        assert started[0].wait(30) == 0, said  # the cluster ends with its job
    found = [line for path in out.rglob("part-*") for line in path.read_bytes().splitlines()]
    assert sorted(found) == sorted((tmp_path / "local.jsonl").read_bytes().splitlines())
    assert len(found) > 250


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
