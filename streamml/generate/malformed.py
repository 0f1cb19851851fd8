"""The ways in which a payment can be broken, each as the line that a careless producer would send."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MALFORMED", "YEAR_2100"]

YEAR_2100 = 4_102_444_800_000
"""Milliseconds at 2100-01-01T00:00Z: a clock that is far ahead, which a watermark must not follow."""

MALFORMED: dict[str, Callable[[str, str, float, int], str]] = {
    "broken_json": lambda tx, card, amount, ts: f'{{"tx_id":"{tx}","card_id":"{card}","amount":{amount},"mer',
    "missing_field": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":"{card}","merchant":1,"country":1,"ts":{ts}}}'
    ),
    "wrong_type": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":"{card}","amount":"{amount} EUR","merchant":1,"country":1,"ts":{ts}}}'
    ),
    "null_key": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":null,"amount":{amount},"merchant":1,"country":1,"ts":{ts}}}'
    ),
    "huge_integer": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":"{card}","amount":{amount},"merchant":1,"country":1,"ts":{ts * 10**27}}}'
    ),
    "year_2100": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":"{card}","amount":{amount},"merchant":1,"country":1,"ts":{YEAR_2100}}}'
    ),
    "empty_line": lambda tx, card, amount, ts: "",
    "nesting": lambda tx, card, amount, ts: (
        f'{{"tx_id":"{tx}","card_id":"{card}","amount":{{"value":{amount},"unit":["EUR"]}},'
        f'"merchant":1,"country":1,"ts":{ts}}}'
    ),
}
"""Makers by kind: (tx_id, card_id, amount, ts) to a line. All break the schema or, as `huge_integer`, the range of
time; only `year_2100` can be decoded and used."""
