"""Why a model cannot be stacked, in words that say what to change: seen beforehand, or told by ``torch.vmap``."""

from __future__ import annotations

from torch import nn

from worker.training.knobs import RATES, liftable, rate_of

TOLD = {  # what the message of torch.vmap holds -> what it means
    "data-dependent control flow": "its forward branches on data; torch.where chooses without a branch",
    ".item()": "its forward reads a number out of a tensor (item, int, float, if); keep it a tensor",
    "inplace arithmetic": "its forward writes in place into a tensor that does not come from the model or its inputs; use torch.cat, "
    "torch.stack, or new_zeros of what is written",
    "dynamic shape": "its forward picks by a mask, so that sizes depend on data; multiply by the mask, or use torch.where",
    "random operation": "its forward draws random numbers; nn.Dropout as a layer of its own does not stand in the way",
    "Batching rule not implemented": "it uses an operation that torch.vmap does not know",
    "setup_context": "its torch.autograd.Function has no setup_context and generate_vmap_rule, which torch.vmap needs",
}
UNSTACKABLE_NOISE = (nn.modules.dropout._DropoutNd, nn.RReLU)  # layers that draw their noise; those in RATES are made to take it


def obstacle(module: nn.Module) -> str | None:
    """What stands in the way of stacking this model, before its numbers are lifted; None if nothing is seen."""
    lifted = liftable(module)
    for name, one in module.named_modules():
        kind, where = type(one).__name__, f"layer {name}" if name else "it"
        if isinstance(one, nn.modules.batchnorm._NormBase) and one.momentum is None and one.track_running_stats:
            return f"{where} is a {kind} with momentum=None, whose average over all batches so far cannot be stacked; give it a momentum"
        if isinstance(one, nn.RNNBase) and one.dropout > 0 and one.num_layers > 1:
            return f"{where} is a {kind} that draws its own dropout; stack layers of one with nn.Dropout between them"
        if isinstance(one, UNSTACKABLE_NOISE) and type(one) not in RATES and getattr(one, "p", 1.0) > 0:
            return f"{where} is a {kind}, which draws its own noise; nn.Dropout does not stand in the way"
        if type(one) in RATES and name not in lifted and rate_of(one) > 0:
            return f"{where} is a {kind} in several places, or with a hook; give each place a dropout layer of its own"
        if one._backward_hooks or one._backward_pre_hooks:
            return f"{where} has a backward hook, which would see the gradients of all trials at once"
    return None


def explained(error: Exception) -> str:
    """What an error of a stacked forward or backward means, with its own first line."""
    message = str(error)
    first = f"{type(error).__name__}: {message.splitlines()[0] if message else ''}"
    meaning = next((meaning for part, meaning in TOLD.items() if part in message), None)
    return f"{meaning} ({first})" if meaning else first
