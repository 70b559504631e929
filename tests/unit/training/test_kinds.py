"""Modules of many kinds train, save, resume and predict as a plain loop of PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from common.search.trial import TrialState
from tests.unit.training.helpers import (
    SEARCH_SEED,
    SmallDigits,
    StopAfter,
    boundaries,
    digits,
    job,
    load,
    outcomes,
    state,
)
from worker.tasks.base import Data, Part
from worker.training.compute.width import Widths
from worker.training.math.noise import noise_keys
from worker.training.stacked.batches import shuffle

BATCH, RATE, EPOCHS = 32, 0.05, 2
Through = Callable[[Tensor], Tensor]


@cache
def few() -> Data:
    data = digits()
    return Data(
        Part(data.train.inputs[:96], data.train.targets[:96]),
        Part(data.val.inputs[:40], data.val.targets[:40]),
        None,
        10,
    )


class Net(nn.Module):
    """The part of a test between reshaped inputs (B, *shape) and a linear layer."""

    def __init__(self, part: nn.Module, shape: tuple[int, ...] = (64,), width: int = 16) -> None:
        super().__init__()
        self.part, self.shape, self.last = part, shape, nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.part(inputs.view(-1, *self.shape)).flatten(1))


class Calls(nn.Module):
    """Parts by name, and what a forward does with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self, inputs)


class Halved(torch.autograd.Function):
    """Gives half of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


class Stackable(torch.autograd.Function):
    """The same as torch.func wants it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is needed."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def linear(n: int = 64, m: int = 16) -> nn.Linear:
    return nn.Linear(n, m)


def then(*parts: nn.Module, width: int = 16) -> nn.Module:
    """The parts after a first layer."""
    return Net(nn.Sequential(linear(), *parts), width=width)


def recurrent(kind: type[nn.RNNBase], **more: Any) -> nn.Module:
    reader = kind(8, 4, batch_first=True, **more)
    width = 8 * (2 if more.get("bidirectional") else 1) * 4
    return Net(Calls(lambda m, x: m.reader(x)[0], reader=reader), (8, 8), width)


def frozen(part: nn.Module) -> nn.Module:
    return part.requires_grad_(False)


def tied() -> nn.Module:
    first, second = linear(64, 64), linear(64, 64)
    second.weight = first.weight
    return Net(nn.Sequential(first, nn.Tanh(), second, nn.Tanh()), width=64)


def tokens(inputs: Tensor) -> Tensor:
    """Whole numbers from 0 to 4, (B, 64)."""
    return (inputs.abs() * 3).long().clamp(max=4)


HEADS = {"embed_dim": 8, "num_heads": 2, "batch_first": True}
ENCODER = {"d_model": 8, "nhead": 2, "dim_feedforward": 8, "batch_first": True, "dropout": 0.0}


