"""What must hold of every operator, ours and yours: run each check that `yield_checks` gives as a test of its own."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import inspect
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from streamml.contract import Operator
from streamml.errors import PlanError
from streamml.state.layout import expired
from streamml.testing.case import Case, Expected
from streamml.testing.compare import compare, expected_of
from streamml.testing.driver import Engine, RunOptions
from streamml.testing.result import Result
from streamml.testing.script import Checkpoint, Crash, Restart, Script, ScriptEvent, Step, advance, checkpoint, crash

__all__ = ["Check", "yield_checks"]

Check = Callable[[], None]

_BATCH_SIZES = (1, 2, 3, 1000)
_CUTS = 12
_LONG = 10 * 365 * 86_400_000  # ms; longer than any TTL


def yield_checks(
    operator: Operator,
    script: Sequence[Step],
    *,
    poison: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    models: tuple[str, ...] = (),
) -> Iterator[tuple[str, Check]]:
    """Yield the checks that apply to an operator, by name; each raises `AssertionError` with what differs.

    - `batches`: another micro-batch size gives the same results and the same stored state.
    - `batch_equals_loop`: `on_batch` gives what the loop of `on_event` gives, state included.
    - `restore`: killed anywhere and restored, it ends as an unbroken run does, state included.
    - `ttl`: once the watermark has passed everything and its TTL, no state is left.
    - `order`: what it passes on of a key's events comes in their order.
    - `poison`: a row that it can't take is rejected alone, and the rest is as without that row.
    - `pickle`: its configuration goes to another process and does the same there.
    - `example`: the docstring of its class has an example, and it is right.

    Args:
        operator: an operator.
        script: events that make it do what it can, with watermarks; no faults.
        poison: fields of an event that it must reject; None if it takes whatever comes.
        engine: a started driver; the embedded engine by default.
        models: folders that are searched for model bundles.

    >>> from streamml.operators import Dedupe
    >>> from streamml.testing import event
    >>> for name, check in yield_checks(Dedupe("n"), [event("k", t="1s", n=1), event("k", t="2s", n=1)], poison={}):
    ...     check()
    """
    if not isinstance(operator, Operator):
        msg = f"yield_checks: wanted an operator such as Dedupe('n'), got {operator!r}; build it first"
        raise PlanError(msg)
    if Script(script).has(Crash, Restart, Checkpoint):
        msg = "yield_checks: the script must have no crash(), restart() or checkpoint(); the checks put them in"
        raise PlanError(msg)
    if engine is None:
        from streamml.testing.local import LocalDriver

        engine = LocalDriver()
    trial = _Trial(operator, Script(script).steps, engine, models)
    kind = type(operator)
    yield "batches", trial.batches
    if kind.defines("on_batch") and kind.defines("on_event"):
        yield "batch_equals_loop", trial.batch_equals_loop
    yield "restore", trial.restore
    states = operator.bound_states().values()
    if states and all(state.clock == "event" and state.millis(operator) is not None for state in states):
        yield "ttl", trial.ttl
    yield "order", trial.order
    if poison is not None:
        yield "poison", partial(trial.poison, dict(poison))
    if not _has_local_functions(operator):
        yield "pickle", trial.pickle
    yield "example", trial.example


@dataclass
class _Trial:
    operator: Operator
    steps: list[Step]
    engine: Engine
    models: tuple[str, ...]

    def run(self, operator: Operator, steps: Sequence[Step], *, end: bool = False, **options: Any) -> Result:
        case = Case(operator.name, [operator], steps, end=end)
        return self.engine.run(case, RunOptions(models=self.models, **{"checkpoint_every": 0, **options}))

    @cached_property
    def unbroken(self) -> Result:
        """The run that the others are compared with."""
        return self.run(self.operator, self.steps)

    def batches(self) -> None:
        for end in (False, True):
            wanted = self.run(self.operator, self.steps, end=end)
            for size in _BATCH_SIZES:
                got = self.run(self.operator, self.steps, end=end, batch_size=size)
                _same(got, wanted, f"with micro-batches of {size}, end={end}")

    def batch_equals_loop(self) -> None:
        kind = type(self.operator)
        loop = copy.copy(self.operator)
        object.__setattr__(loop, "__class__", type(kind.__name__, (kind,), {"on_batch": Operator.on_batch}))
        assert not type(loop).defines("on_batch")
        for size in _BATCH_SIZES:
            wanted = self.run(loop, self.steps, batch_size=size)
            _same(
                self.run(self.operator, self.steps, batch_size=size), wanted, f"by batches of {size} against the loop"
            )

    def restore(self) -> None:
        steps, wanted = self.steps, self.unbroken
        for cut in _cuts(len(steps)):
            for taken in (cut, max(cut - 2, 0)):
                broken = [*steps[:taken], checkpoint(), *steps[taken:cut], crash(), *steps[cut:]]
                got = self.run(self.operator, broken, batch_size=3)
                _same(got, wanted, f"killed after step {cut} of {len(steps)}, with a checkpoint after step {taken}")

    def ttl(self) -> None:
        times = [step.t for step in self.steps if isinstance(step, ScriptEvent)]
        far = advance(max(times, default=0) + _LONG)
        for size in (1, 1000):
            left = self.run(self.operator, [*self.steps, checkpoint(), far], batch_size=size).rows(b"kmct")
            assert left == {}, f"{len(left)} rows are left long after everything: {list(left)[:5]}"

    def order(self) -> None:
        arrived = {f"script/{step.id}": n for n, step in enumerate(self.steps) if isinstance(step, ScriptEvent)}
        for size in _BATCH_SIZES:
            last: dict[Any, int] = {}
            for record in self.run(self.operator, self.steps, batch_size=size).main:
                number = arrived.get("/".join(record.id.split("/")[:2]))
                if number is not None:
                    before = last.get(record.key, -1)
                    assert number >= before, f"key {record.key!r}: {record.id!r} came after event number {before}"
                    last[record.key] = number

    def poison(self, fields: dict[str, Any]) -> None:
        wanted = self.unbroken
        events = [(n, step) for n, step in enumerate(self.steps) if isinstance(step, ScriptEvent)]
        clock = Script(self.steps)
        for n, step in events[:: max(1, len(events) // _CUTS)]:
            watermark = clock.watermarks[n]
            bad = ScriptEvent(step.key, max(step.t, watermark, 0), "poison", step.source, fields)
            for size in (1, 3, 1000):
                got = self.run(self.operator, [*self.steps[:n], bad, *self.steps[n:]], batch_size=size)
                bad_ones = [record for record in got.side("rejected") if record["id"] == "script/poison"]
                where = f"with a poison row before step {n}, in batches of {size}"
                assert len(bad_ones) == 1, f"{where}: it was rejected {len(bad_ones)} times"
                assert {"operator", "error", "reason"} <= bad_ones[0].keys(), f"{where}: {bad_ones[0]}"
                got.side("rejected").remove(bad_ones[0])
                _same(got, wanted, where)

    def pickle(self) -> None:
        moved = pickle.loads(pickle.dumps(self.operator))
        assert type(moved) is type(self.operator)
        assert moved.name == self.operator.name
        _same(self.run(moved, self.steps), self.unbroken, "after pickling")

    def example(self) -> None:
        kind = type(self.operator)
        tests = doctest.DocTestFinder(recurse=False).find(
            kind, kind.__name__, globs=dict(vars(sys.modules[kind.__module__]))
        )
        examples = [test for test in tests if test.examples]
        assert examples, f"the docstring of {kind.__name__} has no example"
        assert any(example.want for test in examples for example in test.examples), "its example prints nothing"
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        for test in examples:
            assert runner.run(test, out=report.write).failed == 0, report.getvalue()


def _same(got: Result, wanted: Result, where: str) -> None:
    """Check that two runs gave the same results and the same stored state."""
    expected: Expected = expected_of(wanted)
    found = compare(got, expected)
    assert found == [], "\n".join([f"{where}:", *found])
    if wanted.stored is not None:
        mine, theirs = _living(got), _living(wanted)
        odd = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
        assert odd == [], (
            f"{where}: {len(odd)} stored rows differ, such as {odd[0]!r}: {mine.get(odd[0])!r}, {theirs.get(odd[0])!r}"
        )


def _living(result: Result) -> dict[bytes, bytes]:
    """Return the stored rows that have not expired; the others are swept sooner or later."""
    return {key: row for key, row in result.rows().items() if not expired(row, result.watermark, 0)}


def _cuts(steps: int) -> list[int]:
    """Return after how many steps to cut: everywhere in a short script, at a dozen places in a long one."""
    return list(range(1, steps + 1, max(1, steps // _CUTS)))


def _has_local_functions(operator: Operator) -> bool:
    """Return whether some option is a function that pickle can't find by its name."""

    def local(value: Any) -> bool:
        if inspect.isfunction(value):
            return "<" in value.__qualname__
        if isinstance(value, Mapping):
            return any(map(local, value.values()))
        return isinstance(value, list | tuple) and any(map(local, value))

    return any(local(getattr(operator, field.name)) for field in dataclasses.fields(operator))
