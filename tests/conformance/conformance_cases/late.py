"""Which events are late: those with timestamp < watermark - allowed lateness, by the watermark when they arrive."""

from streamml.testing import Case, Expected, advance, event, row
from streamml.testing.probes import Judge
from streamml.times import MIN_TIME

CASES = [
    Case(
        "nothing is late before the first watermark",
        [Judge()],
        [event("k", t="10s"), event("k", t="1s")],
        Expected([row("k", "10s", watermark=MIN_TIME), row("k", "1s", watermark=MIN_TIME)]),
    ),
    Case(
        "an event older than the watermark is late, one as old is not",
        [Judge()],
        [advance("5s"), event("k", t="4999ms"), event("k", t="5s")],
        Expected(
            [row("k", "5s", id="script/e1", watermark=5000)],
            {"late": [{"id": "script/e0", "key": "k", "timestamp": 4999, "operator": "judge", "late_by_ms": 1}]},
        ),
    ),
    Case(
        "allowed lateness moves the limit",
        [Judge(allowed_lateness="2s")],
        [advance("5s"), event("k", t="3s"), event("k", t="2999ms")],
        Expected(
            [row("k", "3s", watermark=5000)],
            {
                "late": [
                    {"id": "script/e1", "key": "k", "late_by_ms": 2001, "watermark": 5000, "allowed_lateness_ms": 2000}
                ]
            },
        ),
    ),
    Case(
        "what is late is judged by the watermark before the row, not by the batch's last one",
        [Judge()],
        [event("k", t="3s"), advance("4s"), event("k", t="4s"), event("k", t="3s"), advance("9s"), event("j", t="8s")],
        Expected(
            [row("k", "3s", watermark=MIN_TIME), row("k", "4s", watermark=4000)],
            {
                "late": [
                    {"id": "script/e2", "key": "k", "watermark": 4000, "late_by_ms": 1000},
                    {"id": "script/e3", "key": "j", "watermark": 9000, "late_by_ms": 1000},
                ]
            },
        ),
    ),
    Case(
        "a late event keeps its fields",
        [Judge()],
        [advance("1h"), event("k", t=0, n=7, words=["a", "b"])],
        Expected([], {"late": [{"key": "k", "event": {"n": 7, "words": ["a", "b"]}}]}),
    ),
    Case(
        "each operator of a chain judges for itself",
        [Judge(allowed_lateness="5s", name="generous"), Judge(name="strict")],
        [advance("5s"), event("k", t="2s"), event("k", t="6s"), event("k", t=-1)],
        Expected(
            [row("k", "6s", watermark=5000)],
            {
                "late": [
                    {"key": "k", "id": "script/e0", "operator": "strict"},
                    {"key": "k", "id": "script/e2", "operator": "generous"},
                ]
            },
        ),
    ),
    Case(
        "times before 1970 are ordinary",
        [Judge()],
        [advance(-5000), event("k", t=-5000), event("k", t=-5001)],
        Expected([row("k", -5000, watermark=-5000)], {"late": [{"key": "k", "timestamp": -5001}]}),
    ),
]
