"""Models that train alone may be compiled: the same numbers, and plain names in their files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.search.trial import Claim
from tests.unit.training.helpers import SmallDigits, digits, engine, job, load
from tests.unit.training.references import covers
from tests.unit.training.test_backends import CPU, Counting, trained
from worker.tasks.base import model_of
from worker.training.compute.backends import Backends
from worker.training.compute.compiler import CACHE_VARIABLE, Compiler
from worker.training.engine.engine import Engine
from worker.training.outcome.evaluate import load as load_saved


class Branching(SmallDigits):
    """Draws its own noise, keeps running statistics and branches on data: it trains alone."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16)
                self.out = nn.Linear(16, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                h = torch.relu(self.norm(self.first(inputs)))
                h = nn.functional.dropout(h, 0.1, self.training)
                if h.mean() > 100:
                    h = h / 2
                return self.out(h)

        return Net()


class Quick(Compiler):
    """Traces modules as torch.compile does, and runs the graphs as they are. Counts."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        super().__init__(folder)
        self.compiled: list[str] = []
        self._error = error

    def missing(self) -> str | None:
        return None

    def compile_module(self, module: nn.Module, key: str) -> Callable[[Any], Any]:
        self.compiled.append(key)
        if self._error is None:
            return torch.compile(module, backend="eager")

        def fail(inputs: Any) -> Any:
            raise self._error  # type: ignore[misc]

        return fail


def with_compiler(compiler: Compiler, said: list[str], task: Any = None, **more: Any) -> Engine:
    through = engine(task or Branching(), log=said.append, **more)
    through.builder.backends = Backends(CPU, said.append, compiler=compiler)
    return through


def jobs(compiled: bool, n: int = 2, **more: Any) -> list[Claim]:
    return [job(i, 2, learning_rate=0.05, compile=compiled, **more) for i in range(n)]


@covers(compile=(False, True))
def test_compiled_steps_give_the_numbers_of_plain_ones(tmp_path: Path) -> None:
    said: list[str] = []
    compiler = Quick(tmp_path)
    found = trained(jobs(True), with_compiler(compiler, said))
    plain = trained(jobs(False), engine(Branching()))
    assert len(compiler.compiled) == 2 and len(set(compiler.compiled)) == 1
    assert sum("compiled: " in line for line in said) == 1
    for name, outcome in found.items():
        assert outcome.checkpoint is not None and plain[name].checkpoint is not None
        one, other = load(outcome.checkpoint()), load(plain[name].checkpoint())
        assert one["model"].keys() == other["model"].keys()
        for key, tensor in one["model"].items():
            assert torch.allclose(tensor, other["model"][key], atol=1e-9), key
        assert outcome.curves["val_loss"] == pytest.approx(plain[name].curves["val_loss"])


def test_a_checkpoint_of_compiled_steps_loads_into_the_plain_model(tmp_path: Path) -> None:
    found = trained(jobs(True, 1), with_compiler(Quick(tmp_path / "cache"), []))
    (outcome,) = found.values()
    assert outcome.checkpoint is not None
    path = tmp_path / "one.pt"
    path.write_bytes(outcome.checkpoint())
    content = load(outcome.checkpoint())
    module = Branching().model({}).double()
    assert not [name for name in content["model"] if "_orig_mod" in name]
    module.load_state_dict(content["model"])
    saved = load_saved(path, Branching(), "digits", CPU)
    inputs = digits().val.inputs.double()
    assert torch.equal(saved.outputs(inputs), module.eval()(inputs))  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    compiler = Quick(tmp_path, RuntimeError("ld: cannot find -lgomp\nmore"))
    found = trained(jobs(True), with_compiler(compiler, said))
    plain = trained(jobs(False), engine(Branching()))
    assert [line for line in said if "compiled" in line] == [
        "steps are not compiled: RuntimeError: ld: cannot find -lgomp; training goes on without"
    ]
    for name, outcome in found.items():
        assert outcome.curves["train_loss"] == plain[name].curves["train_loss"]


def test_without_a_compiler_it_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said: list[str] = []
    through = with_compiler(Compiler(tmp_path), said)
    found = trained(jobs(True), through)
    assert {outcome.state.value for outcome in found.values()} == {"completed"}
    assert [line for line in said if "compiled" in line] == [
        "steps are not compiled: no C++ compiler (no-such-compiler) is installed; "
        "training goes on without"
    ]
    assert through.backend == "eager: no C++ compiler (no-such-compiler) is installed, 1 at a time"


def test_a_compiled_module_that_differs_is_not_used(tmp_path: Path) -> None:
    class Wrong(Quick):
        def compile_module(self, module: nn.Module, key: str) -> Callable[[Any], Any]:
            return lambda inputs: 1.01 * module(inputs)

    said: list[str] = []
    found = trained(jobs(True, 1), with_compiler(Wrong(tmp_path), said))
    plain = trained(jobs(False, 1), engine(Branching()))
    assert any("of a prepared step differs" in line for line in said)
    for name, outcome in found.items():
        assert outcome.curves["train_loss"] == plain[name].curves["train_loss"]


def test_a_model_with_a_state_of_its_own_is_not_compiled(tmp_path: Path) -> None:
    said: list[str] = []
    compiler = Quick(tmp_path)
    trained(jobs(True), with_compiler(compiler, said, Counting()))
    assert compiler.compiled == []
    assert any("not compiled: it would be compiled again and again" in line for line in said)


class Layered(SmallDigits):
    """Trains alone, and has an activation layer."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Sequential):
            def forward(self, inputs: Tensor) -> Tensor:
                h = super().forward(inputs)
                return h / 2 if h.mean() > 100 else h

        return Net(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_a_penalty_on_activations_is_told_and_trained_by_plain_steps(tmp_path: Path) -> None:
    said: list[str] = []
    compiler = Quick(tmp_path)
    ended = trained(jobs(True, activation_l1=1e-3), with_compiler(compiler, said, Layered()))
    assert all(outcome.array_width == 1 for outcome in ended.values())
    assert compiler.compiled == []
    assert any("not compiled: activation_l1 reads activations" in line for line in said)


def test_models_that_are_stacked_choose_by_themselves(tmp_path: Path) -> None:
    compiler = Quick(tmp_path)
    found = trained(jobs(True), with_compiler(compiler, [], SmallDigits(), width=2))
    assert {outcome.array_width for outcome in found.values()} == {2}
    assert compiler.compiled == []


def test_a_model_that_the_task_has_compiled_is_the_plain_one() -> None:
    class Compiled(SmallDigits):
        def model(self, hp: Any) -> nn.Module:
            module: Any = torch.compile(super().model(hp))
            return module

    ones = [job(i, 1) for i in range(2)]
    through = engine(Compiled(), width=2)
    for name, outcome in trained(ones, through).items():
        assert outcome.checkpoint is not None and outcome.array_width == 2
        model = load(outcome.checkpoint())["model"]
        hp = next(one for one in ones if one.id == name).trial.hyperparameters
        assert model.keys() == model_of(Compiled(), hp).state_dict().keys()
        assert not [key for key in model if "_orig_mod" in key]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_real_compiler_keeps_its_code_in_the_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")  # restored at the end
    said: list[str] = []
    found = trained(jobs(True, 1), with_compiler(Compiler(tmp_path / "cache"), said))
    plain = trained(jobs(False, 1), engine(Branching()))
    assert any("compiled: " in line for line in said), said
    assert list((tmp_path / "cache").rglob("*.so"))
    for name, outcome in found.items():
        assert outcome.curves["train_loss"] == pytest.approx(plain[name].curves["train_loss"])
