"""Whole pipelines: schemas, re-keying, selected fields, and watermarks that the events move."""

import streamml as sml
from streamml.operators import Dedupe, Features, Map, Window, count, total, tumbling
from streamml.testing import Case, Expected, advance, event, idle, row
from streamml.testing.probes import Judge


class Payment(sml.Event, id="tx", key="card", time="ts"):
    tx: str
    card: str
    amount: float
    ts: int
    shop: str = ""


class Click(sml.Event, id="id", time="at", time_unit="s"):
    id: str
    user: str
    at: int


def paid(card, t, tx, amount, shop="", **more):
    time = row(card, t).timestamp
    return row(more.pop("key", card), time, id=f"pay/{tx}", tx=tx, card=card, amount=amount, ts=time, shop=shop, **more)


BASE = sml.Pipeline("pay", schema=Payment, out_of_orderness="5s", idleness="30s")
REKEYED = (
    BASE.key_by("card")
    .then(Dedupe("tx"))
    .then(Features(fields={"n_card": count()}))
    .key_by("shop")
    .then(Features(fields={"n_shop": count(), "sum_shop": total("amount")}, name="by_shop"))
)
BY_FUNCTION = BASE.key_by(lambda e: e.shop.split("/")[1]).then(Features(fields={"n": count()})).select("tx", "n")
TWO = (
    sml.Pipeline("two")
    .source("pay", Payment)
    .source("clicks", Click)
    .key_by(pay="card", clicks="user")
    .then(Features(fields={"n": count()}))
    .then(Map(lambda e: {"origin": e.tag}, adding=["origin"]))
    .select("n", "origin")
)

