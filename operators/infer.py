"""`Infer`: score events with a model, batched across keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from streamml.contract import Context, Opening, Operator
from streamml.errors import PlanError
from streamml.operators.fallback import LastValue, chain
from streamml.records import Batch, Record
from streamml.state import ValueState
from streamml.state.descriptors import State, ValueHandle
from streamml.times import Duration

if TYPE_CHECKING:
    from streamml.models.breaker import Breaker
    from streamml.models.runtime import ModelRuntime
    from streamml.operators.scoring import Scoring

__all__ = ["Infer"]


class Infer(Operator):
    """Score events with a model, the rows of a micro-batch at once, whatever their keys.

    With a reference such as `fraud@prod` the version is the one in force **at the event's time**: champion, canary or
    variant by a sticky share of the keys. Promoting, canarying and rolling back need no restart, and a replay scores
    with the versions of that time. Shadows score as well, into the side output `shadow`. A canary that crosses its
    guard's limits is rolled back by the job itself, which says so in the side output `rollout`.

    A row that the model can't take (a missing value, a wrong type) or on which it fails is found by halving the
    batch, and goes to `rejected` with the model's version; the others are scored. A row on which a canary fails is
    scored by the champion. Where there is a fallback, rows that the model failed on or was late for take that.

    Adds the outputs, `model_version`, and with a fallback `degraded`: None, or why the fallback was taken
    (`error`, `deadline`, `breaker`). The record's id gets the version too.

    Args:
        model: the name of a model in the job's registries (`fraud@prod`, `fraud`, `fraud:2`), a bundle folder, a model
            file, or a `ModelRuntime`, such as `streamml.beam.HandlerModel` around a handler of Beam.
        inputs: the model's features in order: names of fields, or numbers for constants. Left out: the features that
            the bundle names. For a model whose inputs are arrays: for each input the field that holds its array (or
            list), or a number.
        outputs: for each field to add, which output of the model it is: its name or its number.
        missing: let None through as NaN, for models that take missing values. Default: such rows are rejected.
        deadline: how long a micro-batch may take here, in processing time; what has no score by then takes the
            fallback. None waits for the model.
        fallback: what stands in for a score: a model's reference, `LastValue(ttl)`, a constant, or several of these in
            order. None rejects the row.
        breaker: when to stop calling a model that keeps failing; None always calls it.
        split_by: the field by which keys are dealt to canary and variants; empty takes the event's key, or its id
            where there is none.
        buckets: lengths to which rows are padded, for inputs of any length (text, audio): rows of about the same length
            are scored together, and a row's score does not depend on its neighbours.
        lengths: the model's input that takes the rows' own lengths.
        log_features: write each row's inputs and their hash to the side output `features`, for
            `streamml models parity`.
        explain: write to the side output `attribution` by how much each feature moved each row's raw score, for linear
            models and tree ensembles, against the bundle's golden rows.
        price: price of an hour of one core, in any currency, for the metric of cost.

    >>> score = Infer("fraud@prod", inputs=["amount"], outputs={"score": 0}, deadline="20ms", fallback=0.5)
    >>> score.name, list(score.adds())
    ('fraud', ['score', 'model_version', 'degraded'])
    """

    sides = ("attribution", "features", "rollout", "shadow")
    rejects_rows = True

    model: str | ModelRuntime
    inputs: Sequence[str | float] | Mapping[str, str | float] = ()
    outputs: Mapping[str, int | str] | None = None
    missing: bool = False
    deadline: Duration | None = None
    fallback: Any = None
    breaker: Breaker | None = None
    split_by: str = ""
    buckets: Sequence[int] = ()
    lengths: str = ""
    log_features: bool = False
    explain: bool = False
    price: float = 0.0

    last = ValueState(list, ttl=lambda op: op.last_ttl)

    def default_name(self) -> str:
        """Return the model's name."""
        if not isinstance(self.model, str):
            return type(self.model).__name__
        stem = self.model.rstrip("/").rsplit("/", 1)[-1]
        return stem.split("@")[0].split(":")[0].removesuffix(".onnx")

    def validate(self) -> None:
        """Refuse no outputs at all, a deadline of nothing, and fallbacks that are none."""
        if self.outputs is not None and not self.outputs:
            msg = f"Infer({self.model!r}): outputs is empty; name at least one, such as outputs={{'score': 0}}"
            raise PlanError(msg)
        if self.deadline == 0:
            msg = f"Infer({self.model!r}): a deadline of 0 leaves no time for the model; leave it out, or give it some"
            raise PlanError(msg)
        self._set("chain", () if self.fallback is None else chain(self.fallback, list(self.wanted)))

    @property
    def wanted(self) -> Mapping[str, int | str]:
        """The fields to add with the output that each is."""
        return self.outputs or {"score": 0}

    @property
    def remembers(self) -> bool:
        """Whether the last value of each key is kept."""
        return any(isinstance(step, LastValue) for step in self.chain)

    @property
    def last_ttl(self) -> int:
        """How long the last value of a key may be used, in milliseconds."""
        return next((int(step.ttl) for step in self.chain if isinstance(step, LastValue)), 0)

    def bound_states(self) -> dict[str, State[Any]]:
        """Keep the last value of each key only where it is a fallback."""
        return super().bound_states() if self.remembers else {}

    def reads(self) -> list[str]:
        """Return the input fields."""
        named = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        fields = [name for name in named if isinstance(name, str)]
        return [*fields, self.split_by] if self.split_by else fields

    def adds(self) -> list[str]:
        """Return the output fields."""
        return [*self.wanted, "model_version", *(["degraded"] if self.chain else [])]

    def open(self, opening: Opening) -> None:
        """Load, check and warm up the model, and follow its rollouts."""
        from streamml.operators.scoring import Scoring

        self._set("_scoring", Scoring(self, opening))

    def close(self) -> None:
        """Release the model."""
        if scoring := getattr(self, "_scoring", None):
            scoring.close()

    def models(self) -> tuple[str, ...]:
        """Return the champion's name and version."""
        return self._scoring.versions

    def on_event(self, event: Record, ctx: Context) -> None:
        """Score one event."""
        entries = None if ctx.entry is None else [ctx.entry]
        made = self._scoring.run(Batch.of([event], [ctx.watermark], ctx.watermark, entries), ctx, self._last)
        for row in range(len(made)):
            ctx.emit(made.record(row))

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Score all rows; only those that fail are rejected."""
        return self._scoring.run(batch, ctx, self._last)

    @property
    def _last(self) -> ValueHandle[list[Any]] | None:
        return self.last if self.remembers else None

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:
        chain: ClassVar[tuple[str | LastValue | dict[str, Any], ...]]
        _scoring: ClassVar[Scoring]
