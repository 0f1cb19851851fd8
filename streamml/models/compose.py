"""Models made of models: functions before and after, an ensemble, a cascade. Each is a runtime like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamml.errors import ModelError
from streamml.models.code import import_named
from streamml.models.describe import PipelineOf
from streamml.models.policy import Policy
from streamml.models.runtime import BaseRuntime, ModelRuntime
from streamml.models.signature import Array, TensorSpec, listed

__all__ = ["Cascade", "Ensemble", "Postprocess", "Preprocess", "pipeline_of"]

Arrays = Mapping[str, Array]


class _Composed(BaseRuntime):
    """A runtime over others, which it loads, warms up and closes."""

    def __init__(
        self,
        members: Sequence[ModelRuntime],
        title: str,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
    ) -> None:
        super().__init__(title, inputs, outputs)
        self.members = tuple(members)

    def _load(self) -> None:
        loaded: list[ModelRuntime] = []
        try:
            for member in self.members:
                member.load()
                loaded.append(member)
            self._fit()
        except BaseException:
            for member in loaded:
                member.close()
            raise

    def _fit(self) -> None:
        """Work out inputs and outputs from those of the members, which are loaded."""

    def _close(self) -> None:
        for member in self.members:
            member.close()

    def _all_inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs that any member takes; those of one name must be of one type and shape."""
        found: dict[str, TensorSpec] = {}
        for member in self.members:
            for spec in member.inputs:
                if found.setdefault(spec.name, spec) != spec:
                    msg = (
                        f"{self.title}: its members want different things as {spec.name!r}: {found[spec.name]}, {spec}"
                    )
                    raise ModelError(msg)
        return tuple(found.values())

    def _shared_outputs(self, kinds: str) -> tuple[TensorSpec, ...]:
        """Return the outputs that all members have, of the wanted kinds of type."""
        first, *others = ({spec.name: spec for spec in member.outputs} for member in self.members)
        return tuple(
            spec
            for name, spec in first.items()
            if all(_alike(spec, other.get(name)) for other in others)
            and np.dtype(object if spec.dtype == "str" else spec.dtype).kind in kinds
        )


class Preprocess(_Composed):
    """A function before a model.

    Args:
        function: from the inputs by name to those of the model by name.
        model: the model.
        inputs: the inputs of the function.
        title: how messages name it.

    >>> import numpy as np
    >>> from streamml.models.callable_model import CallableModel
    >>> x = TensorSpec("x", "float64", (None,))
    >>> model = Preprocess(lambda given: {"x": np.log1p(given["x"])}, CallableModel(lambda i: i["x"], [x], [x]), [x])
    >>> model.load()
    >>> model.predict({"x": np.array([0.0])})
    {'x': array([0.])}
    """

    def __init__(
        self,
        function: Callable[[dict[str, Array]], Arrays],
        model: ModelRuntime,
        inputs: Sequence[TensorSpec] = (),
        *,
        title: str = "preprocessing",
    ) -> None:
        super().__init__([model], title, inputs)
        self._function = function

    def _fit(self) -> None:
        self._outputs = tuple(self.members[0].outputs)

    def _run(self, inputs: Arrays) -> Any:
        made = self._function(dict(inputs))
        if not isinstance(made, Mapping):
            msg = f"{self.title}: wanted the inputs of the model by name, got {type(made).__name__}"
            raise ModelError(msg)
        return self.members[0].predict(made)


class Postprocess(_Composed):
    """A function after a model.

    Args:
        model: the model.
        function: from the outputs of the model by name to the outputs.
        outputs: the outputs of the function.
        title: how messages name it.
    """

    def __init__(
        self,
        model: ModelRuntime,
        function: Callable[[dict[str, Array]], Any],
        outputs: Sequence[TensorSpec] = (),
        *,
        title: str = "postprocessing",
    ) -> None:
        super().__init__([model], title, (), outputs)
        self._function = function

    def _fit(self) -> None:
        self._inputs = tuple(self.members[0].inputs)

    def _run(self, inputs: Arrays) -> Any:
        return self._function(self.members[0].predict(inputs))


