"""`Dedupe` over time."""

from streamml.operators import Dedupe
from streamml.testing import Case, Expected, advance, event, row

CASES = [
    Case(
        "an id passes once, within its key",
        [Dedupe("n")],
        [event("k", t="1s", n=1), event("k", t="2s", n=1), event("j", t="3s", n=1), event("k", t="4s", n=2)],
        Expected(
            [row("k", "1s", n=1), row("j", "3s", n=1), row("k", "4s", n=2)],
            {"duplicates": [{"key": "k", "id": "script/e1", "operator": "dedupe"}]},
        ),
    ),
    Case(
        "without a field the record's id counts",
        [Dedupe()],
        [event("k", t="1s", id="a"), event("k", t="2s", id="b"), event("k", t="3s", id="a")],
        Expected(
            [row("k", "1s", id="script/a"), row("k", "2s", id="script/b")],
            {"duplicates": [{"key": "k", "id": "script/a", "timestamp": 3000}]},
        ),
    ),
    Case(
        "an id is forgotten when its ttl is over and an older event is late",
        [Dedupe("n", ttl="10s")],
        [
            event("k", t="1s", n=1),
            advance("10999ms"),
            event("k", t="2s", n=1),
            advance("11s"),
            event("k", t="11s", n=1),
            event("k", t="1s", n=5),
            event("k", t="1001ms", n=5),
        ],
        Expected(
            [row("k", "1s", n=1), row("k", "11s", n=1), row("k", "1001ms", n=5)],
            {
                "duplicates": [{"key": "k", "id": "script/e1"}],
                "late": [{"key": "k", "id": "script/e3", "late_by_ms": 10_000, "allowed_lateness_ms": 10_000}],
            },
        ),
    ),
    Case(
        "a duplicate does not make an id live longer",
        [Dedupe("n", ttl="10s")],
        [event("k", t="1s", n=1), event("k", t="9s", n=1), advance("11s"), event("k", t="12s", n=1)],
        Expected([row("k", "1s", n=1), row("k", "12s", n=1)], {"duplicates": [{"key": "k", "timestamp": 9000}]}),
    ),
    Case(
        "ids of several types are told apart by their text",
        [Dedupe("n")],
        [event("k", t=0, n=1), event("k", t=0, n="1"), event("k", t=0, n=None), event("k", t=0, n=1.5)],
        Expected([row("k", 0, n=1), row("k", 0, n=None), row("k", 0, n=1.5)], {"duplicates": [{"key": "k"}]}),
    ),
]
