"""The wall clock: processing-time timers, and that nothing else follows it."""

from streamml.testing import Case, Expected, advance, event, idle, processing_time, row
from streamml.testing.probes import Judge, Remember, WallAlarm

CASES = [
    Case(
        "a processing-time timer fires when the clock reaches it",
        [WallAlarm(delay="5s")],
        [event("k", t="1h"), idle("4999ms"), event("k", t="1s"), processing_time("5s"), event("k", t="1s"), idle("1m")],
        Expected(
            [
                row("k", 5000, id="k@5000", events=2),
                row("k", 9999, id="k@9999", events=3),
                row("k", 10000, id="k@10000", events=3),
            ]
        ),
    ),
    Case(
        "a processing-time timer does not fire by event time, nor at the end of the input",
        [WallAlarm(delay="5s")],
        [event("k", t="1s"), advance("1h"), event("j", t="2h")],
        Expected([]),
    ),
    Case(
        "silence moves no watermark that a script dictates",
        [Judge()],
        [event("k", t="5s"), advance("5s"), idle("1h"), event("k", t="5s")],
        Expected([row("k", "5s", watermark=-(2**62)), row("k", "5s", watermark=5000)]),
    ),
    Case(
        "an event-time TTL does not follow the clock",
        [Remember(ttl="10s")],
        [event("k", t="1s", n=1), idle("1h"), event("k", t="2s", n=2)],
        Expected(
            [
                row("k", "1s", n=1, before=None, known=False, recent=[1], distinct=[1], table={"1": 1000}),
                row(
                    "k", "2s", n=2, before=1, known=False, recent=[1, 2], distinct=[1, 2], table={"1": 1000, "2": 2000}
                ),
            ]
        ),
    ),
]
