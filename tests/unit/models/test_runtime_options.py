from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamml.errors import ModelError
from streamml.models import RuntimeOptions, open_model


def test_the_environment_gives_the_default() -> None:
    environ = {
        "STREAMML_MODEL_THREADS": "3",
        "STREAMML_ONNX_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider",
        "STREAMML_TORCH_DEVICE": "cuda:1",
    }
    wanted = RuntimeOptions(3, ("CUDAExecutionProvider", "CPUExecutionProvider"), "cuda:1")
    assert RuntimeOptions.from_env(environ) == wanted
    assert RuntimeOptions.from_env({}) == RuntimeOptions(1, ("CPUExecutionProvider",), "cpu")


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_that_are_no_number_above_none_are_refused(threads: str) -> None:
    with pytest.raises(ModelError, match="wanted"):
        RuntimeOptions.from_env({"STREAMML_MODEL_THREADS": threads})


def test_the_environment_reaches_the_session(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMML_ONNX_PROVIDERS", "SpecialExecutionProvider")
    with pytest.raises(ModelError, match=re.escape("this onnxruntime has no SpecialExecutionProvider")):
        open_model(linear)
    open_model(linear, options=RuntimeOptions()).close()