def no_dimensions() -> nn.Module:
    part = Calls(
        lambda m, x: m.first(x) * m.gain, first=linear(), gain=nn.Parameter(torch.tensor(1.5))
    )
    return Net(part)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "parameter of no dimensions": no_dimensions,
    "frozen part": lambda: Net(nn.Sequential(frozen(linear()), nn.Tanh(), linear(16, 16))),
    "tied weights": tied,
    "empty parameter": lambda: Net(
        Calls(lambda m, x: m.first(x), first=linear(), empty=nn.Parameter(torch.zeros(0)))
    ),
    "unused parameter": lambda: Net(
        Calls(lambda m, x: m.first(x), first=linear(), unused=nn.Parameter(torch.ones(3)))
    ),
    "buffers only": lambda: Net(
        Calls(lambda m, x: (x @ m.weight).tanh(), weight=torch.randn(64, 16) / 8)
    ),
    "buffer that moves": lambda: Net(
        Calls(
            lambda m, x: m.first(x) - (m.mean.mul_(0.9).add_(x.mean()) if m.training else m.mean),
            first=linear(),
            mean=torch.zeros(()),
        )
    ),
    "buffer that is not saved": lambda: _unsaved(),
    "whole number": lambda: Net(
        Calls(
            lambda m, x: m.first(x) * m.n,
            first=linear(),
            n=nn.Parameter(torch.tensor(2), requires_grad=False),
        )
    ),
    "complex inside": lambda: Net(
        Calls(
            lambda m, x: (torch.fft.rfft(x) * torch.view_as_complex(m.pairs)).abs(),
            pairs=nn.Parameter(torch.randn(33, 2) / 8),
        ),
        width=33,
    ),
    "parameter list": lambda: Net(
        Calls(
            lambda m, x: x @ m.p[0] + m.p[1],
            p=nn.ParameterList([torch.randn(64, 16) / 8, torch.zeros(16)]),
        )
    ),
    "parameter dict": lambda: Net(
        Calls(
            lambda m, x: x @ m.p["w"] + m.p["b"],
            p=nn.ParameterDict({"w": torch.randn(64, 16) / 8, "b": torch.zeros(16)}),
        )
    ),
    "nested sequential": lambda: Net(
        nn.Sequential(nn.Sequential(nn.Sequential(linear()), nn.Tanh()), nn.Sequential(linear(16)))
    ),
    "module list": lambda: Net(
        Calls(
            lambda m, x: torch.stack([part(x) for part in m.parts]).sum(0),
            parts=nn.ModuleList([linear(), linear()]),
        )
    ),
    "module dict": lambda: Net(
        Calls(lambda m, x: m.parts["a"](x), parts=nn.ModuleDict({"a": linear()}))
    ),
    "one module twice": lambda: Net(
        Calls(lambda m, x: m.second(m.second(m.first(x))), first=linear(), second=linear(16))
    ),
    "weight norm": lambda: Net(parametrizations.weight_norm(linear())),
    "spectral norm": lambda: Net(parametrizations.spectral_norm(linear())),
    "orthogonal": lambda: Net(parametrizations.orthogonal(linear())),
    "embedding with padding": lambda: Net(
        Calls(lambda m, x: m.table(tokens(x)), table=nn.Embedding(5, 2, padding_idx=0)), width=128
    ),
    "embedding bag": lambda: Net(
        Calls(lambda m, x: m.table(tokens(x)), table=nn.EmbeddingBag(5, 16, mode="mean"))
    ),
    "rnn": lambda: recurrent(nn.RNN),
    "lstm": lambda: recurrent(nn.LSTM, num_layers=2),
    "bidirectional gru": lambda: recurrent(nn.GRU, bidirectional=True),
    "lstm cell": lambda: Net(Calls(lambda m, x: m.cell(x)[0], cell=nn.LSTMCell(64, 16))),
    "attention": lambda: Net(
        Calls(lambda m, x: m.heads(x, x, x)[0], heads=nn.MultiheadAttention(**HEADS)), (8, 8), 64
    ),
    "encoder layer": lambda: Net(nn.TransformerEncoderLayer(**ENCODER), (8, 8), 64),
    "decoder layer": lambda: Net(
        Calls(lambda m, x: m.layer(x, x), layer=nn.TransformerDecoderLayer(**ENCODER)), (8, 8), 64
    ),
    "conv1d": lambda: Net(nn.Conv1d(8, 2, 3, padding=1), (8, 8)),
    "conv2d": lambda: Net(nn.Conv2d(1, 4, 3, stride=3), (1, 8, 8)),
    "grouped conv2d": lambda: Net(nn.Conv2d(4, 8, 3, groups=4), (4, 4, 4), 32),
    "conv3d": lambda: Net(nn.Conv3d(1, 2, 2, stride=2), (1, 4, 4, 4)),
    "transposed conv1d": lambda: Net(nn.ConvTranspose1d(8, 2, 2, stride=2), (8, 8), 32),
    "transposed conv2d": lambda: Net(nn.ConvTranspose2d(4, 1, 2, stride=2), (4, 4, 4), 64),
    "batch norm 1d": lambda: then(nn.BatchNorm1d(16), nn.ReLU()),
    "batch norm 2d": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.BatchNorm2d(4)), (1, 8, 8)
    ),
    "batch norm of all batches": lambda: then(nn.BatchNorm1d(16, momentum=None)),
    "batch norm without statistics": lambda: then(nn.BatchNorm1d(16, track_running_stats=False)),
    "group norm": lambda: Net(nn.Sequential(nn.Conv1d(8, 2, 1), nn.GroupNorm(2, 2)), (8, 8)),
    "layer norm": lambda: then(nn.LayerNorm(16)),
    "rms norm": lambda: then(nn.RMSNorm(16)),
    "instance norm": lambda: Net(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=3),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        ),
        (1, 8, 8),
    ),
    "local response norm": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.LocalResponseNorm(2)), (1, 8, 8)
    ),
    "prelu": lambda: then(nn.PReLU(16)),
    "slopes": lambda: then(
        nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SiLU(), nn.Hardswish(), nn.GLU(), width=8
    ),
    "bilinear": lambda: Net(Calls(lambda m, x: m.pair(x, x), pair=nn.Bilinear(64, 64, 16))),
    "pixel shuffle": lambda: Net(
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.PixelShuffle(2)), (4, 4, 4), 64
    ),
    "upsample": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 1, 5), nn.Upsample(scale_factor=2, mode="bilinear")),
        (1, 8, 8),
        64,
    ),
    "pools": lambda: Net(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(2)
        ),
        (1, 8, 8),
    ),
    "adaptive max pool": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(2)), (1, 8, 8)
    ),
    "lazy layers": lambda: Net(
        nn.Sequential(nn.LazyConv2d(4, 3, stride=3), nn.LazyBatchNorm2d()), (1, 8, 8)
    ),
    "unfold and fold": lambda: Net(
        Calls(
            lambda m, x: m.fold(m.mix(m.unfold(x).transpose(1, 2)).transpose(1, 2)),
            unfold=nn.Unfold(2, stride=2),
            mix=linear(4, 4),
            fold=nn.Fold((8, 8), 2, stride=2),
        ),
        (1, 8, 8),
        64,
    ),
    "cosine similarity": lambda: Net(
        Calls(
            lambda m, x: nn.CosineSimilarity(-1)(m.first(x).unsqueeze(1), m.heads),
            first=linear(),
            heads=nn.Parameter(torch.randn(16, 16)),
        )
    ),
    "einsum": lambda: Net(
        Calls(lambda m, x: torch.einsum("bi,io->bo", x, m.w), w=nn.Parameter(torch.randn(64, 16)))
    ),
    "function without vmap": lambda: Net(Calls(lambda m, x: Halved.apply(m.f(x)), f=linear())),
    "function with vmap": lambda: Net(Calls(lambda m, x: Stackable.apply(m.f(x)), f=linear())),
    "checkpoint": lambda: Net(
        Calls(lambda m, x: checkpoint(m.f, x, use_reentrant=False).tanh(), f=linear())
    ),
    "reentrant checkpoint": lambda: Net(
        Calls(
            lambda m, x: checkpoint(lambda h: m.g(h).tanh(), m.f(x), use_reentrant=True),
            f=linear(),
            g=linear(16),
        )
    ),
    "forward hook": lambda: _hooked(),
    "half precision inside": lambda: Net(
        Calls(lambda m, x: m.f(x).float().tanh().to(x.dtype), f=linear())
    ),
    "alpha dropout": lambda: then(nn.AlphaDropout(0.2)),
    "feature alpha dropout": lambda: then(nn.FeatureAlphaDropout(0.2)),
    "dropout of channels": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.Dropout2d(0.3)), (1, 8, 8)
    ),
    "randomized relu": lambda: then(nn.RReLU()),
    "lstm with dropout": lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.3),
}
ALONE = {
    "spectral norm",
    "lstm cell",
    "batch norm of all batches",
    "function without vmap",
    "checkpoint",
    "reentrant checkpoint",
    "alpha dropout",
    "feature alpha dropout",
    "dropout of channels",
    "randomized relu",
    "lstm with dropout",
}
# Layers of which the engine draws the noise: no plain loop has it, but each trial has its own.
DRAWN: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: then(nn.Dropout(0.3)),
    "called dropout": lambda: Net(
        Calls(lambda m, x: functional.dropout(m.f(x), 0.3, m.training), f=linear())
    ),
    "attention with dropout": lambda: Net(
        Calls(lambda m, x: m.heads(x, x, x)[0], heads=nn.MultiheadAttention(**HEADS, dropout=0.2)),
        (8, 8),
        64,
    ),
    "encoder layer with dropout": lambda: Net(
        nn.TransformerEncoderLayer(**{**ENCODER, "dropout": 0.2}), (8, 8), 64
    ),
}


