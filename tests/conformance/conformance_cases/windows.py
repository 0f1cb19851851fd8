"""Features, sessions and windows at their edges."""

from streamml.operators import Features, Session, Window, count, since_last, sliding, total, trailing, tumbling
from streamml.testing import Case, Expected, advance, event, row


def result(key, start, end, revision=0, **fields):
    return row(
        key,
        end - 1,
        window_start=start,
        window_end=end,
        revision=revision,
        replaces=revision - 1 if revision else None,
        retracted=False,
        early=fields.pop("early", False),
        **fields,
    )


CASES = [
    Case(
        "an event sees what arrived before it, in tiles that are not after its own",
        [Features(trailing("10s", tile="1s"), {"n": count(), "sum": total("x")}, allowed_lateness="1m")],
        [
            event("k", t="5s", x=1),
            event("k", t="9s", x=2),
            event("k", t="5999ms", x=4),
            event("k", t="14999ms", x=8),
            event("k", t="15s", x=16),
        ],
        Expected(
            [
                row("k", "5s", x=1, n=1, sum=1.0),
                row("k", "9s", x=2, n=2, sum=3.0),
                row("k", "5999ms", x=4, n=2, sum=5.0),
                row("k", "14999ms", x=8, n=4, sum=15.0),
                row("k", "15s", x=16, n=3, sum=26.0),
            ]
        ),
    ),
    Case(
        "a late event is not counted, one within the allowed lateness is",
        [Features(tumbling("10s"), {"n": count()}, allowed_lateness="2s")],
        [
            event("k", t="1s"),
            advance("9s"),
            event("k", t="7s"),
            event("k", t="6999ms"),
            event("k", t="9s"),
            event("k", t="10s"),
        ],
        Expected(
            [row("k", "1s", n=1), row("k", "7s", n=2), row("k", "9s", n=3), row("k", "10s", n=1)],
            {"late": [{"key": "k", "id": "script/e2", "late_by_ms": 2001}]},
        ),
    ),
    Case(
        "events less than a gap apart are one session, and one that closes a gap joins two",
        [Session(gap="10s", fields={"n": count(), "idle": since_last()})],
        [
            event("k", t="0s"),
            event("k", t="9999ms"),
            event("k", t="19999ms"),
            event("k", t="29998ms"),
            event("k", t="15s"),
            event("j", t="0s"),
        ],
        Expected(
            [
                row("k", "0s", n=1, idle=-1.0),
                row("k", "9999ms", n=2, idle=9999.0),
                row("k", "19999ms", n=1, idle=-1.0),
                row("k", "29998ms", n=2, idle=9999.0),
                row("k", "15s", n=5, idle=0.0),
                row("j", "0s", n=1, idle=-1.0),
            ]
        ),
    ),
    Case(
        "a window gives its result when the watermark reaches its end",
        [Window(tumbling("10s"), {"n": count()})],
        [
            event("k", t="0s"),
            event("k", t="9999ms"),
            event("k", t="10s"),
            advance("9999ms"),
            event("k", t="5s"),
            advance("10s"),
            event("k", t="9s"),
            event("k", t="11s"),
        ],
        Expected(
            [result("k", 0, 10_000, n=3), result("k", 10_000, 20_000, n=2)],
            {"late": [{"key": "k", "id": "script/e4"}]},
        ),
    ),
    Case(
        "an event within the allowed lateness corrects its window",
        [Window(tumbling("10s"), {"n": count()}, allowed_lateness="5s")],
        [
            event("k", t="1s"),
            advance("10s"),
            event("k", t="2s"),
            advance("14999ms"),
            event("k", t="3s"),
            advance("15s"),
            event("k", t="4s"),
        ],
        Expected(
            [result("k", 0, 10_000, n=1), result("k", 0, 10_000, 1, n=2), result("k", 0, 10_000, 2, n=3)],
            {
                "corrections": [
                    {"key": "k", "id": "script/window/k/0-10000", "revision": 1, "replaces": 0, "reason": "late event"},
                    {"key": "k", "revision": 2, "replaces": 1},
                ],
                "late": [{"key": "k", "id": "script/e3", "allowed_lateness_ms": 5000}],
            },
        ),
    ),
    Case(
        "an event counts in every sliding window that holds it",
        [Window(sliding("10s", slide="5s"), {"n": count()})],
        [event("k", t="7s"), event("k", t="12s"), advance("30s")],
        Expected([result("k", 0, 10_000, n=1), result("k", 5_000, 15_000, n=2), result("k", 10_000, 20_000, n=1)]),
    ),
    Case(
        "an open window says early what it holds, if that has changed",
        [Window(tumbling("10s"), {"n": count()}, early="2s")],
        [event("k", t="1s"), advance("2s"), event("k", t="3s"), advance("8s"), event("k", t="9s"), advance("10s")],
        Expected(
            [
                result("k", 0, 10_000, n=1, early=True),
                result("k", 0, 10_000, 1, n=2, early=True),
                result("k", 0, 10_000, 2, n=3),
            ],
            {
                "corrections": [
                    {"key": "k", "revision": 1, "reason": "early"},
                    {"key": "k", "revision": 2, "reason": "early"},
                ]
            },
        ),
    ),
]
