"""Several sources into one keyed stage, told apart by their tag."""

from streamml.operators import Map
from streamml.testing import Case, Expected, advance, event, row
from streamml.testing.probes import Judge, Remember


def origin(e):
    return {"origin": e.tag}


CASES = [
    Case(
        "events of several sources meet under one key, in order",
        [Remember(), Map(origin)],
        [
            event("k", t="1s", source="clicks", n=1),
            event("k", t="2s", source="orders", n=2),
            event("k", t="3s", source="clicks", n=3),
        ],
        Expected(
            [
                row(
                    "k",
                    "1s",
                    n=1,
                    before=None,
                    known=False,
                    recent=[1],
                    distinct=[1],
                    table={"1": 1000},
                    origin="clicks",
                ),
                row(
                    "k",
                    "2s",
                    n=2,
                    before=1,
                    known=False,
                    recent=[1, 2],
                    distinct=[1, 2],
                    table={"1": 1000, "2": 2000},
                    origin="orders",
                ),
                row(
                    "k",
                    "3s",
                    n=3,
                    before=2,
                    known=False,
                    recent=[1, 2, 3],
                    distinct=[1, 2, 3],
                    table={"1": 1000, "2": 2000, "3": 3000},
                    origin="clicks",
                ),
            ]
        ),
    ),
    Case(
        "one watermark holds for all sources",
        [Judge()],
        [event("k", t="9s", source="a"), advance("5s"), event("k", t="4s", source="b"), event("k", t="4s", source="a")],
        Expected(
            [row("k", "9s", watermark=-(2**62))],
            {"late": [{"key": "k", "id": "script/e1"}, {"key": "k", "id": "script/e2"}]},
        ),
    ),
]