def _unsaved() -> nn.Module:
    part = Calls(lambda m, x: m.first(x) * m.mask, first=linear())
    part.register_buffer("mask", torch.ones(16), persistent=False)
    return Net(part)


def _hooked() -> nn.Module:
    first = linear()
    first.register_forward_hook(lambda module, given, output: output.tanh())
    return Net(first)


def task_of(build: Callable[[], nn.Module]) -> Any:
    class Task(SmallDigits):
        def data(self) -> Data:
            return few()

        def model(self, hp: Any) -> nn.Module:
            return build()

    return Task()


def jobs_of(n: int = 2, epochs: float = EPOCHS) -> list[Any]:
    return [job(i, epochs, learning_rate=RATE * (1 + i), batch_size=BATCH) for i in range(n)]


def plain(build: Callable[[], nn.Module], of: Any, epochs: int) -> nn.Module:
    """The trial by a plain loop. torch's generator is seeded for each step, as by the engine."""
    trial, data = of.trial, few()
    torch.manual_seed(trial.seed)
    module = build()
    inputs, targets, step = data.train.inputs.double(), data.train.targets, 0
    if any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in module.modules()):
        module.eval()(data.train.inputs[:BATCH])
    module = module.double().train()
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad],
        lr=trial.hyperparameters["learning_rate"],
    )
    for epoch in range(epochs):
        for rows in shuffle(len(targets), SEARCH_SEED, epoch).split(BATCH):
            keys = noise_keys(torch.tensor([trial.seed]), torch.tensor([[step]]), 2)
            torch.manual_seed(int(keys[0, 0, 0, 1]))
            loss = functional.cross_entropy(module(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return module.eval()


def check_saved(build: Callable[[], nn.Module], outcome: Any) -> nn.Module:
    """The file loads into a plain model, which predicts what the trial predicts."""
    torch.manual_seed(1)
    module, content = build(), load(outcome.checkpoint())
    if any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in module.modules()):
        module.eval()(few().train.inputs[:BATCH])
    module.double().load_state_dict(content["model"])
    with torch.no_grad():
        outputs = module.eval()(few().val.inputs.double())
    predicted = torch.from_numpy(outcome.predictions()["val"])
    assert torch.allclose(outputs.softmax(-1).float(), predicted, atol=1e-5)
    assert outcome.portrait()["gradients"] is not None
    return module


def check_resumed(build: Callable[[], nn.Module], whole: Any) -> None:
    """A trial that was stopped within its second epoch goes on as if it had not been."""
    (one,) = jobs_of(1)
    said: list[str] = []
    last = list(boundaries([one], StopAfter(7), task=task_of(build)))[-1].running[0]
    again = job(0, EPOCHS, state(last), learning_rate=RATE, batch_size=BATCH)
    (rest,) = outcomes([again], task=task_of(build), log=said.append).values()
    assert rest.curves["val_loss"] == pytest.approx(whole.curves["val_loss"], rel=1e-9)
    assert not [line for line in said if "starts anew" in line]


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_module_trains_saves_resumes_and_predicts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Widths, "_sure", lambda *of: True)  # stack, whether it is fast or not
    build = KINDS[name]
    found = outcomes(jobs_of(), task=task_of(build), width=2)
    for one in jobs_of():
        outcome = found[one.id]
        assert outcome.state is TrialState.COMPLETED, outcome.reason
        assert outcome.array_width == (1 if name in ALONE else 2)
        expected = dict(plain(build, one, int(outcome.best_epoch)).state_dict())
        saved = load(outcome.checkpoint())["model"]
        assert saved.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.allclose(saved[key].double(), tensor.double(), atol=1e-6), key
    check_saved(build, found["coarse-0000"])
    check_resumed(build, found["coarse-0000"])