class Ensemble(_Composed):
    """Models that score together. Each gets the inputs that it takes.

    Args:
        members: the models.
        how: `mean` gives the mean of each output of floats that all members have; `vote` gives for each other output
            that all have (labels) the value with the most votes, of equal ones the smallest.
        weights: how much each member counts; empty: all the same.
        title: how messages name it.
    """

    def __init__(
        self,
        members: Sequence[ModelRuntime],
        *,
        how: str = "mean",
        weights: Sequence[float] = (),
        title: str = "ensemble",
    ) -> None:
        super().__init__(members, title)
        if how not in ("mean", "vote") or not members:
            msg = f"{title}: wanted members, and 'mean' or 'vote', got {len(members)} members and {how!r}"
            raise ModelError(msg)
        given = np.asarray(weights or [1.0] * len(members), dtype=np.float64)
        if given.shape != (len(members),) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
            msg = f"{title}: wanted {len(members)} weights of at least 0 and not all 0, got {list(weights)}"
            raise ModelError(msg)
        self.how, self.weights = how, given / given.sum()

    def _fit(self) -> None:
        self._inputs = self._all_inputs()
        self._outputs = self._shared_outputs("f" if self.how == "mean" else "iubO")
        if not self._outputs:
            kind = "of floats" if self.how == "mean" else "of labels"
            sides = "; ".join(listed(member.outputs) for member in self.members)
            msg = f"{self.title}: its members have no output {kind} of the same name and shape: {sides}"
            raise ModelError(msg)

    def _run(self, inputs: Arrays) -> Any:
        found = [_predict(member, inputs) for member in self.members]
        combine = self._mean if self.how == "mean" else self._vote
        return {spec.name: combine([arrays[spec.name] for arrays in found], spec) for spec in self._outputs}

    def _mean(self, arrays: Sequence[Array], spec: TensorSpec) -> Array:
        total = np.zeros(arrays[0].shape, np.float64)
        for weight, array in zip(self.weights, arrays, strict=True):
            total += weight * array
        return total.astype(spec.dtype)

    def _vote(self, arrays: Sequence[Array], spec: TensorSpec) -> Array:
        values = np.unique(np.concatenate([array.reshape(-1) for array in arrays]))  # rising
        votes = np.zeros((len(values), *arrays[0].shape))
        for weight, array in zip(self.weights, arrays, strict=True):
            for at, value in enumerate(values):
                votes[at] += weight * (array == value)
        # Weights that add up to the same in another order may differ in the last bits.
        best = votes >= votes.max(axis=0) - 1e-9 if len(values) else votes.astype(bool)
        chosen = values[best.argmax(axis=0)] if len(values) else arrays[0]
        return np.asarray(chosen, dtype=object if spec.dtype == "str" else spec.dtype)


class Cascade(_Composed):
    """A cheap model, and a large one for the rows of which the cheap one is not sure.

    The outputs are those that both have, and `stage`: 1 for the rows that the large one scored, else 0.

    Args:
        first: the cheap model.
        second: the large one; it is asked for rows whose score is from `low` to `high`, or NaN.
        output: output of the first one with the score, one for each row.
        low: lower limit.
        high: upper limit.
        title: how messages name it.
    """

    def __init__(
        self,
        first: ModelRuntime,
        second: ModelRuntime,
        *,
        output: str,
        low: float,
        high: float,
        title: str = "cascade",
    ) -> None:
        super().__init__([first, second], title)
        if not low <= high:
            msg = f"{title}: wanted low <= high, got {low} and {high}"
            raise ModelError(msg)
        self.output, self.low, self.high = output, low, high

    def _fit(self) -> None:
        self._inputs = self._all_inputs()
        shared = self._shared_outputs("fiubO")
        score = next((spec for spec in self.members[0].outputs if spec.name == self.output), None)
        if score is None or len(score.shape) > 2 or score.shape[1:] not in ((), (1,)) or not shared:
            sides = "; ".join(listed(member.outputs) for member in self.members)
            msg = f"{self.title}: wanted {self.output!r}, one for each row, and outputs that both have, got {sides}"
            raise ModelError(msg)
        if any(spec.name == "stage" for spec in shared):
            msg = f"{self.title}: 'stage' is the output that says which model scored; rename that of its members"
            raise ModelError(msg)
        self._outputs = (*shared, TensorSpec("stage", "int64", (None,)))

    def _run(self, inputs: Arrays) -> Any:
        found = _predict(self.members[0], inputs)
        score = found[self.output].reshape(-1)
        unsure = ~((score < self.low) | (score > self.high))
        found = {spec.name: found[spec.name] for spec in self._outputs[:-1]}
        if unsure.any():
            asked = _predict(self.members[1], {name: array[unsure] for name, array in inputs.items()})
            for name, array in found.items():
                found[name] = array = array.copy()
                array[unsure] = asked[name]
        return {**found, "stage": unsure.astype(np.int64)}


def pipeline_of(
    model: ModelRuntime,
    said: PipelineOf,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    policy: Policy,
    title: str,
) -> ModelRuntime:
    """Build what a description says, with functions that the policy allows.

    Raises:
        ModelError: a function is not allowed or not there, or none is named.
    """
    if not said.before and not said.after:
        msg = f"{title}: wanted a function before or after the model; without one, use the model itself"
        raise ModelError(msg)
    if said.after:
        model = Postprocess(model, import_named(title, said.after, policy), outputs, title=title)
    if said.before:
        model = Preprocess(import_named(title, said.before, policy), model, inputs, title=title)
    return model


def _predict(member: ModelRuntime, inputs: Arrays) -> dict[str, Array]:
    return member.predict({spec.name: inputs[spec.name] for spec in member.inputs})


def _alike(one: TensorSpec, other: TensorSpec | None) -> bool:
    """Return whether two outputs differ in nothing; a size that only one of them names may be any."""
    if other is None or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    return all(None in pair or pair[0] == pair[1] for pair in zip(one.shape, other.shape, strict=True))
