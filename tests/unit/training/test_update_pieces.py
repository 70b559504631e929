"""An update gives the same result for any cut of the parameters.

They are one matrix, blocks, or handled by torch's own kernel.
"""

from __future__ import annotations

import pytest
import torch

from worker.training.math import update as updates
from worker.training.math.optimizers import SGD, Adam, AdamW, UpdateRule
from worker.training.math.update import Piece, cut, update

K, P, N_DECAYED = 3, 1000, 900


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def moved(
    rule: UpdateRule, in_pieces: bool, momentum: torch.Tensor, l1: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Parameters, states, averages and penalties after three steps."""
    draw = torch.Generator().manual_seed(231)
    flat, average = (
        torch.randn(K, P, generator=draw, dtype=torch.float64),
        torch.zeros(K, P, dtype=torch.float64),
    )
    states = [torch.zeros_like(flat) for _ in rule.states]
    gradients, scratch = (
        torch.empty_like(flat),
        torch.empty_like(flat) if rule.uses_scratch else flat.new_empty(0),
    )
    whole = Piece(flat, gradients, states, average, scratch, N_DECAYED)
    pieces = cut(rule, whole) if in_pieces else [whole]
    assert (len(pieces) > 1) == in_pieces
    assert torch.equal(torch.cat([piece.weights for piece in pieces], dim=1), flat)
    assert sum(piece.n_decayed for piece in pieces) == N_DECAYED
    decay = {"shrink": column(1.0, 0.99, 0.9)} if rule.decoupled else {"l2": column(0.0, 0.01, 0.1)}
    values = {"learning_rate": column(0.1, 0.2, 0.3).squeeze(1), "momentum": momentum.squeeze(1)}
    values |= {
        "beta1": column(*[0.9] * K).squeeze(1),
        "beta2": column(*[0.99] * K).squeeze(1),
        "eps": column(*[1e-8] * K).squeeze(1),
    }
    penalties = []
    for step in range(3):
        gradients.copy_(torch.randn(K, P, generator=draw, dtype=torch.float64))
        steps = torch.full((1, K), step)
        columns = (
            {name: own[0] for name, own in rule.columns(values, steps.double()).items()}
            | decay
            | {"ema": column(*[0.9] * K)}
        )
        columns |= {"l1": l1} if l1 is not None else {}
        penalties.append(update(rule, pieces, {}, columns, {}))
    return flat, *states, average, torch.stack(penalties)


@pytest.mark.parametrize(
    "rule", [SGD(), SGD(nesterov=True), Adam(), AdamW()], ids=["sgd", "nesterov", "adam", "adamw"]
)
@pytest.mark.parametrize(
    "momentum", [column(0.9, 0.5, 0.1), column(0.9, 0.0, 0.5)], ids=["all", "one without momentum"]
)
@pytest.mark.parametrize("l1", [None, column(0.0, 0.01, 0.1)], ids=["l2", "elastic net"])
def test_pieces_move_as_the_whole(
    rule: UpdateRule,
    momentum: torch.Tensor,
    l1: torch.Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = moved(rule, False, momentum, l1)
    monkeypatch.setattr(updates, "BLOCK", 64 * K)
    monkeypatch.setattr(updates, "LONG_ROW", N_DECAYED)
    for found, known in zip(moved(rule, True, momentum, l1), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)


def test_long_rows_of_sgd_take_torch_s_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "LONG_ROW", N_DECAYED)
    asked: list[bool] = []
    sound = SGD.apply_fused
    monkeypatch.setattr(SGD, "apply_fused", lambda *given: asked.append(sound(*given)) or asked[-1])
    moved(SGD(nesterov=True), True, column(0.9, 0.5, 0.1))
    assert asked == [True] * 3
    moved(SGD(nesterov=True), True, column(0.9, 0.0, 0.1))
    assert asked[3:] == [False] * 3
