"""Steps that are traced or compiled do what eager steps do, and whatever fails costs nothing."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.search.trial import Claim
from tests.unit.training.helpers import FreeWatch, SmallDigits, engine, job, load, weights
from worker.training.compute.backends import Backends, run_until
from worker.training.compute.compiler import Compiler, Costs
from worker.training.engine.array import TrialArray
from worker.training.engine.engine import Engine, Outcome
from worker.training.model.look import Look

CPU = torch.device("cpu")
EVERYTHING = {
    "weight_decay": 1e-2,
    "l1": 1e-3,
    "activation_l1": 1e-3,
    "clip_norm": 0.5,
    "clip_value": 0.2,
    "max_norm": 1.5,
    "ema": 0.9,
    "label_smoothing": 0.1,
}


class Images(SmallDigits):
    """A convolutional net with running statistics, its images two by two pixels large."""

    image_shape = (1, 8, 8)

    def model(self, hp: Any) -> nn.Module:
        layers = [
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(3),
            nn.Dropout(0.2),
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 10))


class Counting(SmallDigits):
    """A model that does something else at each call: a graph would freeze it."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(64, 10)
                self.calls = [0]

            def forward(self, x: Tensor) -> Tensor:
                self.calls[0] += 1
                return self.layer(x) * (1 + 0.01 * self.calls[0])

        return Net()


class Interpreter(Compiler):
    """Compiles nothing: the graph is run as it is. Counts."""

    def __init__(self, folder: Path, cost_s: float = 1.0, error: Exception | None = None) -> None:
        super().__init__(folder)
        self.compiled = 0
        self.operations: set[str] = set()  # of all graphs
        self._error = error
        self.costs.note_cost("before", cost_s)

    def missing(self) -> str | None:
        return None

    def compile(
        self, graph: Any, examples: Sequence[Tensor], key: str
    ) -> Callable[..., Sequence[Tensor]]:
        self.compiled += 1
        self.operations |= {str(node.target) for node in graph.graph.nodes}
        if self._error is not None:
            raise self._error
        return graph


def trained(jobs: Sequence[Claim], through: Engine, watch: Any = None) -> dict[str, Outcome]:
    return {
        o.trial.id: o
        for boundary in through.train(jobs, lambda n: [], watch or FreeWatch())
        for o in boundary.ended
    }


def agree(mine: dict[str, Outcome], theirs: dict[str, Outcome], at_most: float) -> None:
    assert mine.keys() == theirs.keys()
    for name, outcome in mine.items():
        assert outcome.state == theirs[name].state and outcome.reason == theirs[name].reason
        if outcome.checkpoint is None:
            continue
        one, other = load(outcome.checkpoint()), load(theirs[name].checkpoint())
        assert (weights(one) - weights(other)).abs().max() <= at_most
        if "ema" in one:
            assert all(
                (one["ema"][key] - other["ema"][key]).abs().max() <= at_most for key in one["ema"]
            )
        assert outcome.curves["train_loss"] == pytest.approx(
            theirs[name].curves["train_loss"], abs=1e-6 + at_most
        )
        ratios = [key for key in outcome.curves if key.startswith(("update_ratio", "grad_norm"))]
        assert ratios and all(
            outcome.curves[key] == pytest.approx(theirs[name].curves[key], rel=1e-4)
            for key in ratios
        )


SPACES = {
    "perceptron": (
        SmallDigits,
        [{"dropout": 0.1 * i, "optimizer": "adam", **EVERYTHING} for i in range(3)],
    ),
    "decoupled": (
        SmallDigits,
        [{"optimizer": "adamw", "weight_decay": 0.1 * i, "decay_biases": True} for i in range(3)],
    ),
    "convolutions": (
        Images,
        [
            {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "augment_noise": 0.1 * i}
            for i in range(2)
        ],
    ),
    "alone": (Images, [{"optimizer": "rmsprop", "learning_rate": 1e-3, "weight_decay": 1e-3}]),
}


