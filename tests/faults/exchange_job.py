"""Pipelines that change their key, and what they write by the key of the stage that wrote it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import workers_job
from workers_job import Payment

import streamml as sml
from streamml.local.share import Share
from streamml.operators import Dedupe, Features, FlatMap, Window, count, maximum, session, total, trailing, tumbling
from streamml.state.workers import WorkerFolders

make, build, run_all, change = workers_job.make, workers_job.build, workers_job.run_all, workers_job.change


def shops() -> sml.Pipeline:
    """Sums of floats by card, then by merchant, for each event: any other order would show in the last bits."""
    recent = {"n": count(), "sum": total("amount"), "max": maximum("amount")}
    return (
        sml.Pipeline("shops", schema=Payment, out_of_orderness="1s")
        .key_by("card_id")
        .then(Dedupe(ttl="1h"))
        .then(Features(trailing("2s", tile="100ms"), recent))
        .key_by(merchant_of)
        .then(Features(trailing("5s", tile="100ms"), {"shop_n": count(), "shop_sum": total("sum")}, name="shop"))
    )


def merchant_of(event: Any) -> int:
    """The key of the second stage; some events have none."""
    if event.merchant % 97 == 0:
        msg = "a merchant that nobody knows"
        raise ValueError(msg)
    return int(event.merchant) % 50


def countries() -> sml.Pipeline:
    """Windows over windows: timers, corrections and early results go through two exchanges."""
    return (
        sml.Pipeline("countries", schema=Payment, out_of_orderness="500ms")
        .key_by("card_id")
        .then(Dedupe(ttl="10s"))
        .key_by(lambda event: (event.country, event.merchant % 5))
        .then(
            Window(
                session("300ms"),
                {"n": count(), "sum": total("amount"), "country": maximum("country")},
                allowed_lateness="1s",
                early="200ms",
                name="first",
            )
        )
        .key_by(lambda event: f"c{int(event.country) % 20}")
        .then(FlatMap(lambda event: [{"sum": event.sum, "part": part} for part in (0, 1)], name="parts"))
        .then(
            Window(
                tumbling("100ms"),
                {"windows": count(), "sums": total("sum"), "p": maximum("part")},
                allowed_lateness="1s",
                name="second",
            )
        )
    )


def ties() -> sml.Pipeline:
    """Windows of all keys end at the same time; what sums them up shows in which order they came."""
    return (
        sml.Pipeline("ties", schema=Payment, out_of_orderness="500ms")
        .key_by("card_id")
        .then(Dedupe(ttl="10s"))
        .then(Window(tumbling("200ms"), {"n": count(), "sum": total("amount")}, allowed_lateness="1s"))
        .key_by(lambda window: (window.n or 0) % 4)
        .then(Features(trailing("5s", tile="100ms"), {"running": total("sum"), "number": count()}))
    )


workers_job.PIPELINES |= {"shops": shops, "countries": countries, "ties": ties}


def results(folder: Path) -> dict[tuple[str, str, str], list[str]]:
    """Return what was written, by output, step and key, in the order in which it was written."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path in sorted(folder.glob("out*.jsonl"), key=lambda path: (".g0" in path.name, path.name)):
        output = path.name.partition(".g0")[0].removesuffix(".jsonl")
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if output != "out":
                key = str(record.get("key"))
            elif "merchant" in record:
                key = str(record["merchant"] % 50)
            elif "running" in record:
                key = str((record["n"] or 0) % 4)
            else:
                key = record["id"].split("/")[2]
            found[output, str(record.get("operator")), key].append(line)
    return dict(found)


def main() -> None:
    """For each request fork a process that runs one worker and is killed at a step; say how it ended.

    This process itself never opens a store, so it can be forked.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _run_worker(**request)
            finally:
                os._exit(code)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _run_worker(die_at: int | None, folder: str, share: list[int], in_vain: bool, **job: Any) -> int:
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    mine = Share(*share)
    home = WorkerFolders(Path(folder) / "state", mine.count, mine.generation, mine.segments).home
    if in_vain:
        workers_job._wait_in_vain(folder=Path(folder), share=mine, home=home, on_step=step, **job)
    else:
        build(folder=Path(folder), share=mine, on_step=step, **job).run()
    return 0


if __name__ == "__main__":
    main()
