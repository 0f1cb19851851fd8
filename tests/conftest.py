"""The engines that a run is asked to cover, the fixture that starts them, and the markers of what an engine can't do.

A gap is declared at a test (or at one of its parameters) and is a strict xfail, so that one that closes fails the run:

    @pytest.mark.notimpl("beam", raises=UnsupportedError, reason="...")    # we have not
    @pytest.mark.notyet("flink", raises=UnsupportedError, reason="...")    # the engine can't
    @pytest.mark.never("local", raises=UnsupportedError, reason="...")     # makes no sense there

Drivers turn an engine's refusal into `UnsupportedError`, and nothing else may be named: a wrong answer is no gap.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

GAPS = ("notimpl", "notyet", "never")
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


def pytest_configure(config: pytest.Config) -> None:
    for kind in GAPS:
        config.addinivalue_line("markers", f"{kind}(*engines, raises=, reason=): what these engines can't do")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for kind in GAPS:
            for mark in item.iter_markers(kind):
                check_gap(item, mark)
                callspec = getattr(item, "callspec", None)
                if callspec is not None and callspec.params.get("engine") in mark.args:
                    reason = f"{kind}: {mark.kwargs['reason']}"
                    item.add_marker(pytest.mark.xfail(raises=mark.kwargs["raises"], reason=reason, strict=True))


def check_gap(item: pytest.Item, mark: pytest.Mark) -> None:
    """Refuse a gap that names no engine, an unknown one, no reason, or another error than `UnsupportedError`."""
    where = f"{item.nodeid}: @pytest.mark.{mark.name}"
    known = set(engines() or ())
    if not mark.args or (unknown := set(mark.args) - known):
        odd = sorted(unknown) if mark.args else "none"
        msg = f"{where}: wanted names of engines ({', '.join(sorted(known))}), got {odd}"
        raise pytest.UsageError(msg)
    if set(mark.kwargs) != {"raises", "reason"} or not mark.kwargs["reason"]:
        msg = f"{where}: wanted raises= and reason=, got {sorted(mark.kwargs)}"
        raise pytest.UsageError(msg)
    if getattr(mark.kwargs["raises"], "__name__", "") != "UnsupportedError":
        msg = f"{where}: raises= must be streamml.errors.UnsupportedError: a wrong answer is no gap"
        raise pytest.UsageError(msg)


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