@pytest.mark.parametrize("space", SPACES)
def test_traced_steps_are_the_eager_ones(space: str) -> None:
    task, hps = SPACES[space]
    jobs = [job(i, epochs=2, **hp) for i, hp in enumerate(hps)]
    through = engine(task(), backend="traced")
    found = trained(jobs, through)
    assert through.backend.startswith("traced: ")
    agree(found, trained(jobs, engine(task(), backend="eager")), 1e-10)


def test_what_a_compiler_is_given_is_the_eager_step_with_its_noise(tmp_path: Path) -> None:
    """The graph also gives the gradients, and the noise of the step that follows."""
    jobs = [
        job(i, epochs=2, dropout=0.3, input_dropout=0.1, depth=1, weight_decay=1e-3)
        for i in range(3)
    ]
    through, compiler = engine(), Interpreter(tmp_path)
    through.builder.backends = Backends(CPU, lambda line: None, "compiled", compiler)
    agree(trained(jobs, through), trained(jobs, engine(backend="eager")), 1e-10)
    assert through.backend.startswith("compiled: ")
    # A product over old numbers would be compiled to a copy of these and a product.
    assert "aten.bmm.default" in compiler.operations
    assert not [name for name in compiler.operations if name.startswith("aten.baddbmm")]


def test_slots_at_different_epochs_and_refills_do_as_before() -> None:
    """Slots of unequal budgets are at different steps when others join.

    Each slot then has its own batches.
    """
    first, later = [job(0, epochs=1), job(1, epochs=4)], [job(i, epochs=2) for i in (2, 3)]

    def run(through: Engine) -> dict[str, Outcome]:
        queue = list(later)
        stages = through.train(
            first, lambda n: [queue.pop() for _ in range(min(n, len(queue)))], FreeWatch()
        )
        return {o.trial.id: o for boundary in stages for o in boundary.ended}

    agree(run(engine(backend="traced", width=2)), run(engine(backend="eager", width=2)), 1e-10)


@pytest.mark.slow
def test_an_explosion_stays_in_its_slot_when_steps_are_compiled(tmp_path: Path) -> None:
    """This test is the only real compilation.

    Without a compiler the trials train eagerly, and a message says so.
    """
    said: list[str] = []
    jobs = [
        job(i, epochs=2, depth=0, learning_rate=rate, weight_decay=1e-3)
        for i, rate in enumerate((0.1, 1e4, 0.01))
    ]
    through = engine(log=said.append)
    through.builder.backends = Backends(CPU, said.append, "compiled", Compiler(tmp_path / "cache"))
    watch = FreeWatch()
    found = trained(jobs, through, watch)
    agree(found, trained(jobs, engine(backend="eager")), 1e-10)
    assert [found[j.id].state.value for j in jobs] == ["completed", "exploded", "completed"]
    assert "compiling" in watch.phases
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0  # code is loaded from there
    if shutil.which("g++"):
        assert any("compiled: " in line for line in said) and list(
            (tmp_path / "cache").rglob("*.so")
        )
    else:
        assert any("no C++ compiler" in line for line in said)


def test_without_a_compiler_it_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said: list[str] = []
    through = engine(log=said.append)
    through.builder.backends = Backends(CPU, said.append, "compiled", Compiler(tmp_path))
    found = trained([job(0, epochs=3), job(1, epochs=2)], through)
    assert {outcome.state.value for outcome in found.values()} == {"completed"}
    assert [line for line in said if "compil" in line] == [
        (
            "steps are not compiled: no C++ compiler (no-such-compiler) is installed; "
            "training goes on without"
        )
    ]
    assert through.backend.startswith("eager: no C++ compiler")


