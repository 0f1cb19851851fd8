"""Card payments with disorder, duplicates, late and broken records, drift, and fraud that a model can learn.

Line `i` depends on the options, the seed and `i`, not on how much is read or on the size of the blocks in which lines
are computed. They come in order of arrival, `rate` per second; the event time `ts` is the time of arrival minus the
delay of the payment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from streamml.errors import PlanError
from streamml.generate.cards import CardBook, mix64
from streamml.generate.malformed import MALFORMED
from streamml.times import Duration, to_millis

__all__ = ["PaymentOptions", "Payments", "Row", "labels", "payments", "payments_with_truth", "workload"]

_BLOCK = 8192
_DUPLICATE_WITHIN = 500  # a duplicate repeats one of so many payments before it
_SPREE = 0.6  # share of fraud that comes as a burst on one card; the rest is one large payment each
_SPREE_GAP = 6.0  # seconds between the payments of one burst
_SPREE_LENGTH = 8
_KINDS = tuple(MALFORMED)
_EXTRAS = ("}", *(f',"mcc":{mcc},"channel":"{c}"}}' for mcc in (5411, 5812, 5732, 4111) for c in ("pos", "web", "app")))
_DRAWS = 13  # uniform numbers per row, so that a row's numbers have a fixed place in the random stream

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class PaymentOptions(TypedDict, total=False):
    """Options of the generator; meanings and defaults are those of `Payments`."""

    cards: int
    zipf: float
    rate: float
    start_ms: int
    duplicates: float
    out_of_order: float
    max_disorder: Duration
    late: float
    late_by: Duration
    malformed: float
    fraud: float
    drift_at: float | None


class Row(NamedTuple):
    """A line and what the generator knows about it.

    Attributes:
        line: the record as bytes, without a line end.
        kind: `payment`, `out_of_order`, `late`, `duplicate`, or a kind of malformed record.
        tx_id: its transaction, also where the line has none.
        label: 1 for fraud, 0 for none, None for malformed records.
    """

    line: bytes
    kind: str
    tx_id: str
    label: int | None


class _Block(NamedTuple):
    lines: list[bytes]
    kinds: list[str]
    tx_ids: list[str]
    labels: list[int]  # -1: malformed


@dataclass(frozen=True)
class Payments:
    """A stream of payments; iterate over it for the lines.

    Attributes:
        events: number of lines, duplicates and malformed ones included.
        seed: another seed is another stream with other cards.
        cards: number of cards.
        zipf: exponent of the popularity of cards; 0 makes all equal.
        rate: lines per second of event time.
        start_ms: arrival of the first line, milliseconds since the epoch.
        duplicates: share of lines that repeat an earlier payment byte for byte.
        out_of_order: share of payments that arrive up to `max_disorder` late.
        max_disorder: delays are shorter than this, so that a watermark that trails by it drops nothing.
        late: share of payments that arrive `late_by` late.
        late_by: delay of a late payment.
        malformed: share of lines that are broken, each of the kinds in `streamml.generate.malformed`.
        fraud: share of payments that are fraud: bursts on one card, or amounts far above the card's own mean.
        drift_at: fraction of the stream after which amounts are 1.6 times as high and more payments are made abroad.

    >>> stream = Payments(3, seed=7)
    >>> list(stream) == list(Payments(1000, seed=7))[:3]
    True
    >>> b"fraud" in next(iter(stream))
    False
    """

    events: int
    seed: int = 7
    cards: int = 20_000
    zipf: float = 1.1
    rate: float = 1000.0
    start_ms: int = 1_767_225_600_000
    duplicates: float = 0.03
    out_of_order: float = 0.10
    max_disorder: Duration = "5s"
    late: float = 0.01
    late_by: Duration = "10m"
    malformed: float = 0.002
    fraud: float = 0.02
    drift_at: float | None = None

    def __post_init__(self) -> None:
        for name in ("duplicates", "out_of_order", "late", "malformed", "fraud", "drift_at"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                msg = f"payments: {name}: wanted a share between 0 and 1, got {share}"
                raise PlanError(msg)
        if self.duplicates + self.malformed > 1 or self.out_of_order + self.late > 1:
            msg = (
                "payments: wanted duplicates + malformed and out_of_order + late of at most 1 each, "
                f"got {self.duplicates + self.malformed} and {self.out_of_order + self.late}"
            )
            raise PlanError(msg)
        if self.events < 0 or self.seed < 0 or self.cards < 1 or self.rate <= 0:
            got = f"{self.events}, {self.seed}, {self.cards}, {self.rate}"
            msg = f"payments: wanted events and seed of at least 0, cards of at least 1 and a rate above 0; got {got}"
            raise PlanError(msg)
        to_millis(self.max_disorder, where="payments: max_disorder")
        to_millis(self.late_by, where="payments: late_by")

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks():
            yield from block.lines

    def rows(self) -> Iterator[Row]:
        """Iterate over the lines together with what they are; for tests and evaluation."""
        for lines, kinds, tx_ids, found in self._blocks():
            for line, kind, tx_id, label in zip(lines, kinds, tx_ids, found, strict=True):
                yield Row(line, kind, tx_id, None if label < 0 else label)

    def labels(self) -> dict[str, int]:
        """Return for each transaction that is not malformed whether it is fraud (1) or not (0)."""
        known: dict[str, int] = {}
        for block in self._blocks():
            known.update(zip(block.tx_ids, block.labels, strict=True))
        return {tx_id: label for tx_id, label in known.items() if label >= 0}

    @cached_property
    def _book(self) -> CardBook:
        return CardBook(self.seed, self.cards, self.zipf)

    def _blocks(self, size: int = _BLOCK) -> Iterator[_Block]:
        random = np.random.Generator(np.random.PCG64([self.seed, 1]))
        recent: list[tuple[bytes, str, int]] = []  # the latest payments, which duplicates repeat
        sprees = 0  # payments in bursts so far
        for start in range(0, self.events, size):
            draws = random.random((min(size, self.events - start), _DRAWS))
            index = np.arange(start, start + len(draws), dtype=np.int64)
            at, first = draws[:, 0], index == 0
            duplicate = (at < self.duplicates) & ~first
            malformed = ~first & (at >= self.duplicates) & (at < self.duplicates + self.malformed)
            payment = ~duplicate & ~malformed
            fraud = payment & (draws[:, 1] < self.fraud)
            spree = fraud & (draws[:, 2] < _SPREE)
            card = self._cards(draws, fraud, spree, np.cumsum(spree) + (sprees - 1))
            sprees += int(spree.sum())
            ts, kind = self._times(index, draws)
            lines = self._lines(index, draws, card, ts, fraud, spree)
            yield self._assemble(lines, kind, duplicate, malformed, fraud, draws, recent)

    def _cards(self, draws: Floats, fraud: npt.NDArray[np.bool_], spree: npt.NDArray[np.bool_], nth: Ints) -> Ints:
        """Return the card of each row: popular ones pay more often, but any card may be stolen."""
        card = self._book.popular(draws[:, 3])
        card[fraud] = (draws[fraud, 3] * self.cards).astype(np.int64)
        # Bursts run side by side on a ring of stolen cards, so that each card pays every few seconds at any rate.
        ring = max(1, round(self.rate * self.fraud * _SPREE * _SPREE_GAP))
        nth = nth[spree]
        stolen = nth // (ring * _SPREE_LENGTH) * ring + nth % ring
        card[spree] = (mix64(stolen, self.seed + 2) % np.uint64(self.cards)).astype(np.int64)
        return card

    def _times(self, index: Ints, draws: Floats) -> tuple[Ints, list[str]]:
        arrival = self.start_ms + ((index + draws[:, 4]) * (1000.0 / self.rate)).astype(np.int64)
        chance, disorder = draws[:, 5], to_millis(self.max_disorder)
        late = chance < self.late
        shuffled = ~late & (chance < self.late + self.out_of_order) & (disorder > 1)
        delay = 1 + (draws[:, 6] * (disorder - 1)).astype(np.int64)
        ts = arrival - np.where(late, to_millis(self.late_by), np.where(shuffled, delay, 0))
        names = ("payment", "out_of_order", "late")
        return ts, [names[code] for code in (late * 2 + shuffled * 1).tolist()]

    def _lines(
        self,
        index: Ints,
        draws: Floats,
        card: Ints,
        ts: Ints,
        fraud: npt.NDArray[np.bool_],
        spree: npt.NDArray[np.bool_],
    ) -> tuple[list[str], list[str], list[float], list[int], list[str]]:
        book = self._book
        drifted = np.zeros(len(index), bool) if self.drift_at is None else index >= self.drift_at * self.events
        amount = book.mean[card] * book.spread(draws[:, 7])
        amount *= np.where(spree, 1.5 + 2.5 * draws[:, 8], np.where(fraud, 6 + 14 * draws[:, 8], 1.0))
        amount = np.round(np.where(drifted, amount * 1.6, amount), 2)
        abroad = draws[:, 9] < np.where(fraud, 0.7, np.where(drifted, 0.25, 0.03))
        tx_ids = mix64(index, self.seed).astype(">u8").tobytes().hex()
        merchant = np.where(fraud, book.any_merchant(draws[:, 12]), book.merchant(card, draws[:, 8]))
        country = np.where(abroad, book.foreign(draws[:, 10]), book.country[card])
        extra = np.maximum(0, (draws[:, 11] * 2 - 1) * len(_EXTRAS)).astype(np.int64)
        ids = [tx_ids[i : i + 16] for i in range(0, 16 * len(index), 16)]
        names = [book.names[c] for c in card.tolist()]
        amounts, times = amount.tolist(), ts.tolist()
        columns = (merchant.tolist(), country.tolist(), times, extra.tolist())
        text = [
            f'{{"tx_id":"{i}","card_id":"{c}","amount":{a},"merchant":{m},"country":{k},"ts":{t}{_EXTRAS[x]}'
            for i, c, a, m, k, t, x in zip(ids, names, amounts, *columns, strict=True)
        ]
        return ids, names, amounts, times, text

    def _assemble(
        self,
        made: tuple[list[str], list[str], list[float], list[int], list[str]],
        kinds: list[str],
        duplicate: npt.NDArray[np.bool_],
        malformed: npt.NDArray[np.bool_],
        fraud: npt.NDArray[np.bool_],
        draws: Floats,
        recent: list[tuple[bytes, str, int]],
    ) -> _Block:
        """Put duplicates and malformed records into their places, and keep the payments that may be repeated later."""
        ids, names, amounts, times, text = made
        lines = "\n".join(text).encode().split(b"\n")
        found = fraud.astype(np.int64).tolist()
        for row in np.flatnonzero(malformed).tolist():
            kinds[row] = _KINDS[int(draws[row, 9] * len(_KINDS))]
            lines[row] = MALFORMED[kinds[row]](ids[row], names[row], amounts[row], times[row]).encode()
            found[row] = -1
        sources = np.flatnonzero(~duplicate & ~malformed)
        within = min(_DUPLICATE_WITHIN, max(1, int(self.rate)))
        # How many payments of this block came before each duplicate; earlier blocks left the ones in `recent`.
        before = np.searchsorted(sources, np.flatnonzero(duplicate)).tolist()
        for row, count in zip(np.flatnonzero(duplicate).tolist(), before, strict=True):
            at = max(-len(recent), count - 1 - int(draws[row, 9] * within))
            if at < 0:
                lines[row], ids[row], found[row] = recent[at]
            else:
                source = sources[at]
                lines[row], ids[row], found[row] = lines[source], ids[source], found[source]
            kinds[row] = "duplicate"
        recent.extend((lines[row], ids[row], found[row]) for row in sources[-within:].tolist())
        del recent[:-within]
        return _Block(lines, kinds, ids, found)


def payments(events: int, seed: int = 7, **options: Unpack[PaymentOptions]) -> Iterator[bytes]:
    """Iterate over the lines of a stream of payments, see `Payments`; a line has no line end.

    >>> len(list(payments(1000, malformed=0.0)))
    1000
    """
    return iter(Payments(events, seed, **options))


def payments_with_truth(
    events: int, seed: int = 7, **options: Unpack[PaymentOptions]
) -> Iterator[tuple[bytes, int | None]]:
    """Iterate over lines and labels: 1 for fraud, 0 for none, None for malformed records.

    >>> sum(label or 0 for _, label in payments_with_truth(10_000, fraud=0.0))
    0
    """
    return ((row.line, row.label) for row in Payments(events, seed, **options).rows())


def labels(events: int, seed: int = 7, **options: Unpack[PaymentOptions]) -> dict[str, int]:
    """Return the truth by `tx_id`: 1 for fraud, 0 for none; malformed records have none.

    >>> set(labels(2000).values())
    {0, 1}
    """
    return Payments(events, seed, **options).labels()


def workload(events: int = 500_000, seed: int = 7, **options: Unpack[PaymentOptions]) -> Payments:
    """Return workload W, on which engines are compared.

    20,000 cards (Zipf 1.1), 3 % duplicates, 10 % out of order by up to 5 s, 1 % late by 10 minutes, nothing malformed.

    >>> workload().events
    500000
    """
    preset: dict[str, Any] = {"malformed": 0.0, **options}
    return Payments(events, seed, **preset)
