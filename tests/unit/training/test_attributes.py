"""Plain attributes that differ between trials: ignored where unread, else lifted or named."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, job, outcomes
from worker.tasks import Data, Part
from worker.training.math.recipe import read_recipe
from worker.training.model.attributes import reading
from worker.training.model.look import look
from worker.training.model.structure import prepare


@dataclass
class Config:
    learning_rate: float
    gain: float
    depth: int = 2


@dataclass(frozen=True)
class Frozen:
    learning_rate: float
    gain: float


class Net(nn.Module):
    """Keeps what a test gives it, and does with it what the test says."""

    def __init__(self, kept: Any, use: Callable[[Any, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.kept = kept
        self._use = use

    def forward(self, inputs: Tensor) -> Tensor:
        h = self.first(inputs).tanh()
        return self.last(h if self._use is None else self._use(self.kept, h))


def trained(
    keep: Callable[[dict[str, Any]], Any],
    use: Callable[[Any, Tensor], Tensor] | None,
    width: int = 3,
) -> tuple[list[Any], list[str]]:
    class Task(SmallDigits):
        def model(self, hp: Any) -> nn.Module:
            return Net(keep(dict(hp)), use)

    said: list[str] = []
    jobs = [job(i, 1, learning_rate=0.1 * (i + 1), gain=0.5 + 0.25 * i) for i in range(3)]
    found = outcomes(jobs, task=Task(), log=said.append, width=width)
    assert {one.state for one in found.values()} == {TrialState.COMPLETED}
    return [found[one.id] for one in jobs], [line for line in said if "by neither" not in line]


KEEPERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "number": lambda hp: hp["learning_rate"],
    "list": lambda hp: [hp["learning_rate"], "sgd"],
    "dict": lambda hp: hp,
    "namespace": lambda hp: SimpleNamespace(**hp),
    "arguments": lambda hp: Namespace(**hp),
    "dataclass": lambda hp: Config(hp["learning_rate"], hp["gain"]),
    "frozen": lambda hp: Frozen(hp["learning_rate"], hp["gain"]),
    "nested": lambda hp: SimpleNamespace(optimizer={"lr": hp["learning_rate"]}, depth=2),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_what_no_forward_reads_keeps_nobody_apart(name: str) -> None:
    found, said = trained(KEEPERS[name], None)
    assert [one.array_width for one in found] == [3, 3, 3] and not said


def gain_of(kept: Any) -> Any:
    return kept["gain"] if isinstance(kept, dict) else getattr(kept, "gain", kept)


READ: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "times": lambda kept, h: h * gain_of(kept),
    "plus": lambda kept, h: gain_of(kept) + h,
    "power": lambda kept, h: h.abs() ** gain_of(kept),
    "clamp": lambda kept, h: h.clamp(max=gain_of(kept)),
    "where": lambda kept, h: torch.where(h > gain_of(kept), h, gain_of(kept)),
}


@pytest.mark.parametrize(
    ("name", "use"),
    [
        *(("frozen", use) for use in READ),
        *((name, "times") for name in ("number", "dict", "namespace", "arguments", "dataclass")),
    ],
)
def test_a_number_that_a_forward_takes_as_a_tensor_is_each_slot_s_own(name: str, use: str) -> None:
    together, said = trained(KEEPERS[name], READ[use])
    alone, _ = trained(KEEPERS[name], READ[use], width=1)
    assert [one.array_width for one in together] == [3, 3, 3] and not said
    for one, other in zip(together, alone, strict=True):
        assert one.curves["val_loss"] == pytest.approx(other.curves["val_loss"], rel=1e-9)


NAMED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "branch": lambda kept, h: 2 * h if kept.gain > 0.6 else h,
    "whole": lambda kept, h: h * round(10 * kept.gain),
    "argument": lambda kept, h: functional.leaky_relu(h, kept.gain),
    "text": lambda kept, h: h * float(str(kept.gain)),
    "all": lambda kept, h: h * asdict(kept)["gain"],
    "isinstance": lambda kept, h: h * (kept.gain if isinstance(kept.gain, float) else 7),
    "cap": lambda kept, h: h + kept.gain if float(kept.gain) > 99 else h,
}


@pytest.mark.parametrize("name", NAMED)
def test_a_number_that_steers_a_forward_is_named_and_never_shared(name: str) -> None:
    found, said = trained(KEEPERS["dataclass"], NAMED[name])
    assert [one.array_width for one in found] == [1, 1, 1]
    assert any(line.startswith("attribute `kept.gain` differs") for line in said), said
    alone, _ = trained(KEEPERS["dataclass"], NAMED[name], width=1)
    for one, other in zip(found, alone, strict=True):
        assert one.curves["val_loss"] == pytest.approx(other.curves["val_loss"], rel=1e-9)


def test_only_equal_values_share_an_array() -> None:
    found, said = trained(lambda hp: int(hp["gain"] > 0.9), lambda kept, h: h.roll(kept, -1))
    assert sorted(one.array_width for one in found) == [1, 2, 2]
    assert "attribute `kept` differs between trials (0 and 1)" in said[0]


def test_reads_are_noted_with_their_lines_and_everything_is_put_back() -> None:
    kept = SimpleNamespace(a={"b": 1.0, "c": 2.0}, d=3.0)
    module = Net(kept, lambda k, h: h * k.a["b"])
    model = prepare(module, read_recipe({"learning_rate": 0.1}), alone=False)
    with reading(model.attributes) as found:
        module(torch.zeros(2, 64))
    assert {path for path in found if path[:2] == ("", "kept")} == {
        ("", "kept"),
        ("", "kept", "a"),
        ("", "kept", "a", "b"),
    }
    assert "(test_attributes.py, line " in found["", "kept", "a", "b"]
    assert module.kept is kept and type(kept.a) is dict and kept.d == 3.0
    assert "__getattribute__" not in vars(Net)


def test_a_look_leaves_a_model_as_it_was() -> None:
    class Busy(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            self.kept.append(len(self.kept))
            self.norm(inputs)
            self.new = 1
            return super().forward(inputs)

    module = Busy([], lambda kept, h: h + torch.rand(1))
    module.norm = nn.BatchNorm1d(64)
    kept, mode = module.kept, module.training
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    generator = torch.get_rng_state()
    model = prepare(module, read_recipe({"learning_rate": 0.1}), alone=False)
    found = look(model, torch.randn(8, 64, generator=torch.Generator().manual_seed(1)), 10)
    assert found.stateful is not None and "`kept`" in found.stateful
    assert module.kept == [] and not hasattr(module, "new") and module.training == mode
    assert all(torch.equal(before[n], tensor) for n, tensor in module.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert kept is not None


# nanoGPT's model.py, as its author wrote it but for its size and its generation of text.


@dataclass
class GPTConfig:
    block_size: int = 16
    vocab_size: int = 11
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16
    dropout: float = 0.0
    bias: bool = True


class LayerNorm(nn.Module):
    def __init__(self, ndim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.n_embd = config.n_embd
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None,
            dropout_p=self.dropout if self.training else 0,
            is_causal=True,
        )
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        _, t = idx.size()
        assert t <= self.config.block_size, "too long"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Text:
    def data(self) -> Data:
        x = torch.randint(0, 11, (96, 12), generator=torch.Generator().manual_seed(0))
        y = (x + 1) % 11
        return Data(Part(x[:64], y[:64]), Part(x[64:], y[64:]), None, None)

    def model(self, hp: Any) -> nn.Module:
        return GPT(GPTConfig(dropout=hp["dropout"]))

    def loss(self, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def test_nanogpt_trains_in_arrays_whatever_its_dropout() -> None:
    said: list[str] = []
    jobs = [
        job(i, 2, learning_rate=0.1 * (i + 1), dropout=rate, batch_size=16)
        for i, rate in enumerate([0.1, 0.0, 0.3])
    ]
    together, alone = (
        outcomes(jobs, task=Text(), width=width, log=said.append, metric="val_loss", mode="min")
        for width in (3, 1)
    )
    assert {one.array_width for one in together.values()} == {3} and not said
    for trial_id, one in alone.items():
        assert together[trial_id].curves["train_loss"] == pytest.approx(
            one.curves["train_loss"], rel=1e-9
        )
