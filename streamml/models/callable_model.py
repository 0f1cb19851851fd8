"""A Python function, or an object with state, as a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamml.errors import ModelError
from streamml.models.code import import_named
from streamml.models.policy import Policy
from streamml.models.runtime import BaseRuntime
from streamml.models.signature import Array, TensorSpec

__all__ = ["CallableModel"]


class CallableModel(BaseRuntime):
    """A function from named NumPy arrays to named NumPy arrays (or to one array, if there is one output).

    A class is built once, when the model is loaded, and the object is then called; its `close`, if it has one, is
    called in the end.

    Args:
        function: `module:name`, which the policy must allow; or the function itself.
        inputs: its inputs.
        outputs: its outputs.
        arguments: keyword arguments with which a class is built.
        policy: which code may run; default: from the environment.
        title: how messages name the model.

    >>> import numpy as np
    >>> x, y = TensorSpec("x", "float64", (None,)), TensorSpec("y", "float64", (None,))
    >>> double = CallableModel(lambda arrays: {"y": 2 * arrays["x"]}, [x], [y])
    >>> double.load()
    >>> double.predict({"x": np.array([1.0, 2.0])})["y"].tolist()
    [2.0, 4.0]
    """

    def __init__(
        self,
        function: str | Callable[[dict[str, Array]], Any],
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        *,
        arguments: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        title: str = "",
    ) -> None:
        name = function if isinstance(function, str) else getattr(function, "__qualname__", repr(function))
        super().__init__(title or f"model {name}", inputs, outputs)
        if isinstance(function, str):
            policy = policy or Policy.from_env()
            policy.check_code(self.title, function)
        self._function, self._policy = function, policy
        self._arguments = dict(arguments or {})
        self._call: Any = None

    def _load(self) -> None:
        found: Any = self._function
        if isinstance(found, str):
            found = import_named(self.title, found, self._policy or Policy.from_env())
        if inspect.isclass(found):
            try:
                found = found(**self._arguments)
            except Exception as exc:
                said = f"{type(exc).__name__}: {exc}"
                msg = f"{self.title}: it can't be built with {self._arguments} ({said}); see its arguments"
                raise ModelError(msg) from exc
        elif self._arguments:
            msg = f"{self.title}: a function takes no arguments from the description; wanted a class"
            raise ModelError(msg)
        if not callable(found):
            msg = f"{self.title}: wanted a function or a class whose objects can be called, got {type(found).__name__}"
            raise ModelError(msg)
        self._call = found

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        return self._call(dict(inputs))

    def _close(self) -> None:
        call, self._call = self._call, None
        if not inspect.isfunction(call) and callable(close := getattr(call, "close", None)):
            close()
