"""What may be loaded: code that is allowed by name, and signatures that are trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from streamml.errors import ModelError

__all__ = ["Policy"]

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Policy:
    """Decides what may be loaded. The default allows no code and asks for no signature.

    Args:
        allow: code that may run, by name: `my.module`, `my.module:function`, `my.package.*` for all modules below;
            `torch.jit` for TorchScript files and `torch.export` for `.pt2` archives, which are programs too.
        trusted_keys: public keys in hex, or PEM files with them. If there are any, a signed bundle must be signed by
            one of them.
        require_signature: refuse what is not signed, bare model files too.

    >>> policy = Policy(allow=("my.models", "tools.*"))
    >>> policy.allows("my.models:score"), policy.allows("tools.text:clean"), policy.allows("my:score")
    (True, True, False)
    """

    allow: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()
    require_signature: bool = False

    def __post_init__(self) -> None:
        for field in ("allow", "trusted_keys"):
            given = getattr(self, field)
            object.__setattr__(self, field, (given,) if isinstance(given, str) else tuple(map(str, given)))
        if self.require_signature and not self.trusted_keys:
            msg = "policy: require_signature wants trusted_keys as well, since anyone can sign with a key of their own"
            raise ModelError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the policy from `STREAMML_ALLOW_CODE`, `STREAMML_TRUSTED_KEYS` and `STREAMML_REQUIRE_SIGNATURE`.

        The first two are lists with commas.

        >>> Policy.from_env({"STREAMML_ALLOW_CODE": "my.models, torch.jit"}).allow
        ('my.models', 'torch.jit')
        """
        allow, keys = (
            tuple(name.strip() for name in environ.get(variable, "").split(",") if name.strip())
            for variable in ("STREAMML_ALLOW_CODE", "STREAMML_TRUSTED_KEYS")
        )
        said = environ.get("STREAMML_REQUIRE_SIGNATURE", "").strip().lower()
        if said not in _YES + _NO:
            msg = f"STREAMML_REQUIRE_SIGNATURE: wanted 1 or 0, got {said!r}"
            raise ModelError(msg)
        return cls(allow, keys, said in _YES)

    def allows(self, name: str) -> bool:
        """Return whether `module` or `module:name` may run."""
        module = name.partition(":")[0]
        return any(
            allowed in (name, module) or (allowed.endswith(".*") and f"{module}.".startswith(allowed[:-1]))
            for allowed in self.allow
        )

    def check_code(self, where: str, name: str) -> None:
        """Refuse code that is not allowed.

        Raises:
            ModelError: `name` is not allowed.
        """
        if not self.allows(name):
            module = name.partition(":")[0]
            msg = (
                f"{where}: it runs code, {name!r}, which is not allowed (allowed: {', '.join(self.allow) or 'none'}); "
                f"if you trust it, allow it by name: Policy(allow=({module!r},)) or STREAMML_ALLOW_CODE={module}"
            )
            raise ModelError(msg)
