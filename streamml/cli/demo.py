"""`streamml run JOB --demo`: a job on a stream of its own making, in a folder of its own.

A job `NAME.py` that can be shown has a file `NAME_demo.py` beside it with

    def demo_source(folder: Path, events: int) -> str | Mapping[str, str]:
        '''Write a stream into the folder and return its address (by tag, where there are several sources).'''

    def demo_report(folder: Path, output: Path) -> Mapping[str, str]:
        '''Look at the main output, JSON lines, and return lines to show, by their name.'''
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamml.cli.loading import Job
from streamml.cli.view import View
from streamml.errors import ConnectorError

__all__ = ["Demo", "prepare", "report"]

_ROOT = Path("build/demo")
_MARKER = ".streamml-demo"


@dataclass(frozen=True)
class Demo:
    """Where a demonstration runs."""

    folder: Path
    sources: tuple[str, ...]
    """As `--source` takes them."""

    @property
    def output(self) -> Path:
        """File of the main output."""
        return self.folder / "output.jsonl"

    @property
    def state_dir(self) -> Path:
        """Folder of its state."""
        return self.folder / "state"


def prepare(job: Job, events: int, view: View) -> Demo:
    """Replace the folder of the job's demonstration, and have the job write its stream there.

    Raises:
        PlanError: the job has no demonstration.
        ConnectorError: the folder is not one that a demonstration made.
    """
    module = job.demo()
    folder = _ROOT / job.name
    if folder.exists() and not (folder / _MARKER).is_file():
        msg = f"demo folder {folder}: --demo did not make it, so it is not replaced; move it, or start elsewhere"
        raise ConnectorError(msg)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / _MARKER).touch()
    except OSError as exc:
        msg = f"demo folder {folder}: {exc}. Start in a folder that you may write to."
        raise ConnectorError(msg) from exc
    with view.busy(f"generating {events:,} events into {folder}"):
        made = module.demo_source(folder, events)
    if isinstance(made, Mapping):
        return Demo(folder, tuple(f"{tag}={uri}" for tag, uri in made.items()))
    return Demo(folder, (made,))


def report(job: Job, demo: Demo) -> dict[str, str]:
    """Return what the job says of its output."""
    return dict(job.demo().demo_report(demo.folder, demo.output))
