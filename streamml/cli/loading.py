"""From what the user calls a job to its pipeline: a ready job's name, or a Python file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from streamml.errors import PlanError, StreamMLError, suggest

if TYPE_CHECKING:
    from streamml.pipeline import Pipeline

__all__ = ["Job", "load_job", "ready_jobs"]

_READY = "streamml.jobs"


@dataclass(frozen=True)
class Job:
    """A job that was found and imported.

    Attributes:
        name: the ready job's name, or the stem of its file.
        path: its file.
        module: the module, whose `pipeline(cfg)` builds the plan.
    """

    name: str
    path: Path
    module: ModuleType

    def models(self, given: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the registries to search: the given ones or `models/` beside the job, then the shipped."""
        beside = self.path.parent / "models"
        folders = list(given) or ([str(beside)] if beside.is_dir() else [])
        shipped = _ready_folder() / "bundles"
        return (*folders, str(shipped)) if shipped.is_dir() else tuple(folders)

    def pipeline(self, params: Mapping[str, str], models: tuple[str, ...] = ()) -> Pipeline:
        """Build the plan.

        Raises:
            PlanError: the job's own error, or a parameter that the job never asked for.
        """
        from streamml.pipeline import JobConfig, Pipeline

        asked = _Asked(params)
        try:
            built = self.module.pipeline(JobConfig(models=models, params=asked))
        except StreamMLError:
            raise
        except Exception as exc:
            msg = f"job {self.path}{_line(exc, self.path)}: pipeline(cfg) raised {type(exc).__name__}: {exc}"
            raise PlanError(msg) from exc
        if not isinstance(built, Pipeline):
            hint = " Is a `return` missing?" if built is None else ""
            msg = f"job {self.path}: pipeline(cfg) must return a streamml.Pipeline, got {type(built).__name__}.{hint}"
            raise PlanError(msg)
        if unknown := sorted(set(params) - asked.names):
            where = f"job {self.name!r}, --param {unknown[0]}=..."
            raise PlanError.unknown(where, "parameter", unknown[0], asked.names)
        return built

    @property
    def demo_path(self) -> Path:
        """Where the job's demonstration is, if it has one: `NAME_demo.py` beside it."""
        return self.path.with_name(f"{self.path.stem}_demo.py")

    def demo(self) -> ModuleType:
        """Import the demonstration, see `streamml.cli.demo`.

        Raises:
            PlanError: there is none, or it can't be imported.
        """
        if not self.demo_path.is_file():
            msg = (
                f"job {self.name!r} has no demonstration (no {self.demo_path.name} beside it); pass --source and --sink"
            )
            raise PlanError(msg)
        if self.module.__name__.startswith(_READY + "."):
            return _guarded(lambda: importlib.import_module(f"{self.module.__name__}_demo"), self.demo_path)
        return _imported(self.demo_path)


class _Asked(dict[str, str]):
    """Parameters that remember which names the job asked for, so that a misspelt one can be refused."""

    def __init__(self, params: Mapping[str, str]) -> None:
        super().__init__(params)
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def load_job(job: str) -> Job:
    """Import a job.

    Args:
        job: a ready job's name, or the path of a Python file.

    Raises:
        PlanError: there is none, it can't be imported, or it has no `pipeline(cfg)`.

    >>> load_job("paymints.py")
    Traceback (most recent call last):
    streamml.errors.PlanError: job 'paymints.py': there is no such file. ...
    """
    if job.endswith(".py") or "/" in job:
        path = Path(job)
        if not path.is_file():
            msg = (
                f"job {job!r}: there is no such file. Name a Python file with pipeline(cfg), or a ready job: {_names()}"
            )
            raise PlanError(msg)
        return _checked(Job(path.stem, path, _imported(path)))
    ready = ready_jobs()
    if job not in ready:
        msg = f"job {job!r}: there is no ready job of this name. {suggest(job, ready)} Your own is named by its file, "
        msg += f"and there is one: {job}.py" if Path(f"{job}.py").is_file() else "such as path/to/job.py"
        raise PlanError(msg)
    module = _guarded(lambda: importlib.import_module(f"{_READY}.{job}"), ready[job])
    return _checked(Job(job, ready[job], module))


def ready_jobs() -> dict[str, Path]:
    """Return name and file of each module of `streamml.jobs` that defines `pipeline`, without importing them."""
    return {path.stem: path for path in sorted(_ready_folder().glob("*.py")) if "pipeline" in _functions(path)}


def _ready_folder() -> Path:
    package = importlib.import_module(_READY)
    return Path(next(iter(package.__path__)))


def _names() -> str:
    return ", ".join(ready_jobs()) or "(none)"


def _functions(path: Path) -> list[str]:
    try:
        body = ast.parse(path.read_bytes(), filename=str(path)).body
    except SyntaxError:
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef)]


def _imported(path: Path) -> ModuleType:
    name = f"streamml_job_{path.stem}"
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python FILE` does, so that a job can import what lies beside it
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of its classes are looked up there

    def execute() -> ModuleType:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return module

    try:
        return _guarded(execute, path)
    except PlanError:
        sys.modules.pop(name, None)
        raise


def _guarded(load: Callable[[], ModuleType], path: Path) -> ModuleType:
    try:
        return load()
    except SyntaxError as exc:
        where = f"{exc.filename or path}:{exc.lineno or '?'}"
        msg = f"job {where}: syntax error: {exc.msg}: {(exc.text or '').strip()}"
        raise PlanError(msg) from exc
    except StreamMLError:
        raise
    except ModuleNotFoundError as exc:
        where = f"{path}{_line(exc, path)}"
        msg = f"job {where}: there is no module {exc.name!r} here. `streamml doctor` says how to get extras."
        raise PlanError(msg) from exc
    except Exception as exc:
        msg = f"job {path}{_line(exc, path)}: importing it raised {type(exc).__name__}: {exc}"
        raise PlanError(msg) from exc


def _checked(job: Job) -> Job:
    if not callable(getattr(job.module, "pipeline", None)):
        found = [name for name in _functions(job.path) if not name.startswith("_")]
        hint = f" It defines {', '.join(found)}." if found else ""
        msg = (
            f"job {job.path}: it defines no pipeline(cfg).{hint} Add: "
            "def pipeline(cfg: streamml.JobConfig) -> streamml.Pipeline: ..."
        )
        raise PlanError(msg)
    return job


def _line(error: BaseException, path: Path) -> str:
    """Return `:LINE` of the innermost frame that lies in the job's file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
    return f":{lines[-1]}" if lines else ""
