"""Each check finds the operator that breaks its rule."""

from __future__ import annotations

from typing import Any

import pytest

import streamml as sml
from streamml.errors import PlanError
from streamml.operators import Dedupe, Map
from streamml.records import Batch, Record
from streamml.testing import advance, crash, event
from streamml.testing.checks import yield_checks

SCRIPT = [
    event("a", t="1s", n=1),
    event("b", t="2s", n=2),
    event("a", t="3s", n=3),
    advance("3s"),
    event("a", t="4s", n=4),
    event("a", t="5s", n=5),
]


class Sums(sml.KeyedOperator):
    """Add up, with faults that can be switched on.

    >>> 1 + 1
    2
    """

    fault: str = ""

    total = sml.ValueState(int, default=0, ttl="10s")

    def on_event(self, event: Record, ctx: Any) -> None:
        if self.fault == "poison" and not hasattr(event, "n"):
            return
        self.total.set(self.total.get() + event.n)
        ctx.emit(event.with_fields(sum=self.total.get()))


class BatchSums(Sums):
    """The same by batches, but what a batch repeats of a key counts once.

    >>> 1 + 1
    2
    """

    def on_batch(self, batch: Batch, ctx: Any) -> Batch:
        sums = []
        for key, entry, time, watermark, n in zip(
            batch.keys, batch.entries or (), batch.times, batch.watermarks, batch.column("n"), strict=True
        ):
            ctx.at(entry, None, key, time, watermark)
            extra = 1 if self.fault == "batch" and len(batch) > 2 else 0
            self.total.set(self.total.get() + n + extra)
            sums.append(self.total.get())
        return batch.with_fields({"sum": sums})


class Remembers(sml.Operator):
    """Keeps what a restart must forget.

    >>> 1 + 1
    2
    """

    seen: Any = None

    def open(self, opening: Any) -> None:
        object.__setattr__(self, "count", 0)

    def on_event(self, event: Record, ctx: Any) -> None:
        object.__setattr__(self, "count", self.count + 1)
        ctx.emit(event.with_fields(count=self.count))


class Leaks(sml.KeyedOperator):
    """Sets a timer far away.

    >>> 1 + 1
    2
    """

    last = sml.ValueState(int, ttl="1s")

    def on_event(self, event: Record, ctx: Any) -> None:
        self.last.set(event.n)
        ctx.set_timer(2**55)
        ctx.emit(event)

    def on_timer(self, timer: Any, ctx: Any) -> None:
        raise AssertionError(timer)


class Reverses(sml.Operator):
    """Turns each batch round.

    >>> 1 + 1
    2
    """

    def on_batch(self, batch: Batch, ctx: Any) -> Batch:
        return batch.take(range(len(batch))[::-1])


class NoExample(sml.Operator):
    """Has none."""

    def on_event(self, event: Record, ctx: Any) -> None:
        ctx.emit(event)


class Lossy(int):
    """An option that pickle turns into 0."""

    def __reduce__(self) -> Any:
        return int, (0,)


class Scales(sml.Operator):
    """Multiplies.

    >>> 1 + 1
    2
    """

    factor: int = 1

    def on_event(self, event: Record, ctx: Any) -> None:
        ctx.emit(event.with_fields(scaled=event.n * self.factor))


class LocalState(sml.KeyedOperator):
    """Keeps state beside the state."""

    def open(self, opening: Any) -> None:
        object.__setattr__(self, "last", {})

    def on_event(self, event: Record, ctx: Any) -> None:
        ctx.emit(event.with_fields(before=self.last.get(event.key)))
        self.last[event.key] = event.n


@pytest.mark.parametrize(
    ("operator", "failing"),
    [
        (Sums(), set()),
        (BatchSums(), set()),
        (Sums("poison"), {"poison"}),
        (BatchSums("batch"), {"batches", "batch_equals_loop", "restore", "poison"}),
        (Remembers(), {"restore", "poison"}),
        (LocalState(), {"restore", "example"}),
        (Leaks(), {"ttl"}),
        (Reverses(), {"batches", "order", "restore", "poison"}),
        (NoExample(), {"example", "poison"}),
        (Scales(2), set()),
        (Scales(Lossy(2)), {"pickle"}),
    ],
    ids=lambda value: repr(value) if isinstance(value, sml.Operator) else "",
)
def test_a_check_fails_where_its_rule_is_broken(operator: sml.Operator, failing: set[str]) -> None:
    found = set()
    for name, check in yield_checks(operator, SCRIPT, poison={}):
        try:
            check()
        except AssertionError:
            found.add(name)
    assert found == failing


def test_checks_apply_by_what_an_operator_has() -> None:
    def names(operator: sml.Operator, **more: Any) -> set[str]:
        return {name for name, _ in yield_checks(operator, SCRIPT, **more)}

    assert "pickle" not in names(Map(lambda e: {}))
    assert "poison" not in names(Dedupe())
    assert "batch_equals_loop" not in names(Sums())
    assert "ttl" not in names(NoExample())
    assert names(Dedupe("n"), poison={}) >= {"ttl", "batch_equals_loop", "poison", "pickle"}


def test_a_class_or_a_script_with_faults_is_refused() -> None:
    with pytest.raises(PlanError, match="build it first"):
        next(yield_checks(Dedupe, SCRIPT))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="the checks put them in"):
        next(yield_checks(Dedupe(), [*SCRIPT, crash()]))