@pytest.mark.parametrize("name", DRAWN)
def test_a_kind_of_noise_is_the_same_alone_and_in_an_array(name: str) -> None:
    build = DRAWN[name]
    together, alone = (outcomes(jobs_of(), task=task_of(build), width=width) for width in (2, 1))
    assert {one.array_width for one in together.values()} == {2}
    for trial_id, one in alone.items():
        assert together[trial_id].curves["train_loss"] == pytest.approx(
            one.curves["train_loss"], rel=1e-9
        )
    check_saved(build, together["coarse-0000"])
    check_resumed(build, together["coarse-0000"])


def test_a_complex_parameter_is_refused_with_the_remedy() -> None:
    def build() -> nn.Module:
        return Net(
            Calls(
                lambda m, x: (torch.fft.rfft(x) * m.w).abs(),
                w=nn.Parameter(torch.randn(33, dtype=torch.complex64)),
            ),
            width=33,
        )

    reason = outcomes(jobs_of(1), task=task_of(build))["coarse-0000"].reason
    assert "part.w is complex" in reason and "torch.view_as_real" in reason


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_part_with_dropout_learns_as_without_and_says_why_it_is_alone(
    reentrant: bool,
) -> None:
    def build(through: Any) -> Callable[[], nn.Module]:
        return lambda: Net(
            Calls(
                lambda m, x: through(lambda h: m.drop(m.g(h)).tanh(), m.f(x)),
                f=linear(),
                g=linear(16),
                drop=nn.Dropout(0.3),
            )
        )

    def saved(part: Any, h: Tensor) -> Tensor:
        return checkpoint(part, h, use_reentrant=reentrant)  # here: checkpoints

    said: list[str] = []
    found = outcomes(jobs_of(), task=task_of(build(saved)), log=said.append)
    plainly = outcomes(jobs_of(), task=task_of(build(lambda part, h: part(h))))
    assert len(said) == 1 and "its forward checkpoints activations" in said[0]
    assert said[0].endswith("# here: checkpoints)")
    for trial_id, one in plainly.items():
        assert found[trial_id].array_width == 1
        for curve in ("train_loss", "val_loss"):
            assert found[trial_id].curves[curve] == pytest.approx(one.curves[curve], rel=1e-9)
