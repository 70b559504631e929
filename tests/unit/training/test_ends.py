"""A number with known gradients, against ``torch.autograd.grad`` with the same ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from worker.training.math.ends import join

CHECKS = """
import sys
from pathlib import Path
from common.search.search_file import parse_search
from worker.checks.plan import centre
from worker.commands.profile import Quiet, build_claim, build_engine
from worker.tasks.digits import Digits

search = parse_search('''
name = "x"
task = "digits"
[space]
model = "convnet"
blocks = 1
filters = 2
learning_rate = { log_uniform = [1e-3, 1e-2] }
[stages.coarse]
trials = 2
epochs = 1
''', Path("search.toml"))
engine = build_engine(search, Digits(), "eager", 2)
claims = [build_claim(n, centre(search.space)) for n in range(2)]
ended = [one for at in engine.train(claims, lambda n: [], Quiet()) for one in at.ended]
assert [one.state for one in ended] == ["completed"] * 2, ended
assert all(one.portrait()["gradients"] for one in ended)
print("sympy" in sys.modules)
"""


@pytest.mark.parametrize("grad_mode", [True, False])
def test_several_outputs_of_several_kinds(grad_mode: bool) -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(2, requires_grad=True)
    outputs = [weight.sin(), (weight.float() ** 2).sum(0), weight[0, 0] * 3]
    gradients = [torch.randn_like(one) for one in outputs]
    expected, nothing = torch.autograd.grad(
        outputs, [weight, unused], gradients, retain_graph=True, allow_unused=True
    )
    with torch.set_grad_enabled(grad_mode):
        end = join(outputs, gradients)
    found, none = torch.autograd.grad(end, [weight, unused], allow_unused=True)
    assert end.shape == () and torch.equal(found, expected) and none is nothing is None


def test_values_that_are_not_finite_leave_gradients_alone() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    output = weight * torch.tensor([torch.inf, 1.0])
    (found,) = torch.autograd.grad(join([output], [torch.tensor([0.0, 5.0])]), [weight])
    assert found[1] == 5.0


def test_an_output_that_depends_on_no_parameter_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(
            join([torch.ones(2)], [torch.ones(2)]), [torch.ones(1, requires_grad=True)]
        )


def test_a_convolutional_net_trains_and_is_drawn_without_sympy() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHECKS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
