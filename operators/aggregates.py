"""Aggregates: what is kept of many events, and what is said of them.

An `Aggregate` (`mean("amount")`) is made of `Part`s, the accumulators (a sum, a count), and aggregates over the same
events share equal parts. Parts are fed event by event and merged tile by tile, older with newer; the order of calls is
`init`, then `add` and `merge`, with `to_wire` and `from_wire` in between whenever state is stored.

Numbers are plain `float` and `int`, never NumPy's: an accumulator is the same to the last bit however the stream is cut
into micro-batches. `Aggregation` (`aggregation.py`) compiles a set of named aggregates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from math import exp2
from typing import Any, ClassVar, cast

from streamml.errors import PlanError
from streamml.operators.sketches import Hll, Kll, require_datasketches
from streamml.operators.windows import positive_millis
from streamml.times import MIN_TIME, Duration, format_duration

__all__ = [
    "Aggregate",
    "Part",
    "count",
    "distinct",
    "ewma",
    "last",
    "maximum",
    "mean",
    "minimum",
    "quantile",
    "rate",
    "since_last",
    "total",
    "variance",
]


class Part(ABC):
    """One accumulator. Subclasses are frozen dataclasses: equal parts are one part.

    An accumulator is plain data that is never changed in place (a number, None, a tuple), unless `plain` is False.
    A tuple may come back from storage as a list, so a part only unpacks it.

    Attributes:
        kind: what it keeps, in one word.
        text: True if it takes text as well as numbers.
        plain: True if the accumulator is its own wire form.
    """

    kind: ClassVar[str]
    text: ClassVar[bool] = False
    plain: ClassVar[bool] = True

    @property
    def reads(self) -> str | None:
        """The input field that it takes the value from, None if it needs no value."""
        return getattr(self, "field", None)

    @property
    def label(self) -> str:
        """Stable text that says what is kept; part of the signature of stored state."""
        settings = [str(getattr(self, item.name)) for item in fields(cast(Any, self))]
        return f"{self.kind}({','.join(settings)})" if settings else self.kind

    @abstractmethod
    def init(self) -> Any:
        """Return the accumulator of no event."""

    @abstractmethod
    def add(self, acc: Any, value: Any, time: int) -> Any:
        """Return the accumulator with one event more; only an accumulator that is not plain is changed in place."""

    @abstractmethod
    def merge(self, older: Any, newer: Any) -> Any:
        """Return the accumulator of both, as a new object where it is not plain; neither input is changed."""

    def to_wire(self, acc: Any) -> Any:
        """Return the accumulator as data that msgpack can write."""
        return acc

    def from_wire(self, wire: Any) -> Any:
        """Return the accumulator that `to_wire` gave; it goes on exactly as the one that was written."""
        return wire


@dataclass(frozen=True)
class Count(Part):
    """Number of events."""

    kind: ClassVar[str] = "count"

    def init(self) -> int:
        return 0

    def add(self, acc: int, value: Any, time: int) -> int:
        return acc + 1

    def merge(self, older: int, newer: int) -> int:
        return older + newer


@dataclass(frozen=True)
class Sum(Part):
    """Sum of a field."""

    kind: ClassVar[str] = "sum"
    field: str

    def init(self) -> float:
        return 0.0

    def add(self, acc: float, value: float, time: int) -> float:
        return acc + value

    def merge(self, older: float, newer: float) -> float:
        return older + newer


@dataclass(frozen=True)
class Moments(Part):
    """Count, mean and sum of squared differences from it: Welford's method, merged by Chan's."""

    kind: ClassVar[str] = "moments"
    field: str

    def init(self) -> tuple[int, float, float]:
        return 0, 0.0, 0.0

    def add(self, acc: Sequence[Any], value: float, time: int) -> tuple[int, float, float]:
        n, mean, squares = acc
        n += 1
        off = value - mean
        mean += off / n
        return n, mean, squares + off * (value - mean)

    def merge(self, older: Sequence[Any], newer: Sequence[Any]) -> Sequence[Any]:
        n, mean, squares = older
        m, other, more = newer
        if not n:
            return newer
        if not m:
            return older
        off = other - mean
        share = m / (n + m)
        return n + m, mean + off * share, squares + more + off * off * n * share


@dataclass(frozen=True)
class Least(Part):
    """Least value of a field."""

    kind: ClassVar[str] = "least"
    field: str

    def init(self) -> None:
        return None

    def add(self, acc: float | None, value: float, time: int) -> float:
        return float(value) if acc is None or value < acc else acc

    def merge(self, older: float | None, newer: float | None) -> float | None:
        return newer if older is None or (newer is not None and newer < older) else older


@dataclass(frozen=True)
class Greatest(Part):
    """Greatest value of a field."""

    kind: ClassVar[str] = "greatest"
    field: str

    def init(self) -> None:
        return None

    def add(self, acc: float | None, value: float, time: int) -> float:
        return float(value) if acc is None or value > acc else acc

    def merge(self, older: float | None, newer: float | None) -> float | None:
        return newer if older is None or (newer is not None and newer > older) else older


@dataclass(frozen=True)
class Newest(Part):
    """Time and value of the newest event; of two at the same time the one that came later."""

    kind: ClassVar[str] = "newest"
    field: str

    def init(self) -> tuple[int, None]:
        return MIN_TIME, None

    def add(self, acc: Sequence[Any], value: float, time: int) -> Sequence[Any]:
        return (time, float(value)) if time >= acc[0] else acc

    def merge(self, older: Sequence[Any], newer: Sequence[Any]) -> Sequence[Any]:
        return newer if newer[1] is not None and newer[0] >= older[0] else older


@dataclass(frozen=True)
class LastTimes(Part):
    """The two newest times, the older one first; None where there is none."""

    kind: ClassVar[str] = "last_times"

    def init(self) -> tuple[None, None]:
        return None, None

    def add(self, acc: Sequence[Any], value: Any, time: int) -> Sequence[Any]:
        previous, newest = acc
        if newest is None or time >= newest:
            return newest, time
        return (time, newest) if previous is None or time > previous else acc

    def merge(self, older: Sequence[Any], newer: Sequence[Any]) -> Sequence[Any]:
        if newer[1] is None:
            return older
        if older[1] is None:
            return newer
        if newer[1] < older[1]:
            older, newer = newer, older
        previous, newest = newer
        return (older[1] if previous is None or previous < older[1] else previous), newest


@dataclass(frozen=True)
class FirstTime(Part):
    """Time of the oldest event."""

    kind: ClassVar[str] = "first_time"

    def init(self) -> None:
        return None

    def add(self, acc: int | None, value: Any, time: int) -> int:
        return time if acc is None or time < acc else acc

    def merge(self, older: int | None, newer: int | None) -> int | None:
        return newer if older is None or (newer is not None and newer < older) else older


@dataclass(frozen=True)
class Decayed(Part):
    """Weighted sum, sum of weights, and the newest time: an event then weighs 1, one `half` older weighs a half."""

    kind: ClassVar[str] = "decayed"
    field: str
    half: int

    def init(self) -> tuple[float, float, None]:
        return 0.0, 0.0, None

    def add(self, acc: Sequence[Any], value: float, time: int) -> Sequence[Any]:
        return self.merge(acc, (value, 1.0, time))

    def merge(self, older: Sequence[Any], newer: Sequence[Any]) -> Sequence[Any]:
        weighted, weights, time = older
        more, others, now = newer
        if now is None:
            return older
        if time is None:
            return float(more), others, now
        if now >= time:
            fade = exp2((time - now) / self.half)
            return weighted * fade + more, weights * fade + others, now
        fade = exp2((now - time) / self.half)
        return weighted + more * fade, weights + others * fade, time


@dataclass(frozen=True)
class Distinct(Part):
    """A HyperLogLog sketch of a field."""

    kind: ClassVar[str] = "hll"
    field: str
    lg_k: int
    text: ClassVar[bool] = True
    plain: ClassVar[bool] = False

    def init(self) -> Hll:
        return Hll(self.lg_k)

    def add(self, acc: Hll, value: Any, time: int) -> Hll:
        acc.add(value)
        return acc

    def merge(self, older: Hll, newer: Hll) -> Hll:
        return older.merge(newer)

    def to_wire(self, acc: Hll) -> bytes:
        return acc.to_bytes()

    def from_wire(self, wire: bytes) -> Hll:
        return Hll.from_bytes(self.lg_k, wire)


@dataclass(frozen=True)
class Ranks(Part):
    """A KLL sketch of a field."""

    kind: ClassVar[str] = "kll"
    field: str
    k: int
    plain: ClassVar[bool] = False

    def init(self) -> Kll:
        return Kll(self.k)

    def add(self, acc: Kll, value: float, time: int) -> Kll:
        acc.add(float(value), time)
        return acc

    def merge(self, older: Kll, newer: Kll) -> Kll:
        return older.merge(newer)

    def to_wire(self, acc: Kll) -> list[Any]:
        return acc.to_wire()

    def from_wire(self, wire: Sequence[Any]) -> Kll:
        return Kll.from_wire(self.k, wire)


@dataclass(frozen=True, repr=False)
class Aggregate:
    """One result over many events, built by the functions of this module; its repr is the call that builds it.

    Attributes:
        text: the call, which decides all the rest.
        parts: the accumulators that it needs.
        finish: function from their accumulators and (time, start, end) to the result. `time` is that of the event which
            the result is for, already added, or the window's end; a window without edges has `MIN_TIME`, `MAX_TIME`.
        dtype: type of the result, `float` or `int`; it may also be None where the function says so.
    """

    text: str
    parts: tuple[Part, ...] = field(compare=False)
    finish: Callable[..., Any] = field(compare=False)
    dtype: type = field(default=float, compare=False)

    def __repr__(self) -> str:
        return self.text


def the_value(acc: Any, time: int, start: int, end: int) -> Any:
    """Return the accumulator itself."""
    return acc


def the_mean(n: int, added: float, time: int, start: int, end: int) -> float | None:
    """Return sum over count."""
    return added / n if n else None


def the_newest(acc: Sequence[Any], time: int, start: int, end: int) -> Any:
    """Return the value of (time, value)."""
    return acc[1]


def _variance(ddof: int, moments: Sequence[Any], time: int, start: int, end: int) -> float | None:
    n, _, squares = moments
    return squares / (n - ddof) if n > ddof else None


def the_time_since(times: Sequence[Any], time: int, start: int, end: int) -> float:
    """Return the time since the newest event before this time, -1.0 without one."""
    previous, newest = times
    before = newest if newest is not None and time > newest else previous
    return -1.0 if before is None else float(max(time - before, 0))


def _ewma(decayed: Sequence[Any], time: int, start: int, end: int) -> float | None:
    weighted, weights, newest = decayed
    return None if newest is None else weighted / weights


def _rate(per: int, n: int, first: int | None, time: int, start: int, end: int) -> float:
    if first is None:
        return 0.0
    begin = first if start <= MIN_TIME else start
    shortest = min(per, end - start) if end > start else per
    return n * per / max(min(time, end) - begin, shortest)


def _distinct(sketch: Hll, time: int, start: int, end: int) -> int:
    return sketch.estimate()


def _quantile(q: float, sketch: Kll, time: int, start: int, end: int) -> float | None:
    return sketch.quantile(q)


def _field(where: str, field: str) -> str:
    if isinstance(field, str) and field:
        return field
    msg = f"{where}: wanted the name of a field, got {field!r}. Write it as {where}('amount')."
    raise PlanError(msg)


def _whole(where: str, value: int, least: int, most: int) -> int:
    if type(value) is int and least <= value <= most:
        return value
    msg = f"{where}: wanted a whole number from {least} to {most}, got {value!r}"
    raise PlanError(msg)


def count() -> Aggregate:
    """Count the events: an `int`, 0 when there is none.

    >>> count()
    count()
    """
    return Aggregate("count()", (Count(),), the_value, int)


def total(field: str) -> Aggregate:
    """Add a field up: a `float`, 0.0 when there is no event.

    >>> total("amount")
    total('amount')
    """
    return Aggregate(f"total({field!r})", (Sum(_field("total", field)),), the_value)


def mean(field: str) -> Aggregate:
    """Take the mean of a field, None when there is no event.

    >>> mean("amount")
    mean('amount')
    """
    return Aggregate(f"mean({field!r})", (Count(), Sum(_field("mean", field))), the_mean)


def variance(field: str, ddof: int = 1) -> Aggregate:
    """Take the variance of a field, None when there are `ddof` events or fewer.

    Args:
        field: the field.
        ddof: what is taken off the number of events in the divisor; 1 for a sample, 0 for the whole.

    >>> variance("amount")
    variance('amount', ddof=1)
    """
    finish = partial(_variance, _whole("variance, ddof", ddof, 0, 1_000_000))
    return Aggregate(f"variance({field!r}, ddof={ddof})", (Moments(_field("variance", field)),), finish)


def minimum(field: str) -> Aggregate:
    """Take the least value of a field as a `float`, None when there is no event.

    >>> minimum("amount")
    minimum('amount')
    """
    return Aggregate(f"minimum({field!r})", (Least(_field("minimum", field)),), the_value)


def maximum(field: str) -> Aggregate:
    """Take the greatest value of a field as a `float`, None when there is no event.

    >>> maximum("amount")
    maximum('amount')
    """
    return Aggregate(f"maximum({field!r})", (Greatest(_field("maximum", field)),), the_value)


def last(field: str) -> Aggregate:
    """Take the newest event's value of a field as a `float`, None when there is no event.

    Newest is by event time; of events at the same time the one that came later counts.

    >>> last("amount")
    last('amount')
    """
    return Aggregate(f"last({field!r})", (Newest(_field("last", field)),), the_newest)


def since_last() -> Aggregate:
    """Take the milliseconds since the previous event in event time: a `float`, -1.0 when there is none.

    For the newest event of a window it is exact, whatever the order of arrival and however the window is made of
    tiles. A window's result, which is for the window's end, says how long before the end the newest event was.
    What is kept are the two newest times; so for an event that comes late within its own tile it may not know the
    predecessor, and says 0.0. A previous event outside the window is not seen: the window decides how far back.

    >>> since_last()
    since_last()
    """
    return Aggregate("since_last()", (LastTimes(),), the_time_since)


def ewma(field: str, half_life: Duration = "1m") -> Aggregate:
    """Take the exponentially weighted mean of a field in irregular time, None when there is no event.

    An event weighs half as much as one that is `half_life` newer. The order of arrival changes nothing but rounding.

    Args:
        field: the field.
        half_life: after this long a value counts half.

    >>> ewma("amount", half_life="30s")
    ewma('amount', half_life='30s')
    """
    half = positive_millis(half_life, "ewma, half_life")
    text = f"ewma({field!r}, half_life={format_duration(half)!r})"
    return Aggregate(text, (Decayed(_field("ewma", field), half),), _ewma)


def rate(per: Duration = "1s") -> Aggregate:
    """Take the number of events per `per` over the span of the window that has elapsed: a `float`, 0.0 without event.

    The span runs from the window's start (the first event, if the window has no start) to the event, or to the
    window's end. A span shorter than `per` counts as one `per` (as the whole window, if that is shorter still),
    so that the first events of a window do not look like a burst.

    >>> rate(per="1m")
    rate(per='1m')
    """
    millis = positive_millis(per, "rate, per")
    return Aggregate(f"rate(per={format_duration(millis)!r})", (Count(), FirstTime()), partial(_rate, millis))


def distinct(field: str, lg_k: int = 11) -> Aggregate:
    """Count the distinct values of a field, about: an `int`, 0 when there is no event.

    A HyperLogLog sketch: nearly exact for small counts, then with a relative standard error of about
    `1.04 / sqrt(2**lg_k)`, 2.3 % at 11. It takes text and numbers. The answer depends on the set of values and on
    nothing else: not on their order, on tiles or on restarts. Needs `pip install 'streamml[sketches]'`.

    Args:
        field: the field.
        lg_k: the sketch has `2**lg_k` registers of one byte.

    >>> distinct("merchant")
    distinct('merchant', lg_k=11)
    """
    require_datasketches()
    part = Distinct(_field("distinct", field), _whole("distinct, lg_k", lg_k, 4, 21))
    return Aggregate(f"distinct({field!r}, lg_k={lg_k})", (part,), _distinct, int)


def quantile(field: str, q: float, k: int = 200) -> Aggregate:
    """Take a quantile of a field, about: a `float`, None when there is no event.

    It is the smallest value with at least the share `q` of the events up to it (no interpolation). A KLL sketch:
    exact up to `k` events, then within a rank error of about `2.66 / k` (1.3 % at 200) with 99 % confidence.
    A replay gives the same answer to the bit; other tiles may give another one within the error.

    Args:
        field: the field.
        q: from 0 (the least value) to 1 (the greatest).
        k: the larger, the closer; the state grows with it (up to about 3 values for each of `k`).

    >>> quantile("amount", 0.99)
    quantile('amount', 0.99, k=200)
    """
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0.0 <= q <= 1.0:
        msg = f"quantile, q: wanted a share from 0 to 1, got {q!r}. The median is 0.5."
        raise PlanError(msg)
    part = Ranks(_field("quantile", field), _whole("quantile, k", k, 8, 65_535))
    return Aggregate(f"quantile({field!r}, {float(q)}, k={k})", (part,), partial(_quantile, float(q)))
