"""`kill -9` at random moments and between every two steps of a commit: the outputs are those of an undisturbed run."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 20


def under_way(run: Any, job: Any) -> bool:
    """Whether the process ended inside a checkpoint: after its first step and before its last one."""
    return "engine: state flushed" in run.steps and run.steps[-1] != job.steps[-1]


def test_w_killed_at_twenty_random_moments_loses_doubles_and_changes_no_record(
    nursery: Any, w: Any, tmp_path: Path
) -> None:
    rng = random.Random(20)
    request = w.request(tmp_path / "run")
    killed = resumed = inside = 0
    for number, target in enumerate(sorted(rng.uniform(0.02, 0.95) * w.events for _ in range(KILLS))):
        run = nursery.start(**request)
        if number % 5 == 4:  # while it starts: restoring state, finishing the commit
            time.sleep(rng.uniform(0, 0.15))
        else:
            wait_for_step = number % 5 == 3
            for line in run:
                if line.startswith("at ") and int(line[3:]) >= target:
                    target = 0  # then wait for the checkpoint, if that is to be hit
                    if not wait_for_step:
                        break
                elif wait_for_step and target == 0 and line == "step engine: state flushed":
                    break
            time.sleep(rng.uniform(0, 0.02))
        run.kill()
        assert run.code == -9, f"kill {number} came too late: the job had ended"
        killed += 1
        resumed += any(line.startswith("open ") and line != "open 0" for line in run.lines)
        inside += under_way(run, w)
    last = nursery.run(**request)
    assert last.end["finished"] and not last.end["problems"]
    w.check(tmp_path / "run")
    assert killed == KILLS
    assert inside >= 2  # kills while a checkpoint was written
    assert resumed >= KILLS // 2  # restarts that went on from a checkpoint before they were killed again


def test_a_kill_between_any_two_steps_of_the_commit_protocol_changes_nothing(
    nursery: Any, small: Any, memory_path: Path
) -> None:
    """In the opening and the first checkpoint, and in one that has others before and after it."""
    rng = random.Random(2)
    ends = [number for number, step in enumerate(small.steps, 1) if step == small.steps[-1]]
    assert len(ends) > 4
    for number in (*range(1, ends[0] + 1), *range(ends[2] + 1, ends[3] + 1)):
        folder = memory_path / str(number)
        request = small.request(folder)
        run = nursery.run(**request, die_at=number)
        assert (run.code, run.steps) == (-9, small.steps[:number])
        if rng.random() < 0.2:  # and again in the recovery
            assert nursery.run(**request, die_at=rng.randint(1, 20)).code in (-9, 0)
        assert nursery.run(**request).end["finished"]
        small.check(folder)


def test_each_checkpoint_stores_state_then_prepares_then_stores_itself_then_commits(small: Any) -> None:
    first, last = "engine: state flushed", small.steps[-1]
    order = [first, "main: pending synced", "engine: main prepared", "engine: side.late prepared", "engine: begun"]
    order += ["engine: store written", "engine: manifest written", "engine: renamed", "engine: durable"]
    order += ["engine: checkpoint stored", "engine: main committed", "engine: side.late committed", last]
    seen = [step for step in small.steps if step in order]
    assert seen == order * (len(seen) // len(order))
    assert [b for a, b in itertools.pairwise(small.steps) if a == last] == [first] * (small.steps.count(last) - 1)
