"""House rules that a machine can check: who imports whom, what a wheel holds, what the files say."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folder of the repository -> the package that it is.
PACKAGES = {
    "streamml": "streamml",
    "operators": "streamml.operators",
    "state": "streamml.state",
    "jobs": "streamml.jobs",
}
ENGINES = {"local": "streamml.local", "flink": "streamml.flink", "beam": "streamml.beam"}
THIRD_PARTY = {"flink": ("pyflink", "apache_flink", "py4j"), "beam": ("apache_beam",)}
ALL_THIRD_PARTY = tuple(name for names in THIRD_PARTY.values() for name in names)
NOT_SOURCE = {".git", ".cache", ".venv", "build", "dist", "__pycache__"}


def repository_files() -> list[Path]:
    """Every file that git keeps or would keep; without git, every file that is not a build product."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not NOT_SOURCE & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in set(files) if path.is_file())


FILES = repository_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]


def under(*folders: str) -> list[Path]:
    return [path for path in PYTHON if path.relative_to(ROOT).parts[0] in folders]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    """Return the module that a file is, as users import it; a file outside the packages is named by its path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = (*PACKAGES.get(parts[0], parts[0]).split("."), *parts[1:])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Imports(ast.NodeVisitor):
    """The absolute names that one file imports, each with its line, and whether that happens at import time."""

    def __init__(self, path: Path) -> None:
        self.found: list[tuple[str, int, bool]] = []
        self._depth = 0
        module = dotted(path)
        self._package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        """Read `if TYPE_CHECKING:` as not at import time."""
        test = node.test
        name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
        self._depth += name == "TYPE_CHECKING"
        for child in node.body:
            self.visit(child)
        self._depth -= name == "TYPE_CHECKING"
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno, self._depth == 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self._package.split(".")
            parent = ".".join(parts[: len(parts) - node.level + 1])
            base = f"{parent}.{base}" if base else parent
        # `from a import b` may import the module a.b, so both names are judged.
        self.found += [(f"{base}.{alias.name}", node.lineno, self._depth == 0) for alias in node.names]


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (name, "file:line", at import time) for each import of a file."""
    for name, line, at_import in Imports(path).found:
        yield name, f"{name_of(path)}:{line}", at_import


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def engine_of(path: Path) -> str | None:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "streamml" and parts[1] in ENGINES else None


# --- who imports whom -------------------------------------------------------------------------------------------------


def test_nobody_imports_the_folders_as_packages_of_their_own() -> None:
    bad = [
        f"{where}: import {name}"
        for path in PYTHON
        for name, where, _ in imports(path)
        if within(name, "operators", "state", "jobs")
    ]
    assert bad == [], "write streamml.operators, streamml.state, streamml.jobs"


def test_only_the_engines_folders_import_an_engine() -> None:
    bad = [
        f"{where}: import {name}"
        for path in under(*PACKAGES)
        if engine_of(path) is None
        for name, where, at_import in imports(path)
        if within(name, *ALL_THIRD_PARTY) or (at_import and within(name, *ENGINES.values()))
    ]
    assert bad == [], "the core knows no engine; streamml.local, .flink and .beam may be imported inside a function"


@pytest.mark.parametrize("engine_folder", sorted(ENGINES))
def test_an_engine_imports_no_other_engine(engine_folder: str) -> None:
    foreign = [package for name, package in ENGINES.items() if name != engine_folder]
    foreign += [name for engine, names in THIRD_PARTY.items() if engine != engine_folder for name in names]
    bad = [
        f"{where}: import {name}"
        for path in under("streamml")
        if engine_of(path) == engine_folder
        for name, where, _ in imports(path)
        if within(name, *foreign)
    ]
    assert bad == []


def test_state_imports_no_engine_and_no_operator() -> None:
    forbidden = (*ALL_THIRD_PARTY, *ENGINES.values(), "streamml.operators", "streamml.jobs")
    bad = [
        f"{where}: import {name}"
        for path in under("state")
        for name, where, _ in imports(path)
        if within(name, *forbidden)
    ]
    assert bad == []


