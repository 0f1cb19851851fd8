"""The engines that a run is asked to cover, and the fixture that starts them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

ENGINES_MODULE = "streamml.testing.engines"


def engines() -> dict[str, type] | None:
    """The driver class of each engine by its name, or None where streamml has no such table."""
    try:
        return importlib.import_module(ENGINES_MODULE).ENGINES
    except ModuleNotFoundError as missing:
        if missing.name is not None and (ENGINES_MODULE + ".").startswith(missing.name + "."):
            return None
        raise


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("streamml")
    group.addoption("--engines", default="local", help="engines to test: names with commas, or 'all' (default: local)")
    group.addoption("--require-engines", action="store_true", help="fail, not skip, where an engine is not installed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption("engines")
    known = engines()
    if known is None:  # the fixture says so, in each test that wanted an engine
        names = ["local"] if option == "all" else option.split(",")
    else:
        names = list(known) if option == "all" else option.split(",")
        if unknown := set(names) - set(known):
            msg = f"--engines: unknown engines {sorted(unknown)}; known: {sorted(known)}"
            raise pytest.UsageError(msg)
    params = [pytest.param(name, marks=getattr(pytest.mark, name), id=name) for name in names]
    metafunc.parametrize("engine", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A started engine, once for the session; skipped, or with --require-engines failed, where it is not installed."""
    known = engines()
    if known is None:
        pytest.fail(f"engine {request.param!r}: there is no module {ENGINES_MODULE} with a table ENGINES")
    driver = known[request.param]
    if missing := [module for module in driver.deps if importlib.util.find_spec(module) is None]:
        verdict = pytest.fail if request.config.getoption("require_engines") else pytest.skip
        verdict(f"engine {request.param!r} needs {missing}, not installed here")
    with driver() as started:
        yield started