def test_a_compiler_that_fails_costs_nothing_but_its_time(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [job(0, epochs=2), job(1, epochs=2)]
    through = engine(log=said.append)
    through.builder.backends = Backends(
        CPU,
        said.append,
        "compiled",
        Interpreter(tmp_path, error=RuntimeError("ld: cannot find -lgomp\nmore")),
    )
    agree(trained(jobs, through), trained(jobs, engine(backend="eager")), 0.0)
    assert (
        "steps are not compiled: RuntimeError: ld: cannot find -lgomp; training goes on without"
        in said
    )


def test_a_compiled_step_that_differs_is_not_used(tmp_path: Path) -> None:
    class Wrong(Interpreter):
        def compile(
            self, graph: Any, examples: Sequence[Tensor], key: str
        ) -> Callable[..., Sequence[Tensor]]:
            def run(*tensors: Tensor) -> list[Tensor]:
                found = graph(*tensors)
                tensors[0].mul_(1.001)
                return found

            return run

    said: list[str] = []
    jobs = [job(0, epochs=2), job(1, epochs=2)]
    through = engine(log=said.append)
    through.builder.backends = Backends(CPU, said.append, "compiled", Wrong(tmp_path))
    agree(trained(jobs, through), trained(jobs, engine(backend="eager")), 0.0)
    assert any("the update of a prepared step differs" in line for line in said)


def test_a_model_that_changes_from_call_to_call_is_not_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    through = engine(Counting(), backend="traced", log=said.append)
    # As if nothing had been seen of its counter before.
    monkeypatch.setattr(through.builder, "look", lambda model: Look([]))
    trained([job(0, epochs=1)], through)  # two would be told apart from their stack before
    assert through.backend.startswith("eager: the model does not do the same at each call")


@pytest.mark.parametrize(
    ("waiting", "cost_s", "compiles"),
    [(0, 100.0, False), (10**9, 100.0, True), (10**9, 1e9, False)],
)
def test_compiling_waits_until_it_repays(
    tmp_path: Path, waiting: int, cost_s: float, compiles: bool
) -> None:
    compiler = Interpreter(tmp_path, cost_s)
    through = engine()
    through.builder.backends = Backends(CPU, lambda line: None, compiler=compiler)
    compiler.costs.note_gain("chain/traced", 1.0)
    entries = [through.builder.entry(job(i, epochs=4)) for i in range(2)]
    array = TrialArray(
        entries,
        through.builder.shapes(entries[0].model),
        through.builder.setting(),
        through.builder.backends,
    )
    array.waiting_steps = waiting
    array.advance(FreeWatch())
    assert not compiler.compiled  # nobody knows yet what a step takes
    array.advance(FreeWatch())
    assert bool(compiler.compiled) == compiles
    if not compiles:
        assert "would take longer than it saves" in through.backend


def test_costs_are_remembered_and_a_broken_memory_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs = Costs(file)
    first_guess = costs.cost_s("a")
    costs.note_cost("a", 30.0)
    costs.note_gain("chain/compiled", 2.5)
    again = Costs(file)
    assert (again.cost_s("b"), again.gain("chain/compiled", 1.0)) == (30.0, 2.5)
    assert again.cost_s("a") < first_guess  # in the cache by now
    for broken in ("", "[]", '{"cold": "x"}', '{"cold": ["x"]}', '{"known": 3}'):
        file.write_text(broken)
        assert Costs(file).cost_s("b") == first_guess
    assert list(tmp_path.iterdir()) == [file]


def test_told_to_stop_it_does_not_wait_for_a_compilation(tmp_path: Path) -> None:
    """A compilation, or the import before it, takes longer than a scheduler waits."""
    told, goes_on = threading.Event(), threading.Event()

    class Endless(Interpreter):
        def compile(self, graph: Any, examples: Sequence[Tensor], key: str) -> Any:
            told.set()
            goes_on.wait(60.0)

    class Told(FreeWatch):
        def stopping(self) -> bool:
            return told.is_set()

    said: list[str] = []
    stops = engine(SmallDigits())
    stops.builder.backends = Backends(CPU, said.append, "compiled", Endless(tmp_path))
    *_, last = stops.train([job(0, epochs=2)], lambda n: [], Told())
    assert told.is_set() and not goes_on.is_set() and said == []
    assert [view.trial.id for view in last.running] == [job(0).trial.id]
    assert last.running[0].state()
    goes_on.set()


def test_what_a_compilation_raises_is_raised_where_it_was_asked_for() -> None:
    def raises() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_until(lambda: False, raises)
    assert run_until(lambda: False, lambda: 7) == 7
