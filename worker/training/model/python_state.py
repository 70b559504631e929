"""State of a model outside its tensors: attributes, and the generators of Python and numpy.

The engine may try a forward at any time only if this state is put back afterwards.
"""

from __future__ import annotations

import copy
import linecache
import random
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INTERNAL = frozenset({"training", "_parameters", "_buffers", "_modules"})
# Attributes that every module has.
COMMON = frozenset(vars(nn.Module())) | {"_is_full_backward_hook"}
# Numbers of a tensor, or items of a list, that are compared. Of a larger one it is its version, or
# its length.
MOST_HASHED = 1 << 16
OURS, TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
NOTING = str(Path(__file__).with_name("attributes.py"))  # its frames stand between a read and us
PLAIN = (bool, int, float, str, bytes, type(None))
GENERATORS = (random.Random, np.random.Generator, torch.Generator)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of one module that torch does not manage.

    Those of a scripted module are part of its code.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {
        key: value
        for key, value in vars(module).items()
        if key not in COMMON and key not in INTERNAL
    }


def fingerprint(value: object, seen: set[int] | None = None) -> Hashable:
    """Return a hashable that is equal as long as a value stays as it is, as far as can be seen."""
    seen = set() if seen is None else seen
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in seen or isinstance(value, nn.Module | type):
        return "seen"
    if isinstance(value, Tensor):
        return _of_tensor(value)
    seen = seen | {id(value)}
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes() if value.size <= MOST_HASHED else id(value))
    if isinstance(value, Mapping | set | list | tuple) and len(value) > MOST_HASHED:
        return (type(value).__name__, len(value))
    if isinstance(value, Mapping):
        return tuple((fingerprint(k, seen), fingerprint(v, seen)) for k, v in list(value.items()))
    if isinstance(value, set | frozenset):
        return frozenset(fingerprint(item, seen) for item in value)
    if isinstance(value, list | tuple):
        return tuple(fingerprint(item, seen) for item in value)
    if (state := _generator_state(value)) is not None:
        return fingerprint(state, seen)
    held = getattr(value, "__dict__", None)
    return fingerprint(held, seen) if isinstance(held, dict) else type(value).__name__


def _of_tensor(tensor: Tensor) -> Hashable:
    kind = (tuple(tensor.shape), str(tensor.dtype))
    if tensor.numel() > MOST_HASHED or tensor.layout != torch.strided or tensor.is_meta:
        return (*kind, id(tensor), tensor._version)
    try:
        return (
            *kind,
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
    except (RuntimeError, TypeError):  # a tensor of a transform, or of a kind without bytes
        return (*kind, id(tensor))


def _generator_state(value: object) -> Any:
    """Return the state of a generator of random numbers, or None if it is none."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.get_state() if isinstance(value, torch.Generator) else None


def attribute_fingerprints(module: nn.Module) -> dict[tuple[str, str], Hashable]:
    """Return a fingerprint of each attribute, by the module's name and the attribute's."""
    return {
        (name, key): fingerprint(value)
        for name, one in module.named_modules()
        for key, value in plain_attributes(one).items()
    }


def path_of(name: str, key: str) -> str:
    """Return how a person writes an attribute of a submodule."""
    return f"{name}.{key}" if name else key


def generators() -> dict[str, Hashable]:
    """Return fingerprints of the states of Python's and numpy's own generators."""
    return {
        "Python's": random.getstate(),
        "numpy's": fingerprint(np.random.get_state(legacy=False)),
    }


def seed_python(seed: int) -> None:
    """Seed Python's and numpy's own generators, for a model that draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the attributes of modules, and Python's and numpy's generators, back at the end.

    An attribute that cannot be copied stays as the block leaves it.
    """
    owners = list(modules)
    memo: dict[int, Any] = {}
    for one in owners:
        memo |= {id(part): part for part in (one, *one.parameters(), *one.buffers())}
    before = [
        (one, {key: (value, _copy(value, memo)) for key, value in plain_attributes(one).items()})
        for one in owners
    ]
    random_before, numpy_before = random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
    finally:
        for one, attributes in before:
            _put_back(one, attributes)
        random.setstate(random_before)
        np.random.set_state(numpy_before)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put a model back at the end: attributes, tensors and mode; and all random generators."""
    modes = [(one, one.training) for one in module.modules()]
    holders: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (held, dict(held))
        for one in module.modules()
        for held in (one._parameters, one._buffers)
        if isinstance(held, dict)  # a scripted module has others, which hold what they held
    ]
    tensors = [
        (tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())
    ]
    torch_before = torch.default_generator.get_state()
    # Asking for the state of a device's generator would start the device.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_device = torch.cuda.get_rng_state_all() if started else []
    try:
        with attributes_kept(module.modules()):
            yield
    finally:
        for one, training in modes:
            one.training = training
        for holder, held in holders:
            holder.clear()
            holder.update(held)
        with torch.no_grad():
            for tensor, values in tensors:
                tensor.copy_(values)
        torch.default_generator.set_state(torch_before)
        if on_device:
            torch.cuda.set_rng_state_all(on_device)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, PLAIN):
        return value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # locks, open files, generators: whatever their own code raises
        return value