def public_names(package: str) -> set[str]:
    """Return `__all__` of a public package, read without importing it."""
    folder = next(f for f, p in reversed(PACKAGES.items()) if within(package, p))
    path = ROOT.joinpath(folder, *package.removeprefix(PACKAGES[folder]).strip(".").split("."), "__init__.py")
    exported = exports(path)
    return set() if exported is None else set(ast.literal_eval(exported))


def exports(path: Path) -> ast.expr | None:
    """Return the expression that a module assigns to `__all__`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return getattr(node, "value", None)
    return None


def test_jobs_and_examples_use_the_public_api_only() -> None:
    """A public name is one in the `__all__` of streamml or of a package directly under it."""
    public = {dotted(path) for path in under(*PACKAGES) if path.name == "__init__.py" and dotted(path).count(".") <= 1}
    public = {package for package in public if "._" not in package}
    bad = []
    for path in under("jobs", "examples"):
        for name, where, _ in imports(path):
            package, _, last = name.rpartition(".")
            fine = (
                not within(name, "streamml")
                or name in public
                or (package in public and last in public_names(package))
                or (path.parts[len(ROOT.parts)] == "jobs" and within(name, "streamml.jobs"))
            )
            if not fine:
                bad.append(f"{where}: {name}")
    assert bad == [], f"import what is in __all__ of {sorted(public)}"


def test_every_public_module_says_what_it_exports() -> None:
    bad = [
        name_of(path)
        for path in under(*PACKAGES)
        if not any(part.startswith("_") for part in dotted(path).split(".")) and exports(path) is None
    ]
    assert bad == [], "add __all__, or give the module a name with an underscore"


def test_importing_streamml_loads_nothing_heavy() -> None:
    heavy = [
        *ALL_THIRD_PARTY,
        *ENGINES.values(),
        "torch",
        "onnxruntime",
        "onnx",
        "pyarrow",
        "pandas",
        "scipy",
        "sklearn",
    ]
    # -I: neither the folder that pytest was started in nor PYTHONPATH helps to find a package.
    program = f"import sys, streamml, streamml.operators; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


# --- what is installed ------------------------------------------------------------------------------------------------


def package_files() -> dict[str, Path]:
    """Return the files that must be in a wheel: the name there -> the file here."""
    files = {}
    for path in FILES:
        top, *rest = path.relative_to(ROOT).parts
        if top in PACKAGES and rest and "java" not in rest:  # Java sources: the jar that they make is in
            files["/".join([*PACKAGES[top].split("."), *rest])] = path
    return files


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    assert listed == sorted(dotted(path) for path in under(*PACKAGES) if path.name == "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy, since a build leaves files beside its sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    wanted = [*package_files().values(), *(ROOT / name for name in ("setup.cfg", "pyproject.toml", "LICENSE"))]
    for path in [*wanted, *ROOT.glob("README.md")]:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if re.match(r"streamml-[^/]+\.dist-info/", name)}
    assert names - info == set(package_files()), "a data file that is missing belongs into [options.package_data]"


def test_a_wheel_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert "streamml = streamml.cli.main:main" in archive.read(entry_points).decode()


# --- what the files say -----------------------------------------------------------------------------------------------


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    folders = "|".join(("work", "root", "home", "Users", "mnt"))
    machine_path = re.compile(r"(?<![\w.})*-])/(?:" + folders + r")/[\w.]")
    bad = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        bad += [
            f"{name_of(path)}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if machine_path.search(line)
        ]
    assert bad == []


def test_docker_compose_accepts_its_file() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed, so docker-compose.yml is not checked")
    command = ["docker-compose", "-f", str(ROOT / "docker-compose.yml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_docker_images_have_pinned_tags() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    text += (ROOT / "deploy" / "flink" / "Dockerfile").read_text(encoding="utf-8")
    images = re.findall(r"^\s*(?:image:|FROM) +(\S+)", text, flags=re.MULTILINE)
    assert images
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+", image)] == []


def test_the_build_folder_of_the_image_has_what_it_copies() -> None:
    dockerfile = (ROOT / "deploy" / "flink" / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        word
        for line in re.findall(r"^COPY (.+)$", dockerfile, flags=re.MULTILINE)
        if "--from" not in line
        for word in line.split()[:-1]
        if not word.startswith("--")
    ]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
