from __future__ import annotations

import re

import pytest

from streamml.errors import ModelError
from streamml.models import Policy


@pytest.mark.parametrize(
    ("allow", "name", "allowed"),
    [
        ((), "my.module:f", False),
        (("my.module",), "my.module:f", True),
        (("my.module",), "my.module.sub:f", False),
        (("my.module",), "my.module2:f", False),
        (("my.module:f",), "my.module:f", True),
        (("my.module:f",), "my.module:g", False),
        (("my.*",), "my.module:f", True),
        (("my.*",), "my:f", True),
        (("my.*",), "mine:f", False),
        (("torch.jit",), "torch.jit", True),
        (("torch.jit",), "torch.export", False),
        (("*",), "my.module:f", False),
    ],
)
def test_code_is_allowed_by_its_name_only(allow: tuple[str, ...], name: str, allowed: bool) -> None:
    assert Policy(allow=allow).allows(name) is allowed


def test_the_refusal_says_how_to_allow_it() -> None:
    text = (
        "model m: it runs code, 'my.module:f', which is not allowed (allowed: other); if you trust it, allow it by "
        "name: Policy(allow=('my.module',)) or STREAMML_ALLOW_CODE=my.module"
    )
    with pytest.raises(ModelError, match=re.escape(text)):
        Policy(allow=("other",)).check_code("model m", "my.module:f")


def test_the_environment_gives_the_default() -> None:
    key = "ab" * 32
    environ = {"STREAMML_ALLOW_CODE": "a.b, c", "STREAMML_TRUSTED_KEYS": key, "STREAMML_REQUIRE_SIGNATURE": "1"}
    assert Policy.from_env(environ) == Policy(("a.b", "c"), (key,), True)
    assert Policy.from_env({}) == Policy()


def test_a_policy_that_anyone_could_satisfy_is_refused() -> None:
    with pytest.raises(ModelError, match=re.escape("require_signature wants trusted_keys as well")):
        Policy(require_signature=True)


def test_a_word_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(ModelError, match=re.escape("STREAMML_REQUIRE_SIGNATURE: wanted 1 or 0, got 'ja'")):
        Policy.from_env({"STREAMML_REQUIRE_SIGNATURE": "ja"})