def _put_back(module: nn.Module, before: Mapping[str, tuple[Any, Any]]) -> None:
    for key in plain_attributes(module).keys() - before.keys():
        del module.__dict__[key]
    for key, (value, kept) in before.items():
        # What did not change stays the same object, since others may hold it too.
        same = kept is value or fingerprint(value) == fingerprint(kept)
        module.__dict__[key] = value if same else kept


def save_attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the attributes that can be saved, as plain values and tensors, by module.

    These are numbers, text, tensors, generators, and lists, tuples and dicts of the former.
    """
    return {
        name: {
            key: _plainly(value) for key, value in plain_attributes(one).items() if is_saved(value)
        }
        for name, one in module.named_modules()
    }


def restore_attributes(module: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the attributes that ``save_attributes`` returned.

    Raises:
        KeyError: a module is missing.
    """
    modules = dict(module.named_modules())
    for name, attributes in saved.items():
        for key, value in attributes.items():
            held = modules[name].__dict__.get(key)
            if isinstance(held, random.Random):
                held.setstate(value)
            elif isinstance(held, np.random.Generator):
                held.bit_generator.state = value
            elif isinstance(held, torch.Generator):
                held.set_state(value)
            else:
                modules[name].__dict__[key] = _to(value, held)


def is_saved(value: object) -> bool:
    """Return whether a saved state has an attribute of this value."""
    return isinstance(value, GENERATORS) or _is_plain(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return type(value) is dict and all(_is_plain(item) for item in (*value, *value.values()))
    return isinstance(value, Tensor) or type(value) in PLAIN


def _plainly(value: Any) -> Any:
    if isinstance(value, GENERATORS):
        return _generator_state(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, list | tuple):
        return type(value)(_plainly(item) for item in value)
    return {k: _plainly(v) for k, v in value.items()} if isinstance(value, dict) else value


def _to(value: Any, held: object) -> Any:
    """Return a saved value, where the value that it replaces lies."""
    return value.to(held.device) if isinstance(held, Tensor) else value


def find_line(call: Callable[[], object], probe: Callable[[], Hashable]) -> str:
    """Return the line of the user's code that changes what ``probe`` returns, or "".

    Args:
        call: runs the code.
        probe: is asked at each line outside of torch and of this program.
    """
    last: dict[str, Any] = {"seen": probe(), "line": None, "found": None}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if last["found"] is not None or not is_users(frame.f_code.co_filename):
            return None
        if (now := probe()) != last["seen"]:
            last["found"], last["seen"] = last["line"], now
        last["line"] = (frame.f_code.co_filename, frame.f_lineno)
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(outer)
    if last["found"] is None and probe() != last["seen"]:
        last["found"] = last["line"]
    return tell_line(*last["found"]) if last["found"] is not None else ""


def is_users(file: str) -> bool:
    """Return whether a source file is neither of torch, nor of Python, nor of the engine."""
    parents = set(Path(file).parents)
    return not {OURS, TORCH, Path(random.__file__).parent} & parents and not file.startswith("<")


def tell_line(file: str, number: int) -> str:
    """Return a line of the user's code for a message, in brackets."""
    text = linecache.getline(file, number).strip()
    return f" ({Path(file).name}, line {number}{': ' + text if text else ''})"


def users_line(frame: FrameType | None) -> str:
    """Return the line of the user's code that a frame of a model's forward runs, or "".

    It is empty for a call by torch's own layers alone.
    """
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return tell_line(file, frame.f_lineno)
        if OURS in Path(file).parents and file != NOTING:
            return ""  # the engine's call of the model
        frame = frame.f_back
    return ""


def line_of(function: object) -> str:
    """Return the first line of a function of the user's, or "" for any other."""
    code = getattr(function, "__code__", None)
    if code is None or not is_users(code.co_filename):
        return ""
    return tell_line(code.co_filename, code.co_firstlineno)
