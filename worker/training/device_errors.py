"""What an error says of the device: its memory ran out, or it serves this process no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from traceback import format_exception

import torch

from common.search.trial import Claim

# Parts of the messages of RuntimeErrors. cuBLAS, cuDNN and the like say ALLOC_FAILED where their
# workspace does not fit, and cuDNN finds no engine whose workspace fits.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "unable to find an engine",
)


class Poisoned(BaseException):
    """The device serves this process no more, as after an assertion in a kernel.

    Whatever the process asks of the device raises from now on. So no trial of this process can be
    trained, saved or blamed, and the process has to end. It is no ``Exception``, so that it passes
    whoever handles the errors of a trial.
    """

    def __init__(self, error: BaseException, claims: Sequence[Claim] = ()) -> None:
        """Keep what the error says.

        Args:
            error: what the device raised.
            claims: the trials that were computed then; none if that is unknown.
        """
        self.reason = f"{type(error).__name__}: {error}"
        self.traceback = "".join(format_exception(error))
        self.claims = tuple(claims)
        super().__init__(self.reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, that of the host or that of the device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)
    )


def is_poisoned(error: BaseException) -> bool:
    """Return whether the device serves this process no more.

    A GPU in use is asked, since its errors come late and a task's code may wrap them. Without one
    the types of the error and of its causes tell.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return not _is_serving()
    return not is_out_of_memory(error) and any(
        isinstance(one, torch.AcceleratorError) for one in _list_causes(error)
    )


def refuse_poisoned(error: BaseException, claims: Sequence[Claim] = ()) -> None:
    """Do nothing, unless the device serves this process no more.

    Args:
        error: what was raised.
        claims: the trials that were computed then; none if that is unknown.

    Raises:
        Poisoned: it does not.
    """
    if is_poisoned(error):
        raise Poisoned(error, claims) from None


def _is_serving() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    one: BaseException | None = error
    seen = set[int]()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
