"""State with a TTL: what was written at t is gone once the watermark is at or past t + ttl."""

from streamml.testing import Case, Expected, advance, checkpoint, event, restart, row
from streamml.testing.probes import Remember


def seen(key, t, n, before, known, recent, distinct, table):
    return row(key, t, n=n, before=before, known=known, recent=recent, distinct=distinct, table=table)


FIRST = seen("k", "1s", 1, None, False, [1], [1], {"1": 1000})

CASES = [
    Case(
        "state without a TTL is kept for ever",
        [Remember()],
        [event("k", t="1s", n=1), advance("1000d"), event("k", t="1000d", n=2)],
        Expected([FIRST, seen("k", "1000d", 2, 1, False, [1, 2], [1, 2], {"1": 1000, "2": 86_400_000_000})]),
    ),
    Case(
        "an entry lives until the watermark is its ttl past the event's time",
        [Remember(ttl="10s")],
        [event("k", t="1s", n=1), advance("10999ms"), event("k", t="11s", n=1)],
        Expected([FIRST, seen("k", "11s", 1, 1, True, [1, 1], [1], {"1": 11000})]),
    ),
    Case(
        "an entry is gone when the watermark is its ttl past the event's time",
        [Remember(ttl="10s")],
        [event("k", t="1s", n=1), advance("11s"), event("k", t="11s", n=1)],
        Expected([FIRST, seen("k", "11s", 1, None, False, [1], [1], {"1": 11000})]),
    ),
    Case(
        "each element of a list, a set and a map expires by itself",
        [Remember(ttl="10s")],
        [event("k", t="1s", n=1), event("k", t="5s", n=5), advance("12s"), event("k", t="12s", n=12)],
        Expected(
            [
                FIRST,
                seen("k", "5s", 5, 1, False, [1, 5], [1, 5], {"1": 1000, "5": 5000}),
                seen("k", "12s", 12, 5, False, [5, 12], [5, 12], {"12": 12000, "5": 5000}),
            ]
        ),
    ),
    Case(
        "a TTL counts from the event's time, not from its arrival",
        [Remember(ttl="10s")],
        [event("k", t="8s", n=8), event("k", t="1s", n=1), advance("11s"), event("k", t="12s", n=2)],
        Expected(
            [
                seen("k", "8s", 8, None, False, [8], [8], {"8": 8000}),
                seen("k", "1s", 1, 8, False, [8, 1], [1, 8], {"1": 1000, "8": 8000}),
                seen("k", "12s", 2, None, False, [8, 2], [2, 8], {"2": 12000, "8": 8000}),
            ]
        ),
    ),
    Case(
        "what an event writes is gone at once if the watermark is past its ttl already",
        [Remember(ttl="10s")],
        [advance("100s"), event("k", t="1s", n=1), event("k", t="100s", n=2)],
        Expected(
            [
                seen("k", "1s", 1, None, False, [], [], {}),
                seen("k", "100s", 2, None, False, [2], [2], {"2": 100000}),
            ]
        ),
    ),
    Case(
        "a TTL goes on after a restart",
        [Remember(ttl="10s")],
        [event("k", t="1s", n=1), checkpoint(), restart(), advance("11s"), event("k", t="11s", n=1)],
        Expected([FIRST, seen("k", "11s", 1, None, False, [1], [1], {"1": 11000})]),
    ),
    Case(
        "keys have states of their own, and clearing clears one",
        [Remember()],
        [event("k", t="1s", n=1), event("j", t="1s", n=1), event("k", t="2s", clear=True), event("k", t="3s", n=3)],
        Expected(
            [
                FIRST,
                seen("j", "1s", 1, None, False, [1], [1], {"1": 1000}),
                row("k", "2s", clear=True, before=1, known=False, recent=[], distinct=[1], table={}),
                seen("k", "3s", 3, None, False, [3], [1, 3], {"3": 3000}),
            ]
        ),
    ),
    Case(
        "a state does not need a watermark",
        [Remember(ttl="1s")],
        [event("k", t="1s", n=1), event("k", t="1h", n=2)],
        Expected([FIRST, seen("k", "1h", 2, 1, False, [1, 2], [1, 2], {"1": 1000, "2": 3_600_000})]),
    ),
]
