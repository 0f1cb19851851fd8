"""A row that makes an operator raise is rejected alone, and leaves no trace."""

from streamml.operators import Dedupe, Features, FlatMap, Map, count, total
from streamml.testing import Case, Expected, event, row
from streamml.testing.probes import Remember


def half(e):
    return {"half": 10 / e.x}


def letters(e):
    for letter in e.word:
        if letter == "!":
            raise ValueError("no shouting")
        yield {"letter": letter}


CASES = [
    Case(
        "a row that raises is rejected with its input, error and step",
        [Map(half)],
        [event("k", t="1s", x=2), event("k", t="2s", x=0), event("k", t="3s", y=1), event("k", t="4s", x=5)],
        Expected(
            [row(None, "1s", x=2, half=5.0), row(None, "4s", x=5, half=2.0)],
            {
                "rejected": [
                    {"id": "script/e1", "operator": "map", "error": "ZeroDivisionError", "event": {"x": 0}},
                    {"id": "script/e2", "operator": "map", "error": "AttributeError", "event": {"y": 1}},
                ]
            },
        ),
    ),
    Case(
        "what a row emitted before it raised is taken back",
        [FlatMap(letters)],
        [event("k", t="1s", word="ab"), event("k", t="2s", word="c!d"), event("k", t="3s", word="e")],
        Expected(
            [
                row(None, "1s", id="script/e0/flat_map/0", word="ab", letter="a"),
                row(None, "1s", id="script/e0/flat_map/1", word="ab", letter="b"),
                row(None, "3s", id="script/e2/flat_map/0", word="e", letter="e"),
            ],
            {"rejected": [{"id": "script/e1", "reason": "no shouting"}]},
        ),
    ),
    Case(
        "what a row wrote to its state before it raised is taken back",
        [Remember()],
        [
            event("k", t="1s", n=1),
            event("k", t="2s", n=2, poison=True),
            event("j", t="2s", n=2, poison=True),
            event("k", t="3s", n=3),
        ],
        Expected(
            [
                row("k", "1s", n=1, before=None, known=False, recent=[1], distinct=[1], table={"1": 1000}),
                row(
                    "k", "3s", n=3, before=1, known=False, recent=[1, 3], distinct=[1, 3], table={"1": 1000, "3": 3000}
                ),
            ],
            {"rejected": [{"key": "k", "id": "script/e1"}, {"key": "j", "id": "script/e2"}]},
        ),
    ),
    Case(
        "clearing is taken back too",
        [Remember()],
        [event("k", t="1s", n=1), event("k", t="2s", n=2, clear=True, poison=True), event("k", t="3s", n=1)],
        Expected(
            [
                row("k", "1s", n=1, before=None, known=False, recent=[1], distinct=[1], table={"1": 1000}),
                row("k", "3s", n=1, before=1, known=True, recent=[1, 1], distinct=[1], table={"1": 3000}),
            ],
            {"rejected": [{"key": "k", "id": "script/e1", "error": "ValueError"}]},
        ),
    ),
    Case(
        "a rejected row does not reach the operators after it, and those before it keep what they saw",
        [Dedupe("n"), Map(half), Features(fields={"rows": count(), "sum": total("x")})],
        [
            event("k", t="1s", n=1, x=1),
            event("k", t="2s", n=2, x=0),
            event("k", t="3s", n=2, x=2),
            event("k", t="4s", n=3, x=4),
        ],
        Expected(
            [row("k", "1s", n=1, x=1, half=10.0, rows=1, sum=1.0), row("k", "4s", n=3, x=4, half=2.5, rows=2, sum=5.0)],
            {"rejected": [{"key": "k", "id": "script/e1"}], "duplicates": [{"key": "k", "id": "script/e2"}]},
        ),
    ),
    Case(
        "a batch form rejects only the poison rows",
        [Features(fields={"rows": count(), "sum": total("x")})],
        [
            event("k", t="1s", x=1),
            event("k", t="2s", x=float("nan")),
            event("j", t="2s", x=float("inf")),
            event("k", t="3s", x="4"),
            event("k", t="4s"),
            event("k", t="5s", x=5),
            event("j", t="6s", x=10**400),
            event("j", t="7s", x=-1),
        ],
        Expected(
            [
                row("k", "1s", x=1, rows=1, sum=1.0),
                row("k", "5s", x=5, rows=2, sum=6.0),
                row("j", "7s", x=-1, rows=1, sum=-1.0),
            ],
            {
                "rejected": [
                    {"key": "k", "id": "script/e1"},
                    {"key": "j", "id": "script/e2"},
                    {"key": "k", "id": "script/e3"},
                    {"key": "k", "id": "script/e4"},
                    {"key": "j", "id": "script/e6"},
                ]
            },
        ),
    ),
]
