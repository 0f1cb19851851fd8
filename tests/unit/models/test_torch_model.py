"""PyTorch models against direct calls of torch."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.errors import ModelError, ModelMemoryError
from streamml.models import (
    Policy,
    RuntimeOptions,
    TensorSpec,
    TorchModuleModel,
    TorchScriptModel,
    describe,
    open_model,
    package,
)
from streamml.models.torch_model import TorchExportModel

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # importing torch alone takes seconds

X, Y = TensorSpec("x", "float32", (None, 3)), TensorSpec("y", "float32", (None, 2))
SUM, TOTAL = TensorSpec("sum", "float32", (None, 2)), TensorSpec("total", "float32", (None,))
ALLOWED = Policy(allow=("torch.jit", "torch.export", "nets"))
NETS = """
import pathlib
import torch

class Net(torch.nn.Module):
    def __init__(self, width: int = 2):
        super().__init__()
        self.layer = torch.nn.Linear(3, width)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, y):
        hidden = self.drop(self.layer(x))
        return {"sum": hidden + y, "total": x.sum(1)}

class Pair(Net):
    def forward(self, x, y):
        return self.layer(x) + y, x.sum(1)

class Huge(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(x.shape[0], 10_000_000_000_000)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    torch.manual_seed(1)
    import nets  # type: ignore[import-not-found,unused-ignore]

    return nets


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {name: random.normal(size=(40, n)).astype(np.float32) for name, n in (("x", 3), ("y", 2))}


def direct(net: Any, rows: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The oracle: torch alone, on one thread as the runtime by default."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = net.eval()(torch.from_numpy(rows["x"]), torch.from_numpy(rows["y"]))
    return [tensor.numpy() for tensor in (found.values() if isinstance(found, dict) else found)]


def scripted(net: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so
        torch.jit.script(net.eval()).save(str(path))
    return path


def saved(net: Any, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


def same(found: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    for array, wanted in zip(found.values(), expected, strict=True):
        assert array.tobytes() == wanted.tobytes()


def test_a_torchscript_file_gives_the_bits_of_torch(nets: Any, rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    net = nets.Pair()
    model = TorchScriptModel(scripted(net, tmp_path / "pair.pt"), [X, Y], [SUM, TOTAL], policy=ALLOWED)
    model.load()
    model.warm_up()
    same(model.predict(rows), direct(net, rows))


def test_a_module_with_weights_gives_the_bits_of_torch_in_evaluation_mode(
    nets: Any, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    net = nets.Net(width=2)
    model = TorchModuleModel(
        "nets:Net", saved(net, tmp_path / "s.pth"), [X, Y], [SUM, TOTAL], arguments={"width": 2}, policy=ALLOWED
    )
    model.load()
    found = model.predict(rows)
    assert list(found) == ["sum", "total"]
    same(found, direct(net, rows))


def test_a_module_is_exported_with_a_batch_of_any_size_and_describes_itself(
    nets: Any, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    net = nets.Net()
    made = package(net, tmp_path / "b", name="net", version=1, features=list("abcde"), golden=rows, policy=ALLOWED)
    assert net.training, "packaging changed the module"
    assert [str(spec) for spec in made.manifest.inputs] == ["x: float32[?, 3]", "y: float32[?, 2]"]
    model = TorchExportModel(tmp_path / "b" / "model.pt2", policy=ALLOWED)
    model.load()
    assert [str(spec) for spec in model.outputs] == ["sum: float32[?, 2]", "total: float32[?]"]
    for count in (1, 2, 40):
        some = {name: array[:count] for name, array in rows.items()}
        same(model.predict(some), direct(net, some))


def test_an_archive_with_positional_arguments_and_a_tuple_is_read(
    nets: Any, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    net = nets.Pair().eval()
    batch = torch.export.Dim("batch")
    given = tuple(torch.from_numpy(rows[name]) for name in "xy")
    for args, kwargs in ((given, {}), (given[:1], {"y": given[1]})):
        shapes = {"x": {0: batch}, "y": {0: batch}}
        torch.export.save(torch.export.export(net, args, kwargs, dynamic_shapes=shapes), tmp_path / "pair.pt2")
        model = open_model(tmp_path / "pair.pt2", list("abcde"), policy=ALLOWED)
        assert [str(spec) for spec in model.outputs] == ["output_0: float32[?, 2]", "output_1: float32[?]"]
        same(model.runtime.predict(rows), direct(net, rows))
        model.close()


@pytest.mark.parametrize("kind", ["torchscript", "torch-module"])
def test_a_bundle_says_what_the_file_can_not(nets: Any, rows: dict[str, np.ndarray], tmp_path: Path, kind: str) -> None:
    net = nets.Pair()
    if kind == "torchscript":
        source = scripted(net, tmp_path / "pair.pt")
    else:
        saved(net, tmp_path / "pair.pth")
        said = describe.TorchClass(module="nets:Pair", state="pair.pth", outputs=(SUM, TOTAL))
        source = describe.write_description(tmp_path / "pair.json", said)
    package(source, tmp_path / "b", name="net", version=3, features=list("abcde"), golden=rows, policy=ALLOWED)
    with open_model(tmp_path / "b", policy=ALLOWED) as model:
        names = ["output_0", "output_1"] if kind == "torchscript" else ["sum", "total"]
        assert model.output_names == tuple(names)
        columns = [*rows["x"].T.tolist(), *rows["y"].T.tolist()]
        expected = direct(net, rows)
        assert model.score(columns, 40) == {names[0]: expected[0].tolist(), names[1]: expected[1].tolist()}


@pytest.mark.parametrize(("kind", "name"), [("pt", "torch.jit"), ("pt2", "torch.export"), ("json", "nets:Net")])
def test_nothing_is_loaded_that_is_not_allowed_by_name(nets: Any, tmp_path: Path, kind: str, name: str) -> None:
    del sys.modules["nets"]
    path = tmp_path / f"model.{kind}"
    path.write_bytes(b"not even read")
    if kind == "json":
        (tmp_path / "s.pth").write_bytes(b"not even read")
        describe.write_description(path, describe.TorchClass(module="nets:Net", state="s.pth"))
    with pytest.raises(ModelError, match=re.escape(f"it runs code, {name!r}, which is not allowed")):
        open_model(path, policy=Policy(allow=("other",)))
    assert "nets" not in sys.modules


def test_weights_that_are_a_pickle_of_anything_else_are_refused_and_do_not_run(nets: Any, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "s.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"layer.weight": Evil()}, tmp_path / "zip.pth")
    for name in ("s.pth", "zip.pth"):
        with pytest.raises(ModelError, match=re.escape(f"can't read {name}")):
            TorchModuleModel("nets:Net", tmp_path / name, [X, Y], policy=ALLOWED).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pt", "pt2", "pth"])
def test_a_file_that_is_cut_short_is_refused(nets: Any, rows: dict[str, np.ndarray], tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        scripted(nets.Pair(), path)
        model: Any = TorchScriptModel(path, [X, Y], policy=ALLOWED)
    elif kind == "pt2":
        given = tuple(torch.from_numpy(rows[name]) for name in "xy")
        torch.export.save(torch.export.export(nets.Pair().eval(), given), path)
        model = TorchExportModel(path, policy=ALLOWED)
    else:
        model = TorchModuleModel("nets:Net", saved(nets.Net(), path), [X, Y], policy=ALLOWED)
    data = path.read_bytes()
    for part in (data[: len(data) // 2], data[:-40], b""):
        path.write_bytes(part)
        with pytest.raises(ModelError, match=rf"torch .* can't read {path.name}"):
            model.load()
    path.unlink()
    with pytest.raises(ModelError, match="there is no file"):
        model.load()


def test_weights_of_another_shape_are_refused(nets: Any, tmp_path: Path) -> None:
    model = TorchModuleModel("nets:Net", saved(nets.Net(width=5), tmp_path / "s.pth"), [X, Y], policy=ALLOWED)
    with pytest.raises(ModelError, match=re.escape("the weights of s.pth do not fit it, built with {} (")):
        model.load()


def test_outputs_that_are_not_those_described_are_refused(
    nets: Any, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = scripted(nets.Pair(), tmp_path / "pair.pt")
    for outputs, text in (
        ([SUM], "wanted the outputs sum: float32[?, 2], got 2 arrays without name"),
        ([SUM, X], "wanted output x: float32[?, 3], got float32[40]"),
        ([SUM, TensorSpec("total", "int64", (None,))], "wanted output total: int64[?], got float32[40]"),
    ):
        model = TorchScriptModel(path, [X, Y], outputs, policy=ALLOWED)
        model.load()
        with pytest.raises(ModelError, match=re.escape(text)):
            model.predict(rows)


def test_a_lack_of_memory_is_told_from_other_failures(nets: Any, tmp_path: Path) -> None:
    model = TorchScriptModel(scripted(nets.Huge(), tmp_path / "huge.pt"), [X], policy=ALLOWED)
    model.load()
    with pytest.raises(ModelMemoryError, match=re.escape("out of memory on x[4, 3]")):
        model.predict({"x": np.zeros((4, 3), np.float32)})


def test_arrays_that_can_not_be_written_are_taken_without_a_warning(nets: Any, tmp_path: Path) -> None:
    model = TorchScriptModel(scripted(nets.Pair(), tmp_path / "pair.pt"), [X, Y], policy=ALLOWED)
    model.load()
    x, y = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)[:, ::2]
    x.flags.writeable = False
    assert model.predict({"y": y, "x": x})["output_1"].tolist() == [3.0, 3.0]


def test_threads_are_those_of_the_budget_of_the_process(nets: Any, tmp_path: Path) -> None:
    """In a process of its own: four models that want eight threads each, in a budget of two."""
    scripted(nets.Pair(), tmp_path / "pair.pt")
    program = textwrap.dedent(
        """
        import sys, numpy as np, torch
        from streamml.models import Policy, RuntimeOptions, TensorSpec, TorchScriptModel
        inputs = [TensorSpec("x", "float32", (None, 3)), TensorSpec("y", "float32", (None, 2))]
        policy, options, seen = Policy(allow=("torch.jit",)), RuntimeOptions(threads=8), []
        models = [TorchScriptModel(sys.argv[1], inputs, policy=policy, options=options) for _ in range(4)]
        for model in models:
            model.load()
        for model in models:
            model.predict({"x": np.zeros((5, 3), np.float32), "y": np.zeros((5, 2), np.float32)})
            seen.append(torch.get_num_threads())
        models[0].close()
        again = TorchScriptModel(sys.argv[1], inputs, policy=policy, options=options)
        again.load()
        again.predict({"x": np.zeros((5, 3), np.float32), "y": np.zeros((5, 2), np.float32)})
        print(seen, torch.get_num_threads())
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "pair.pt")],
        env={"STREAMML_THREADS": "2", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[2, 1, 1, 1] 2"


def test_importing_the_module_does_not_import_torch() -> None:
    program = "import sys, streamml.models.torch_model; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=re.escape("pip install 'streamml[torch]'")):
        TorchScriptModel(tmp_path / "model.pt", policy=ALLOWED, options=RuntimeOptions()).load()


def test_a_module_that_needs_a_fixed_batch_is_not_exported(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(2, 3) * 2

    with pytest.raises(ModelError, match="exporting Fixed: it can't be exported with a batch of any size"):
        package(Fixed(), tmp_path / "b", name="n", version=1, features=[], golden={"x": np.zeros((2, 3), np.float32)})
    assert not (tmp_path / "b").exists()
