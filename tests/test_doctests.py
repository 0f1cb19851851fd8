"""Run every example of every docstring, from the package as it is imported.

Not `pytest --doctest-modules`: from the folders it would import `operators`, a second copy of `streamml.operators`.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
import types

import pytest

ROOTS = ("streamml", "streamml.operators", "streamml.state", "streamml.jobs")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# A module that needs one of these is skipped where it is not installed; any other missing module is a failure.
OPTIONAL = {
    "apache_beam",
    "confluent_kafka",
    "datasketches",
    "kafka",
    "onnxruntime",
    "opentelemetry",
    "pyarrow",
    "pyflink",
    "redis",
    "torch",
}


def modules() -> list[str]:
    """Name every module under the four roots. `streamml` alone does not lead to the mapped folders."""
    names: dict[str, None] = {}
    for root in ROOTS:
        names[root] = None
        package = importlib.import_module(root)
        # A package that cannot be imported is named all the same, and its own test below says why.
        for found in pkgutil.walk_packages(package.__path__, root + ".", onerror=lambda name: None):
            if found.name.rpartition(".")[2] != "__main__":
                names[found.name] = None
    return list(names)


def load(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in OPTIONAL:
            pytest.skip(f"{name} needs {missing.name}, not installed here")
        raise


@pytest.mark.parametrize("name", modules())
def test_examples_print_what_the_docstring_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = doctest.testmod(load(name), optionflags=FLAGS)
    assert result.failed == 0, capsys.readouterr().out


def test_no_module_was_loaded_a_second_time_from_its_folder() -> None:
    bare = [name for name in sys.modules if name.partition(".")[0] in {"operators", "state", "jobs"}]
    assert bare == []
