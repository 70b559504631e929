"""A device that is not there: torch's "meta" device, asked as a GPU would be.

Tensors on it have shapes and no numbers. Whatever waits for a GPU is counted, and gets made-up
numbers: zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten
# Each of these waits for the device, whose numbers the host wants.
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
# They may have tensors of both sides.
COPIES = {aten.copy_.default, aten._to_copy.default}


class Pretended(TorchDispatchMode):
    """Counts what a GPU would wait for, while it is the innermost mode.

    Attributes:
        waits: how often the host waits for the device.
        uploads: how many tensors go from the host to the device.
        mixed: operations that a GPU would refuse, as they mix tensors of both sides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.uploads = 0
        self.mixed = Counter[str]()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, named)) if isinstance(one, Tensor)]
        here = [one for one in tensors if one.device == META]
        if function in READS and here:
            self.waits += 1
            return function is aten.equal.default or (0.0 if here[0].is_floating_point() else 0)
        if function is aten._to_copy.default:
            wanted = torch.device(named.get("device") or args[0].device)
            if here and wanted != META:
                self.waits += 1
                return torch.zeros(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
            self.uploads += not here and wanted == META
        elif function is aten.copy_.default:
            to_device, from_device = (one.device == META for one in args[:2])
            if from_device and not to_device:
                self.waits += 1
                return args[0].zero_()
            self.uploads += to_device and not from_device
        elif here and any(one.device != META and one.dim() for one in tensors):
            self.mixed[str(function)] += 1
        return function(*args, **named)


def counted(of: Iterator[Any]) -> Iterator[tuple[Any, Pretended]]:
    """Yield what an iterator yields, each with what was counted on the way to it."""
    while True:
        with Pretended() as mode:
            try:
                found = next(of)
            except StopIteration:
                return
        yield found, mode
