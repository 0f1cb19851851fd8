"""`InferSequence`: score the events of a key one after the other, with the model's hidden state kept by key."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from streamml.contract import Context, KeyedOperator, Opening
from streamml.errors import PlanError, RecordError
from streamml.models.rollout import sticky
from streamml.operators.hidden_state import Hidden, from_wire, to_wire
from streamml.operators.rows import kept
from streamml.operators.windows import positive_millis
from streamml.records import Batch
from streamml.state import ObjectState
from streamml.times import Duration

if TYPE_CHECKING:
    from streamml.models.loaded import LoadedModel
    from streamml.models.serving import Serving
    from streamml.models.signature import Array
    from streamml.operators.sequence_model import SequenceModel

__all__ = ["InferSequence"]


class InferSequence(KeyedOperator):
    """Score each event with a recurrent or streaming model, which remembers the key's events before it.

    The model's hidden state is keyed state of the job: it is checkpointed, restored and moved with its key. Rows of a
    key are scored in the order in which they arrive, one call each. So what comes out depends on nothing but those
    rows: a restart, a change of the number of workers and a replay go on bit for bit, whatever the micro-batches were.
    With `batch=True` rows of different keys are scored together. That is faster, but a matrix product sums in another
    order in a batch of another size, so scores then agree only up to rounding.

    The version is the one in force at the time of the key's newest event, as in `Infer`; guards and shadows are not
    for models with a memory. A key starts anew after a silence of `ttl` or longer, at an event whose `reset` field is
    true, and when the version is another one. An event older than the newest one of its key is scored as it comes, or
    with `out_of_order="late"` goes to `late` and leaves the state as it is. A row on which the model fails goes to
    `rejected`, and the state stays what it was before that row. Adds the outputs and `model_version`.

    Args:
        model: the name of a model in the job's registries, a bundle folder, or an `.onnx` file.
        inputs: for each input of the model the field that it takes (a number or a list), or several fields for a
            vector of numbers. Dimensions that the value does not have are put in front of it.
        state: for each input that takes a state tensor the output that gives the next one.
        outputs: for each field to add the output of the model, by name.
        constants: for each other input of the model its value.
        initial: for state tensors that don't start with zeros, or whose shape the model leaves open, the value for one
            key; a number fills the tensor.
        ttl: silence of a key, in event time, after which it starts anew.
        reset: a field; where it is true, the key starts anew with this event.
        out_of_order: `score` or `late`.
        batch: score rows of different keys together; the inputs and outputs must have the batch first.

    >>> vad = InferSequence(
    ...     "vad", {"input": "samples"}, {"state": "stateN"}, {"speech": "output"}, constants={"sr": 16000}, ttl="30s"
    ... )
    >>> vad.name, list(vad.adds())
    ('vad', ['speech', 'model_version'])
    """

    sides = ("late",)
    rejects_rows = True

    model: str
    inputs: Mapping[str, str | Sequence[str]]
    state: Mapping[str, str]
    outputs: Mapping[str, str]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    initial: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ttl: Duration = "1h"
    reset: str | None = None
    out_of_order: str = "score"
    batch: bool = False

    hidden = ObjectState["Hidden"](
        new=lambda op: Hidden,
        to_wire=lambda op: to_wire,
        from_wire=lambda op: from_wire,
        written=lambda op: lambda hidden: hidden.time,
        signature=lambda op: "hidden state " + ", ".join(op.state),
        ttl=lambda op: op.ttl,
    )

    def default_name(self) -> str:
        """Return the model's name."""
        stem = str(self.model).rstrip("/").rsplit("/", 1)[-1]
        return stem.split("@")[0].split(":")[0].removesuffix(".onnx")

    def validate(self) -> None:
        """Refuse a model without state or outputs, and unknown choices."""
        where = f"InferSequence({self.model!r}"
        positive_millis(self.ttl, f"{where}, ttl=)")
        for option in ("inputs", "state", "outputs"):
            if not getattr(self, option):
                msg = f"{where}, {option}=): wanted at least one, got none; a model without state is for Infer"
                raise PlanError(msg)
        if self.out_of_order not in ("score", "late"):
            msg = f"{where}, out_of_order=): wanted 'score' or 'late', got {self.out_of_order!r}"
            raise PlanError(msg)
        if unknown := sorted(set(self.initial) - set(self.state)):
            where = f"{where}, initial=)"
            raise PlanError.unknown(where, "state", unknown[0], self.state)

    def reads(self) -> list[str]:
        """Return the input fields."""
        fields = [name for names in self._fields for name in names]
        return list(dict.fromkeys([*fields, self.reset] if self.reset else fields))

    def adds(self) -> list[str]:
        """Return the output fields."""
        return [*self.outputs, "model_version"]

    def models(self) -> tuple[str, ...]:
        """Return the champion's name and version."""
        current = self._serving.current
        return (f"{current.name}:{current.version}",)

    def open(self, opening: Opening) -> None:
        """Load the model, check that it has what is named here, and follow its rollouts."""
        from streamml.models.serve import serve
        from streamml.operators.sequence_model import SequenceModel

        who, metrics = f"{opening.pipeline}/{self.name}", opening.metrics

        def made(model: LoadedModel) -> SequenceModel:
            return SequenceModel(model, self, metrics)

        self._set("_made", made)
        self._set("_known", {})
        serving = serve(str(self.model), opening.models, who=who, metrics=metrics, check=made, warm_up=False)
        self._set("_serving", serving)

    def close(self) -> None:
        """Release the model."""
        if serving := getattr(self, "_serving", None):
            serving.close()

    def on_batch(self, batch: Batch, ctx: Context) -> Batch:
        """Score the rows of each key in order."""
        columns = {name: batch.column(name) for name in self.reads()}
        versions = [""] * len(batch)
        found: dict[int, list[Any]] = {}
        lost: dict[int, Exception | int] = {}
        for rows in _waves(batch) if self.batch else ([row] for row in range(len(batch))):
            due = [row for row in rows if self._due(row, batch, lost)]
            self._score(due, batch, columns, versions, found, lost)
        for row in sorted(lost):
            why = lost[row]
            if isinstance(why, int):
                ctx.side("late", batch.record(row), late_by_ms=why - batch.times[row], newest=why)
            else:
                ctx.reject(batch.record(row), why, model_version=versions[row])
        made = kept(batch, list(lost))
        scored = sorted(found)
        scores, served = [found[row] for row in scored], [versions[row] for row in scored]
        made = made.with_fields(
            {
                **{name: [row[at] for row in scores] for at, name in enumerate(self.outputs)},
                "model_version": served,
            }
        )
        made.ids = [f"{id}/{version}" for id, version in zip(made.ids, served, strict=True)]
        self._serving.settle(max(batch.times), batch.watermarks[-1])
        return made

    def _model(self, row: int, batch: Batch) -> SequenceModel:
        """Return the version for a row: that of the newest event of its key, so that a key never goes back."""
        hidden: Hidden | None = _entries(batch)[row].cells[self.hidden.slot]
        at = batch.times[row] if hidden is None else max(batch.times[row], hidden.time)
        rollout = self._serving.rollout(self._serving.history, at)
        version = rollout.champion
        if rollout.splits:
            version = rollout.choose(sticky(self._serving.name, batch.keys[row]))
        loaded = self._serving.model(version)
        known = self._known.get(version)
        if known is None or known.loaded is not loaded:
            made: SequenceModel = self._made(loaded)
            known = self._known[version] = made
        return known

    def _due(self, row: int, batch: Batch, lost: dict[int, Exception | int]) -> bool:
        """Return whether a row is to be scored; one that is too old for its key is lost."""
        if self.out_of_order == "score":
            return True
        hidden: Hidden | None = _entries(batch)[row].cells[self.hidden.slot]
        if hidden is None or batch.times[row] >= hidden.time or hidden.time <= batch.watermarks[row] - self.ttl:
            return True
        lost[row] = hidden.time
        return False

    def _score(
        self,
        rows: list[int],
        batch: Batch,
        columns: Mapping[str, list[Any]],
        versions: list[str],
        found: dict[int, list[Any]],
        lost: dict[int, Exception | int],
    ) -> None:
        """Score rows of different keys: together where their inputs have the same shapes, alone where that fails."""
        alike: dict[Any, list[tuple[int, list[Array], Sequence[Array]]]] = {}
        models: dict[str, SequenceModel] = {}
        for row in rows:
            model = self._model(row, batch)
            versions[row] = model.version
            models[model.version] = model
            try:
                inputs = model.arrays([_value(columns, names, row) for names in self._fields])
            except RecordError as exc:
                self._lose(row, model, exc, lost)
                continue
            ready = (row, inputs, self._before(row, model, batch, columns))
            alike.setdefault((model.version, *(array.shape for array in inputs)), []).append(ready)
        pending = list(alike.values())
        while pending:
            part = pending.pop()
            model = models[versions[part[0][0]]]
            started = time.perf_counter()
            try:
                results = model.call([(inputs, tensors) for _, inputs, tensors in part])
            except Exception as exc:
                if len(part) > 1:
                    pending += [[one] for one in part]
                else:
                    self._lose(part[0][0], model, exc, lost)
                continue
            if model.latency:
                model.latency.observe(time.perf_counter() - started)
            if model.scored:
                model.scored.inc(len(part))
            for (row, _, _), (tensors, outputs) in zip(part, results, strict=True):
                found[row] = outputs
                cells = _entries(batch)[row].cells
                old: Hidden | None = cells[self.hidden.slot]
                newest = batch.times[row] if old is None else max(old.time, batch.times[row])
                cells[self.hidden.slot] = Hidden(newest, model.version, tensors)

    def _before(
        self, row: int, model: SequenceModel, batch: Batch, columns: Mapping[str, list[Any]]
    ) -> Sequence[Array]:
        """Return the state tensors that a row goes on from."""
        hidden: Hidden | None = _entries(batch)[row].cells[self.hidden.slot]
        if (
            hidden is None
            or hidden.version != model.version
            or batch.times[row] >= hidden.time + self.ttl
            or batch.watermarks[row] >= hidden.time + self.ttl
            or (self.reset is not None and columns[self.reset][row])
        ):
            return model.start
        return hidden.tensors

    def _lose(self, row: int, model: SequenceModel, error: Exception, lost: dict[int, Exception | int]) -> None:
        lost[row] = error
        if model.errors:
            model.errors.inc()

    @property
    def _fields(self) -> list[tuple[str, ...]]:
        """For each input the fields that it takes."""
        return [(names,) if isinstance(names, str) else tuple(names) for names in self.inputs.values()]

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:
        _serving: ClassVar[Serving]
        _known: ClassVar[dict[int, SequenceModel]]
        _made: ClassVar[Any]


def _waves(batch: Batch) -> Iterator[list[int]]:
    """Yield the first row of each key, then the second ones, and so on."""
    turns: list[list[int]] = []
    seen: dict[int, int] = {}
    for row, entry in enumerate(_entries(batch)):
        turn = seen.get(id(entry), 0)
        seen[id(entry)] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(row)
    yield from turns


def _value(columns: Mapping[str, list[Any]], names: tuple[str, ...], row: int) -> Any:
    return columns[names[0]][row] if len(names) == 1 else [columns[name][row] for name in names]


def _entries(batch: Batch) -> list[Any]:
    return batch.entries or []
