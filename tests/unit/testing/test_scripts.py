"""The script language: what it refuses, and what a run of one gives."""

from __future__ import annotations

import re
from typing import Any

import pytest

import streamml as sml
from streamml.errors import PlanError, UnsupportedError
from streamml.operators import Dedupe, Features, Filter, Map, Window, count, tumbling
from streamml.testing import (
    Script,
    advance,
    checkpoint,
    crash,
    event,
    idle,
    processing_time,
    rescale,
    restart,
    run,
)
from streamml.testing.probes import Remember
from streamml.times import MIN_TIME


class VelocityRule(sml.KeyedOperator):
    """The operator of the guide."""

    limit: int = 5
    period: sml.Duration = "1m"

    seen = sml.ListState(int, ttl=lambda op: op.period)

    def on_event(self, event: Any, ctx: Any) -> None:
        self.seen.append(event.timestamp)
        ctx.emit(event.with_fields(burst=len(self.seen) > self.limit))


SCRIPT = [event("k", t="0s", x=1), event("k", t="1s", x=2), advance("10s"), crash(), event("k", t="11s", x=3)]


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
def test_the_example_of_the_guide(store: str) -> None:
    result = run([VelocityRule(limit=2)], SCRIPT, engine="local", store=store)
    assert result.main == [{"x": 1, "burst": False}, {"x": 2, "burst": False}, {"x": 3, "burst": True}]
    assert result.side("late") == []
    assert result.figures["crashes"] == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [advance("5s"), advance("4s")],
            "script, step 1: the watermark must not fall; it stands at 5s, got advance('4s')",
        ),
        (
            [processing_time("5s"), idle("1s"), processing_time("5s")],
            "script, step 2: the wall clock must not fall; it stands at 6s",
        ),
        ([event("k"), crash], "script, step 1: wanted event(...), advance(...), crash() and so on"),
        ([crash], "Did you forget to call crash?"),
        ([("k", 1)], "Write event(...)."),
        ([event("k", source="")], "script, step 0: source= wants the tag of a source, got ''"),
        ([rescale(0)], "script, step 0: rescale wants at least 1 worker, got 0"),
    ],
)
def test_a_script_that_makes_no_sense_is_refused_when_it_is_built(steps: list[Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        Script(steps)


def test_a_time_without_a_unit_or_far_outside_is_refused() -> None:
    with pytest.raises(PlanError, match=re.escape("event, t=: wanted a duration such as '5s'")):
        event("k", t="5")
    with pytest.raises(PlanError, match=re.escape("advance: wanted a time between the years 1 and 9999")):
        advance(2**62)


def test_events_are_numbered_in_order_and_may_bring_their_own_ids() -> None:
    script = Script([event("a"), advance("1s"), event("a", id="mine"), event("a")])
    assert [step.id for step in script.events] == ["e0", "mine", "e2"]


def test_a_step_prints_as_the_call_that_builds_it() -> None:
    steps = [
        event("k", t=-1, source="s", n=[1]),
        advance("90s"),
        processing_time(5),
        idle("1s"),
        checkpoint(),
        crash(),
        restart(),
        rescale(2),
    ]
    assert eval(repr(Script(steps))) == Script(steps).steps


def test_the_input_ends_after_the_script_unless_it_is_left_open() -> None:
    script = [event("k", t="1s")]
    per_minute = Window(tumbling("1m"), {"n": count()})
    assert [r.n for r in run([per_minute], script).main] == [1]
    assert run([per_minute], script, end=False).main == []


def test_state_and_watermark_are_as_of_the_last_step() -> None:
    result = run([Remember(ttl="10s")], [event("k", t="1s", n=7), event("j", t="1s", n=8), advance("5s")])
    assert result.watermark == 5000
    assert result.state("k") == {
        "remember.latest": 7,
        "remember.recent": [7],
        "remember.distinct": [7],
        "remember.table": {"7": 1000},
    }
    assert result.state("nobody")["remember.latest"] is None
    assert run([Remember()], [event("k", n=1)]).watermark == MIN_TIME


def test_state_of_all_operators_of_a_chain_is_named_by_operator() -> None:
    assert run([Dedupe("n"), Remember()], [event("k", n=1)]).state("k").keys() >= {"dedupe.seen", "remember.recent"}


def test_expired_state_is_not_shown() -> None:
    assert run([Remember(ttl="1s")], [event("k", t="1s", n=7), advance("2s")]).state("k")["remember.recent"] == []


def test_output_is_copied_when_it_is_written() -> None:
    kept: list[Any] = []

    def keep(e: Any) -> bool:
        kept.append(e)
        return True

    result = run([Filter(keep)], [event("k", x=[1])])
    kept[0].value["x"].append(2)
    assert result.main == [{"x": [1]}]


def test_a_script_may_be_run_again_whatever_an_operator_does_to_its_events() -> None:
    def spoil(e: Any) -> dict[str, int]:
        e.value["x"].append(2)
        return {"n": len(e.value["x"])}

    script = [event("k", x=[1])]
    assert [run([Map(spoil)], script).main[0].n for _ in range(2)] == [2, 2]


def test_what_was_written_before_a_crash_is_there_once_wherever_the_checkpoint_was() -> None:
    for every in range(6):
        steps = [event("k", t=i, n=i) for i in range(5)]
        for cut in range(1, 6):
            result = run([Remember()], [*steps[:cut], crash(), *steps[cut:]], checkpoint_every=every)
            assert [record.n for record in result.main] == [0, 1, 2, 3, 4]


def test_a_script_with_a_crash_and_no_checkpoint_takes_some_by_itself() -> None:
    steps = [event("k", t=i) for i in range(5)]
    assert run([Dedupe()], [*steps, crash()]).figures["checkpoints"] == 2
    assert run([Dedupe()], [*steps, checkpoint(), crash()]).figures["checkpoints"] == 1
    assert run([Dedupe()], [*steps, crash()], checkpoint_every=0).figures["checkpoints"] == 0
    assert run([Dedupe()], steps).figures["checkpoints"] == 0


def test_a_crash_really_kills_the_running_operators() -> None:
    opened: list[int] = []

    class Counts(sml.Operator):
        def open(self, opening: Any) -> None:
            opened.append(0)

        def on_event(self, event: Any, ctx: Any) -> None:
            opened[-1] += 1
            ctx.emit(event)

    result = run([Counts()], [event("k"), event("k"), crash(), event("k"), restart(), event("k")], checkpoint_every=0)
    assert (opened, len(result.main)) == ([2, 3, 1], 4)


def test_an_unkeyed_chain_has_no_keys_and_a_keyed_one_has_the_scripts() -> None:
    assert run([Filter(bool)], [event("k")]).main[0].key is None
    assert run([Dedupe()], [event("k")]).main[0].key == "k"


def test_a_pipeline_gets_the_events_as_its_schema_wants_them() -> None:
    class Payment(sml.Event, id="tx", key="card", time="at", time_unit="s"):
        tx: str
        card: str
        amount: float
        at: float

    pipeline = (
        sml.Pipeline("pay", schema=Payment).key_by("card").then(Features(fields={"n": count()})).select("amount", "n")
    )
    result = run(
        pipeline,
        [event("c", t="1500ms", amount=2), event("c", t="2s", amount="?"), event("c", t="3s", id="z", amount=1)],
    )
    assert result.main == [{"amount": 2.0, "n": 1}, {"amount": 1.0, "n": 2}]
    assert [(r.key, r.timestamp, r.id) for r in result.main] == [("c", 1500, "pay/e0"), ("c", 3000, "pay/z")]
    assert result.side("rejected")[0]["reason"] == "Expected `float`, got `str` - at `$.amount`"
    with pytest.raises(PlanError, match="Did you mean 'pay'"):
        run(pipeline, [event("c", source="pays")])


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    script = [event("k", n=1)]
    result = run([Dedupe("n")], script)
    with pytest.raises(PlanError, match="Did you mean 'duplicates'"):
        result.side("duplicate")
    with pytest.raises(PlanError, match=re.escape("run, engine=: there is no engine 'loco'. Did you mean 'local'?")):
        run([Dedupe("n")], script, engine="loco")
    with pytest.raises(PlanError, match=re.escape("run: there is no option 'batchsize'. Did you mean 'batch_size'?")):
        run([Dedupe("n")], script, batchsize=1)
    with pytest.raises(PlanError, match=re.escape("run, store=: there is no store 'disk'")):
        run([Dedupe("n")], script, store="disk")
    with pytest.raises(PlanError, match=re.escape("watermarks='pipeline'")):
        run([Dedupe("n")], [advance("1s")], watermarks="pipeline")


def test_what_an_engine_can_not_do_is_said() -> None:
    with pytest.raises(
        UnsupportedError,
        match=re.escape("engine 'local', case 'script': it can't do RESCALE; engines that can: "),
    ):
        run([Dedupe()], [event("k"), rescale(2)])
    with pytest.raises(UnsupportedError, match="one worker"):
        run([Dedupe()], [event("k")], workers=2)
