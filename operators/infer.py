"""`Infer`: score events with a model, batched across keys."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from streamml.contract import Context, Opening, Operator
from streamml.errors import ModelError, PlanError, RecordError
from streamml.records import Batch, Record

if TYPE_CHECKING:
    from streamml.models import LoadedModel

__all__ = ["Infer"]


class Infer(Operator):
    """Score events with a model, the rows of a micro-batch at once, whatever their keys.

    A row that the model can't take (a missing value, a wrong type) or on which it fails is found by halving the
    batch, and goes to `rejected` with the model's version; the others are scored. Adds the outputs and
    `model_version`; the record's id gets the version too.

    Args:
        model: a bundle folder, an `.onnx` file, or the name of a bundle in the job's model folders (`fraud`,
            `fraud:2`, `fraud@prod`).
        inputs: the model's features in order: names of fields, or numbers for constants. Left out: the features that
            the bundle names.
        outputs: for each field to add, which output of the model it is: its name or its number.
        missing: let None through as NaN, for models that take missing values. Default: such rows are rejected.

    >>> score = Infer("fraud@prod", inputs=["amount"], outputs={"score": 0})
    >>> score.name, list(score.adds())
    ('fraud', ['score', 'model_version'])
    """

    rejects_rows = True

    model: str
    inputs: Sequence[str | float] = ()
    outputs: Mapping[str, int | str] | None = None
    missing: bool = False

    def default_name(self) -> str:
        """Return the model's name."""
        stem = str(self.model).rstrip("/").rsplit("/", 1)[-1]
        return stem.split("@")[0].split(":")[0].removesuffix(".onnx")

    def validate(self) -> None:
        """Refuse no outputs at all."""
        if self.outputs is not None and not self.outputs:
            msg = f"Infer({self.model!r}): outputs is empty; name at least one, such as outputs={{'score': 0}}"
            raise PlanError(msg)

    def reads(self) -> list[str]:
        """Return the input fields."""
        return [name for name in self.inputs if isinstance(name, str)]

    def adds(self) -> list[str]:
        """Return the output fields."""
        return [*(self.outputs or {"score": 0}), "model_version"]

    def open(self, opening: Opening) -> None:
        """Load, check and warm up the model."""
        from streamml.models import open_model, resolve

        names = [name if isinstance(name, str) else None for name in self.inputs]
        loaded = open_model(resolve(str(self.model), opening.models), names)
        self._set("_loaded", loaded)
        self._set("_inputs", tuple(self.inputs) or loaded.features)
        self._set("_version", f"{loaded.name}:{loaded.version}")
        self._set("_suffix", f"/{loaded.name}:{loaded.version}")
        self._set(
            "_outputs", {field: self._output(loaded, which) for field, which in (self.outputs or {"score": 0}).items()}
        )
        metrics = opening.metrics
        self._set("_latency", metrics and metrics.histogram("streamml_model_latency_seconds", model=self._version))
        self._set("_scored", metrics and metrics.counter("streamml_model_scored_total", model=self._version))
        self._set("_errors", metrics and metrics.counter("streamml_model_errors_total", model=self._version))

    def close(self) -> None:
        """Release the model."""
        if loaded := getattr(self, "_loaded", None):
            loaded.close()

    def models(self) -> tuple[str, ...]:
        """Return the model's name and version."""
        return (self._version,)

    def on_event(self, event: Record, ctx: Context) -> None:
        """Score one event."""
        columns = [[event[name]] if isinstance(name, str) else [name] for name in self._inputs]
        scores = self._score(columns, 1)
        made = event.with_fields(model_version=self._version, **{field: column[0] for field, column in scores.items()})
        made.id += self._suffix
        ctx.emit(made)

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Score all rows; only those that fail are rejected."""
        rows = len(batch)
        columns = [batch.column(name) if isinstance(name, str) else self._constant(name, rows) for name in self._inputs]
        try:
            scores = self._score(columns, rows)
        except Exception as exc:
            good = self._halve(batch, columns, list(range(rows)), exc, ctx)
            batch, rows = batch.take(good), len(good)
            if not good:
                return batch
            scores = self._score([[column[i] for i in good] for column in columns], rows)
        suffix = self._suffix
        made = batch.with_fields({**scores, "model_version": [self._version] * rows})
        made.ids = [id + suffix for id in batch.ids]
        return made

    @staticmethod
    def _constant(value: float, rows: int) -> Any:
        import numpy as np

        return np.full(rows, value)

    def _score(self, columns: list[Any], rows: int) -> dict[str, list[Any]]:
        started = time.perf_counter()
        inputs = self._loaded.matrix(columns)
        if not self.missing:
            self._check_inputs(inputs)
        found = self._loaded.predict(inputs, rows)
        if self._latency:
            self._latency.observe(time.perf_counter() - started)
            self._scored.inc(rows)
        scores = {field: found[output] for field, output in self._outputs.items()}
        for field, column in scores.items():
            if isinstance(column[0], float) and not math.isfinite(sum(column)):
                odd = next((value for value in column if not math.isfinite(value)), math.inf)
                msg = f"{self._version}: output {field!r} is {odd}"
                raise ModelError(msg)
        return scores

    def _check_inputs(self, inputs: dict[str, Any]) -> None:
        for spec in self._loaded.inputs:
            array = inputs[spec.name]
            if array.dtype.kind == "f" and array.sum() != array.sum():
                missing = [
                    f
                    for f, column in zip(spec.features, array.reshape(len(array), -1).T, strict=True)
                    if (column != column).any()
                ]
                msg = (
                    f"{self._version}: input {', '.join(missing)} is missing; give it a value before this operator, "
                    f"or pass missing=True if the model takes NaN"
                )
                raise RecordError(msg)

    def _halve(self, batch: Batch, columns: list[Any], rows: list[int], error: Exception, ctx: Context) -> list[int]:
        """Find the rows that fail and reject them; return the others."""
        if len(rows) == 1:
            ctx.reject(batch.record(rows[0]), error, model_version=self._version)
            if self._errors:
                self._errors.inc()
            return []
        good: list[int] = []
        middle = len(rows) // 2
        for part in (rows[:middle], rows[middle:]):
            try:
                self._score([[column[i] for i in part] for column in columns], len(part))
            except Exception as exc:
                good += self._halve(batch, columns, part, exc, ctx)
            else:
                good += part
        return good

    def _output(self, loaded: LoadedModel, which: int | str) -> str:
        names = loaded.output_names
        if isinstance(which, int) and -len(names) <= which < len(names):
            return names[which]
        if which in names:
            return str(which)
        msg = (
            f"Infer({self.model!r}): the model has no output {which!r}; it has {', '.join(names)} (or 0 to "
            f"{len(names) - 1})"
        )
        raise PlanError(msg)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:
        _loaded: ClassVar[LoadedModel]
        _inputs: ClassVar[tuple[str | float, ...]]
        _version: ClassVar[str]
        _suffix: ClassVar[str]
        _outputs: ClassVar[dict[str, str]]
        _latency: ClassVar[Any]
        _scored: ClassVar[Any]
        _errors: ClassVar[Any]
