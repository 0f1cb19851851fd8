"""Score rows with one version of a model: every row gets outputs, or the error that it alone deserves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamml.errors import ModelError, PlanError, RecordError
from streamml.models.batching import Chunks
from streamml.models.breaker import BreakerState
from streamml.models.deadline import DeadlineError, Deadlines
from streamml.models.isolate import Failure, isolate
from streamml.models.loaded import LoadedModel
from streamml.models.tensors import Tensors

if TYPE_CHECKING:
    from streamml.models.signature import Array
    from streamml.observability import Metrics

__all__ = ["Outcome", "Scorer"]


@dataclass(slots=True)
class Outcome:
    """What became of the rows.

    Attributes:
        columns: outputs by field, None where the row failed.
        failures: by row, why it failed.
        seconds: time that the model took.
    """

    columns: dict[str, list[Any]]
    failures: dict[int, Failure] = field(default_factory=dict)
    seconds: float = 0.0


class _Call(NamedTuple):
    found: dict[str, list[Any]]
    cpu: float


class Scorer:
    """One loaded version with the options of the operator that uses it.

    Args:
        model: the version.
        inputs: names of fields and constants in the order of the model's features, empty takes the bundle's; or for
            each of the model's inputs the field that holds its array.
        outputs: for each field to add, the output: its name or its number.
        missing: let NaN through.
        deadlines: makes calls with a deadline; None makes them directly.
        breaker: the breaker of this version.
        metrics: the job's metrics.
        price: price of a CPU second.
        buckets: lengths to pad to, where `inputs` are arrays of any length.
        lengths: the model's input that takes the rows' own lengths.
    """

    def __init__(
        self,
        model: LoadedModel,
        inputs: Sequence[str | float] | Mapping[str, str | float],
        outputs: Mapping[str, int | str],
        *,
        missing: bool = False,
        deadlines: Deadlines | None = None,
        breaker: BreakerState | None = None,
        metrics: Metrics | None = None,
        price: float = 0.0,
        buckets: Sequence[int] = (),
        lengths: str = "",
    ) -> None:
        self.model = model
        self.version = f"{model.name}:{model.version}"
        self._tensors = None
        if isinstance(inputs, Mapping):
            self._tensors = Tensors(model, tuple(inputs), buckets, lengths)
            inputs = tuple(inputs.values())
        self.inputs = tuple(inputs) or model.features
        self._chunks = Chunks()
        self.outputs = {name: _output(model, which) for name, which in outputs.items()}
        self._seconds = 0.0
        self._missing = missing
        self._deadlines = deadlines
        self.breaker = breaker
        self._price = price
        self._metrics = None if metrics is None else _Metrics(metrics, self.version)

    def score(self, columns: list[Any], rows: int, now: int, until: float) -> Outcome:
        """Score rows given by the columns of the inputs.

        Args:
            columns: columns in the order of the inputs.
            rows: how many rows.
            now: processing time in milliseconds, for the breaker.
            until: deadline as `time.perf_counter()` tells it; infinite for none.
        """
        failures: dict[int, Failure] = {}
        if self._tensors is not None:
            return self._score_tensors(self._tensors, columns, rows, failures, now, until)
        try:
            inputs = self.model.matrix(columns)
        except Exception as exc:
            good = isolate(list(range(rows)), exc, lambda part: self.model.matrix(_pick(columns, part)), failures)
            failures = {row: Failure("input", failure.error) for row, failure in failures.items()}
            if not good:
                return self._outcome(rows, [], {}, failures)
            inputs = self.model.matrix(_pick(columns, good))
        else:
            good = []
        if not self._missing and (holes := self._holes(inputs, good)):
            failures |= holes
            good = [row for row in (good or range(rows)) if row not in holes]
            if not good:
                return self._outcome(rows, [], {}, failures)
            inputs = self.model.matrix(_pick(columns, good))
        if not failures and self.breaker is None:
            try:
                found = self._call(inputs, rows, until)
            except Exception as exc:
                good = list(range(rows))
                found = self._rescue(inputs, good, exc, failures, until)
            return self._outcome(rows, good, found, failures)
        good = good or list(range(rows))
        found = self._guarded(inputs, good, failures, now, until)
        return self._outcome(rows, good, found, failures)

    def _score_tensors(
        self,
        tensors: Tensors,
        columns: list[Any],
        rows: int,
        failures: dict[int, Failure],
        now: int,
        until: float,
    ) -> Outcome:
        groups, bad = tensors.groups(columns, rows)
        failures |= {row: Failure("input", error) for row, error in bad.items()}
        places: list[int] = []
        found: dict[str, list[Any]] = {output: [] for output in self.outputs.values()}
        for part, inputs in groups:
            some = self._guarded(inputs, part, failures, now, until)
            places += part
            for output, column in found.items():
                column += some.get(output, [])
        order = sorted(range(len(places)), key=places.__getitem__)
        ordered = {output: [column[at] for at in order] for output, column in found.items()}
        return self._outcome(rows, sorted(places), ordered, failures)

    def _guarded(
        self, inputs: dict[str, Array], rows: list[int], failures: dict[int, Failure], now: int, until: float
    ) -> dict[str, list[Any]]:
        """Call the model as far as the breaker allows; takes the rows that failed out of `rows`."""
        breaker = self.breaker
        upto = len(rows) if breaker is None else breaker.allowed(len(rows), now)
        found: dict[str, list[Any]] = {}
        tried: list[int] = []
        at = 0
        while at < upto:
            part = rows[at:upto]
            sent = {name: a[at:upto] if a.ndim else a for name, a in inputs.items()}
            before = len(failures)
            try:
                some = self._call(sent, len(part), until)
            except Exception as exc:
                some = self._rescue(sent, part, exc, failures, until)
            found = some if not found else {name: found[name] + some[name] for name in found} if some else found
            tried += part
            if breaker is None:
                break
            breaker.note(upto - at, len(failures) - before, now)
            at, upto = upto, at + (upto - at) + breaker.allowed(len(rows) - upto, now)
        if upto < len(rows):
            shut = ModelError(f"{self.version}: the circuit breaker is open, since too many of the last rows failed")
            failures.update(dict.fromkeys(rows[upto:], Failure("breaker", shut)))
        if breaker is not None and self._metrics:
            self._metrics.open.set(float(breaker.is_open))
        rows[:] = tried
        return found

    def _call(self, inputs: dict[str, Array], rows: int, until: float) -> dict[str, list[Any]]:
        """Call the model once."""
        started = time.perf_counter()

        def work() -> _Call:
            cpu = time.thread_time()
            parts = self._chunks.run(rows, lambda start, stop: self._predict(inputs, rows, start, stop))
            found = parts[0] if len(parts) == 1 else {n: [v for p in parts for v in p[n]] for n in parts[0]}
            return _Call(found, time.thread_time() - cpu)

        if self._deadlines is None:
            done = work()
        else:
            try:
                done = self._deadlines.call(work, until - started)
            except DeadlineError as exc:
                msg = f"{self.version}: {exc}"
                raise DeadlineError(msg) from exc
        took = time.perf_counter() - started
        self._seconds += took
        if self._metrics:
            self._metrics.call(rows, took, done.cpu, self._price * done.cpu)
        return done.found

    def _predict(self, inputs: dict[str, Array], rows: int, start: int, stop: int) -> dict[str, list[Any]]:
        if stop - start < rows:
            inputs = {name: array[start:stop] if array.ndim else array for name, array in inputs.items()}
        return self.model.predict(inputs, stop - start)

    def _rescue(
        self,
        inputs: dict[str, Array],
        rows: list[int],
        error: Exception,
        failures: dict[int, Failure],
        until: float,
    ) -> dict[str, list[Any]]:
        """Find the rows on which the model fails and take them out of `rows`; returns the outputs of the others."""
        parts: dict[int, tuple[dict[str, list[Any]], int]] = {}
        places = list(range(len(rows)))

        def attempt(part: list[int]) -> None:
            picked = {name: a[part] if a.ndim else a for name, a in inputs.items()}
            found = self._call(picked, len(part), until)
            parts.update({place: (found, i) for i, place in enumerate(part)})

        bad: dict[int, Failure] = {}
        good = isolate(places, error, attempt, bad)
        failures.update({rows[place]: failure for place, failure in bad.items()})
        found = {name: [parts[place][0][name][parts[place][1]] for place in good] for name in self.outputs.values()}
        rows[:] = [rows[place] for place in good]
        return found

    def _outcome(
        self, rows: int, good: list[int], found: Mapping[str, list[Any]], failures: dict[int, Failure]
    ) -> Outcome:
        """Lay the outputs of the good rows out over all rows; a score that is no finite number is a failure."""
        whole = not failures
        columns: dict[str, list[Any]] = {}
        for name, output in self.outputs.items():
            column = found.get(output, [])
            if not whole:
                spread: list[Any] = [None] * rows
                for row, value in zip(good, column, strict=True):
                    spread[row] = value
                column = spread
            columns[name] = column
        for name, column in columns.items():
            for row in _odd(column):
                msg = f"{self.version}: output {name!r} is {column[row]}"
                failures.setdefault(row, Failure("error", ModelError(msg)))
        for row in failures:
            for column in columns.values():
                column[row] = None
        if failures and self._metrics:
            self._metrics.errors.inc(len(failures))
        seconds, self._seconds = self._seconds, 0.0
        return Outcome(columns, failures, seconds)

    def _holes(self, inputs: dict[str, Array], rows: list[int]) -> dict[int, Failure]:
        """Return the rows with a missing input, which the model does not take."""
        holes: dict[int, list[str]] = {}
        for spec in self.model.inputs:
            array = inputs[spec.name]
            if array.dtype.kind == "f" and array.sum() != array.sum():
                flat = np.isnan(array.reshape(len(array), -1))
                names = spec.features or (spec.name,) * flat.shape[1]
                for row, column in np.argwhere(flat).tolist():
                    holes.setdefault(rows[row] if rows else row, []).append(names[column])
        failures = {}
        for row, fields in holes.items():
            msg = (
                f"{self.version}: input {', '.join(fields)} is missing; give it a value before this operator, "
                f"or pass missing=True if the model takes NaN"
            )
            failures[row] = Failure("input", RecordError(msg))
        return failures


class _Metrics:
    """The metrics of one version."""

    def __init__(self, metrics: Metrics, version: str) -> None:
        self.errors = metrics.counter("streamml_model_errors_total", model=version)
        self.open = metrics.gauge("streamml_breaker_open_ratio", model=version)
        self._latency = metrics.histogram("streamml_model_latency_seconds", model=version)
        self._sizes = metrics.histogram("streamml_model_batch_size_events", model=version)
        self._scored = metrics.counter("streamml_model_scored_total", model=version)
        self._cpu = metrics.counter("streamml_model_cpu_seconds_total", model=version)
        self._cost = metrics.counter("streamml_model_cost_total", model=version)

    def call(self, rows: int, seconds: float, cpu: float, cost: float) -> None:
        """Count a call."""
        self._latency.observe(seconds)
        self._sizes.observe(rows)
        self._scored.inc(rows)
        self._cpu.inc(cpu)
        if cost:
            self._cost.inc(cost)


def _pick(columns: list[Any], rows: list[int]) -> list[Any]:
    return [[column[row] for row in rows] for column in columns]


def _odd(column: list[Any]) -> list[int]:
    """Return the rows whose output is not finite."""
    first = next((value for value in column if value is not None), None)
    if isinstance(first, float):
        total = sum(value for value in column if value is not None)
        if total - total == 0.0:
            return []
        return [row for row, value in enumerate(column) if value is not None and value - value != 0.0]
    if isinstance(first, list):
        return [
            row
            for row, value in enumerate(column)
            if value is not None and (flat := np.asarray(value)).dtype.kind == "f" and not np.isfinite(flat).all()
        ]
    return []


def _output(model: LoadedModel, which: int | str) -> str:
    names = model.output_names
    if isinstance(which, int) and -len(names) <= which < len(names):
        return names[which]
    if which in names:
        return str(which)
    known = f"{', '.join(names)} (or 0 to {len(names) - 1})"
    msg = f"Infer({model.name!r}): the model has no output {which!r}; it has {known}"
    raise PlanError(msg)