CASES = [
    Case(
        "a row is decoded by its schema, and one that breaks it is rejected with the field",
        BASE.key_by("card").then(Features(fields={"n": count()})),
        [
            event("c", t="1s", id="a", amount=1),
            event("c", t="2s", id="b"),
            event("c", t="3s", id="c", amount="x"),
            event("c", t="4s", id="d", amount=4, shop="s"),
        ],
        Expected(
            [paid("c", "1s", "a", 1.0, n=1), paid("c", "4s", "d", 4.0, "s", n=2)],
            {
                "rejected": [
                    {"key": None, "operator": "source.pay.decode", "offset": 1, "error": "ValidationError"},
                    {
                        "key": None,
                        "operator": "source.pay.decode",
                        "offset": 2,
                        "reason": "Expected `float`, got `str` - at `$.amount`",
                    },
                ]
            },
        ),
    ),
    Case(
        "a pipeline may change its key, and each stage has states of its own",
        REKEYED,
        [
            event("c", t="1s", id="a", amount=1, shop="s"),
            event("d", t="2s", id="b", amount=2, shop="s"),
            event("c", t="3s", id="a", amount=1, shop="s"),
            event("c", t="4s", id="c", amount=4, shop="s"),
            event("d", t="5s", id="d", amount=8, shop="z"),
        ],
        Expected(
            [
                paid("c", "1s", "a", 1.0, "s", key="s", n_card=1, n_shop=1, sum_shop=1.0),
                paid("d", "2s", "b", 2.0, "s", key="s", n_card=1, n_shop=2, sum_shop=3.0),
                paid("c", "4s", "c", 4.0, "s", key="s", n_card=2, n_shop=3, sum_shop=7.0),
                paid("d", "5s", "d", 8.0, "z", key="z", n_card=2, n_shop=1, sum_shop=8.0),
            ],
            {"duplicates": [{"key": "c", "id": "pay/a", "timestamp": 3000}]},
        ),
    ),
    Case(
        "a key function that raises rejects the row alone, and selected fields are all that comes out",
        BY_FUNCTION,
        [
            event("c", id="a", amount=1, shop="x/1"),
            event("c", id="b", amount=1, shop="x"),
            event("c", id="c", amount=1, shop="y/1"),
        ],
        Expected(
            [row("1", 0, id="pay/a", tx="a", n=1), row("1", 0, id="pay/c", tx="c", n=2)],
            {"rejected": [{"id": "pay/b", "operator": "key_by.stage1", "error": "IndexError"}]},
        ),
    ),
    Case(
        "sources of different schemas meet under keys of their own names",
        TWO,
        [
            event("u", t="1s", id="a", source="pay", amount=1),
            event("u", t="2s", id="b", source="clicks"),
            event("v", t="3s", id="c", source="clicks"),
            event("u", t="4s", id="d", source="pay", amount=1),
        ],
        Expected(
            [
                row("u", "1s", id="two/a", n=1, origin="pay"),
                row("u", "2s", id="two/b", n=2, origin="clicks"),
                row("v", "3s", id="two/c", n=1, origin="clicks"),
                row("u", "4s", id="two/d", n=3, origin="pay"),
            ]
        ),
    ),
    Case(
        "a window's results may be keyed and counted again",
        BASE.key_by("card")
        .then(Window(tumbling("10s"), {"n": count()}))
        .key_by(lambda e: e.n)
        .then(Features(fields={"cards": count()}))
        .select("cards", "window_end"),
        [
            event("c", t="1s", id="a", amount=1),
            event("d", t="2s", id="b", amount=1),
            advance("10s"),
            event("c", t="11s", id="c", amount=1),
            event("c", t="12s", id="d", amount=1),
        ],
        Expected(
            [
                row(1, 9_999, cards=1, window_end=10_000),
                row(1, 9_999, cards=2, window_end=10_000),
                row(2, 19_999, cards=1, window_end=20_000),
            ]
        ),
    ),
    Case(
        "events move the watermark by the bounded out-of-orderness",
        BASE.key_by("card").then(Judge()).select("watermark"),
        [
            event("c", t="9s", id="z", amount=1),
            event("c", t="10s", id="a", amount=1),
            event("c", t="4s", id="b", amount=1),
            event("c", t="5s", id="c", amount=1),
            event("c", t="20s", id="d", amount=1),
            event("c", t="14s", id="e", amount=1),
        ],
        Expected(
            [
                row("c", "9s", watermark=-(2**62)),
                row("c", "10s", watermark=-(2**62)),
                row("c", "5s", watermark=5000),
                row("c", "20s", watermark=5000),
            ],
            {
                "late": [
                    {"key": "c", "id": "pay/b", "late_by_ms": 1000},
                    {"key": "c", "id": "pay/e", "watermark": 15000},
                ]
            },
        ),
        watermarks="pipeline",
    ),
    Case(
        "one event with a broken clock makes no other late",
        sml.Pipeline("pay", schema=Payment, max_jump="1h", max_future="365000d")
        .key_by("card")
        .then(Judge())
        .select("watermark"),
        [
            event("c", t="500ms", id="z", amount=1),
            event("c", t="1s", id="a", amount=1),
            event("c", t="40000d", id="b", amount=1),
            event("c", t="2s", id="c", amount=1),
            event("c", t="3s", id="d", amount=1),
        ],
        Expected(
            [
                row("c", "500ms", watermark=-(2**62)),
                row("c", "1s", watermark=-(2**62)),
                row("c", "40000d", watermark=1000),
                row("c", "2s", watermark=1000),
                row("c", "3s", watermark=2000),
            ]
        ),
        watermarks="pipeline",
    ),
    Case(
        "an event too far in the future is rejected",
        BASE.key_by("card").then(Features(fields={"n": count()})).select("n"),
        [
            event("c", t="1s", id="a", amount=1),
            event("c", t="2d", id="b", amount=1),
            event("c", t="2s", id="c", amount=1),
        ],
        Expected(
            [row("c", "1s", n=1), row("c", "2s", n=2)],
            {"rejected": [{"key": None, "operator": "source.pay.check", "offset": 1}]},
        ),
        watermarks="pipeline",
    ),
    Case(
        "an idle stream still closes its windows",
        BASE.key_by("card").then(Window(tumbling("10s"), {"n": count()})).select("n", "window_end"),
        [
            event("c", t="1s", id="a", amount=1),
            event("c", t="2s", id="b", amount=1),
            idle("29s"),
            idle("1s"),
            event("c", t="3s", id="c", amount=1),
        ],
        Expected(
            [row("c", 9_999, n=2, window_end=10_000)], {"late": [{"key": "c", "id": "pay/c", "operator": "window"}]}
        ),
        end=False,
        watermarks="pipeline",
    ),
]
