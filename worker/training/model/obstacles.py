"""Why a model cannot be stacked, and what to change.

``obstacle`` finds the reason beforehand; ``explain_stacked_error`` finds it from an error of
``torch.vmap``.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from worker.tasks.layers import GaussianDropout
from worker.training.math import precision
from worker.training.model.lifted_numbers import RATES, rate_of

BRANCHES = "branches on data; torch.where chooses without a branch"
READS = "reads a number out of a tensor (item, int, float, if); keep it a tensor"
FUNCTION = (
    "calls a torch.autograd.Function without setup_context and generate_vmap_rule, which "
    "torch.vmap needs"
)
RANDOM = "draws random numbers; nn.Dropout and nn.functional.dropout can be stacked"
# Part of an error message of torch.vmap -> what the model or its loss does, and what to do instead.
TOLD = {
    "data-dependent control flow": BRANCHES,
    ".item()": READS,
    "inplace arithmetic": "writes in place into a tensor that does not come from the model or its "
    "inputs; use torch.cat, torch.stack, or new_zeros of what is written",
    "dynamic shape": "picks by a mask, or otherwise makes sizes depend on data; multiply by the "
    "mask, or use torch.where",
    "random operation": RANDOM,
    "Batching rule not implemented": "uses an operation that torch.vmap does not know",
    "setup_context": FUNCTION,
    "does not have vmap support": FUNCTION,
    "Cannot access data pointer": "hands a tensor to code that reads its memory, as numpy and "
    "packed sequences do; torch's own operations on whole tensors can be stacked",
}
# Calls in a source line that read a number and do not branch.
READING = (".item(", ".tolist(", "float(", "int(")
NEW_LINE = "\n"
LOSS = ("losses.py", "_one")  # where a task's loss is called
OURS, TORCH = Path(__file__).parent, Path(torch.__file__).parent
# Layers that draw their own noise. Those in RATES can be given their noise instead.
UNSTACKABLE_NOISE = (nn.modules.dropout._DropoutNd, nn.RReLU)


def obstacle(module: nn.Module, lifted: Collection[str]) -> str | None:
    """Return why this model cannot be stacked, or None if no reason is seen.

    Call it before the model's numbers are lifted out of the layers ``lifted``.
    """
    for name, one in module.named_modules():
        kind, where = type(one).__name__, f"layer {name}" if name else "it"
        if (
            isinstance(one, nn.modules.batchnorm._NormBase)
            and one.momentum is None
            and one.track_running_stats
        ):
            return (
                f"{where} is a {kind} with momentum=None, whose average over all batches so far "
                "cannot be stacked; give it a momentum"
            )
        if isinstance(one, nn.RNNBase) and one.dropout > 0 and one.num_layers > 1:
            return (
                f"{where} is a {kind} that draws its own dropout; use single-layer RNNs with "
                "nn.Dropout between them"
            )
        if (
            isinstance(one, UNSTACKABLE_NOISE)
            and type(one) not in RATES
            and getattr(one, "p", 1.0) > 0
        ):
            return f"{where} is a {kind}, which draws its own noise; nn.Dropout can be stacked"
        if isinstance(one, GaussianDropout) and name not in lifted and rate_of(one) > 0:
            return (
                f"{where} is a {kind} in several places, or with a hook; give each place a layer "
                "of its own"
            )
        if one._backward_hooks or one._backward_pre_hooks:
            return (
                f"{where} has a backward hook, which would see the gradients of all trials at once"
            )
    return None


def explain_stacked_error(error: Exception) -> str:
    """Explain an error of a stacked step.

    Returns:
        Whether the model or the loss caused it, what it does, and the line. If the error is not
        known, its own first line.
    """
    message, frames = str(error), traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if not {OURS, TORCH} & set(Path(frame.filename).parents)
        and frame.filename != precision.__file__  # passes on calls of torch's functions
    ]
    last = theirs[-1] if theirs else None
    meaning = next((meaning for part, meaning in TOLD.items() if part in message), None)
    line = (last.line if last is not None else None) or ""
    if meaning in (BRANCHES, READS) and line:  # torch's message names both causes
        meaning = READS if any(word in line for word in READING) else BRANCHES
    in_loss = any((Path(frame.filename).name, frame.name) == LOSS for frame in frames)
    if in_loss and meaning == RANDOM:
        meaning = RANDOM.partition(";")[0]  # the advice after ";" is about layers
    who = (
        "its loss"
        if in_loss
        else "its forward"
        if last is None or last.name != "backward"
        else "its backward"
    )
    where = f" ({Path(last.filename).name}, line {last.lineno}: {line})" if last is not None else ""
    if meaning is not None:
        return f"{who} {meaning}{where}"
    told = f"a stacked step raised {type(error).__name__}: {message.partition(NEW_LINE)[0]}"
    return f"{told}, in {who}{where}" if last is not None else told
