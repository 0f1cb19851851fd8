"""User code that is named as `module:name`, imported only when the policy allows it."""

from __future__ import annotations

import importlib
from typing import Any

from streamml.errors import ModelError, suggest
from streamml.models.policy import Policy

__all__ = ["import_named"]


def import_named(where: str, name: str, policy: Policy) -> Any:
    """Import what `module:name` means.

    Raises:
        ModelError: it is not allowed, can't be imported, or the module has no such name.

    >>> import_named("model m", "math:sqrt", Policy(allow=("math",)))(9.0)
    3.0
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        msg = f"{where}: wanted code as 'module:name', got {name!r}"
        raise ModelError(msg)
    policy.check_code(where, name)
    try:
        found = importlib.import_module(module)
    except Exception as exc:  # the module's own code may raise anything
        msg = f"{where}: {module!r} can't be imported ({type(exc).__name__}: {exc}); is it installed where this runs?"
        raise ModelError(msg) from exc
    if not hasattr(found, attribute):
        public = [known for known in vars(found) if not known.startswith("_")]
        msg = f"{where}: {module!r} has no {attribute!r}. {suggest(attribute, public)}"
        raise ModelError(msg)
    return getattr(found, attribute)
