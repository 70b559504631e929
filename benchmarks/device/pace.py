"""Sections that measure: the device itself, waits for it, and the speed of arrays."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.device.setup import (
    BASE,
    CONVNET,
    SEED,
    Loaded,
    Row,
    Setup,
    Watch,
    at_least,
    at_most,
    engine,
    jobs,
    synchronize,
    timed,
    train,
)
from common.errors import ConfigError
from common.search.trial import Claim
from worker.training.compute.device import own_device
from worker.training.stacked.batches import Batches

MOST_WAITS = 11  # an epoch
SYNC = "synchronizing"  # in torch's warning
READS = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__)
PROCESSES = 8  # of plain PyTorch, beside the array
GOALS = {"perceptron": 200.0, "convnet": 11.5}  # trials a second, relative to plain one at a time
EPOCHS = 5
ROUNDS = 3


def measure_device(setup: Setup) -> Iterator[Row]:
    """Name versions, measure copies and products, and own the device twice."""
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python"
    yield Row("versions", f"{versions} {platform.python_version()}", "any", bool(versions))
    n = setup.size(1 << 30, 1 << 24)
    source = torch.ones(n // 4, device=setup.device)
    target = torch.empty_like(source)
    target.copy_(source)
    best_s = min(_copy_s(source, target, setup.device) for _ in range(5))
    yield at_least("copy, GB/s", 2 * n / best_s / 1e9, 0.1)
    side = setup.size(8192, 256)
    factor = torch.randn(side, side, device=setup.device, dtype=torch.bfloat16)
    passed_s = []
    for _ in range(4):
        with timed(setup.device) as passed:
            factor @ factor
        passed_s.append(passed[0])
    yield at_least("product in bfloat16, TFLOP/s", 2 * side**3 / min(passed_s) / 1e12, 1e-4)
    wanted = "cpu" if setup.device.type == "cpu" else f"cuda:{setup.device.index or 0}"
    with own_device(wanted) as first:
        yield Row("owner", f"{first.name}, {first.model}", wanted, first.name == wanted)
        try:
            with own_device(wanted) as second:
                told = f"{second.name} again"
        except ConfigError as error:
            told = str(error)
    shared = wanted == "cpu"
    yield Row("a second owner", told, "the CPU alone is shared", ("another" in told) != shared)


def _copy_s(source: Tensor, target: Tensor, at: torch.device) -> float:
    with timed(at) as passed:
        target.copy_(source)
    return passed[0]


class Reads(TorchFunctionMode):
    """Counts reads of tensors' values by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += function in READS
        return function(*args, **(kwargs or {}))


def count_waits(setup: Setup) -> Iterator[Row]:
    """Count how often the host waits for the device in an epoch: on a GPU, torch's own warnings."""
    on_gpu = setup.device.type == "cuda"
    claims = jobs(setup.size(256, 8), 5, dropout=0.2)
    running = iter(engine(setup.device, width=len(claims)).train(claims, lambda n: [], Watch()))
    next(running)  # the first epoch prepares
    found = []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as told, Reads() as reads:
            warnings.simplefilter("always")
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            next(running)
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        syncs = sum(SYNC in str(one.message) for one in told)
        found.append(syncs if on_gpu else reads.count)
    yield at_most("waits in an epoch", max(found), MOST_WAITS)
    yield at_least("waits in an epoch, at least the losses", min(found), 1)


def measure_speed(setup: Setup) -> Iterator[Row]:
    """Compare arrays with plain PyTorch, one trial at a time and in several processes."""
    kinds: dict[str, tuple[dict[str, Any], Sequence[int]]] = {
        "perceptron": ({}, setup.size((1, 64, 256, 1024, 4096), (1, 3))),
        "convnet": (CONVNET, setup.size((1, 16, 64, 256), (2,))),
    }
    task = Loaded()
    epochs = setup.size(EPOCHS, 1)
    for kind, (hp, widths) in kinds.items():
        alone = jobs(setup.size(4, 1), epochs, **hp)
        plain_s = {len(alone): list[float]()}
        trained: dict[tuple[str, int], list[float]] = {}
        host: dict[tuple[str, int], float] = {}
        engines = {
            (way, width): engine(setup.device, task, backend=way, width=width)
            for way in ("eager", "traced")
            for width in widths
        }
        for number in range(setup.size(ROUNDS, 1) + 1):  # the first round warms up
            with timed(setup.device) as passed:
                train_plain(alone, task, setup.device)
            plain_s[len(alone)] += [passed[0] / len(alone)] if number else []
            for (way, width), one in engines.items():
                claims = jobs(width, epochs, **hp)
                with timed(setup.device) as passed:
                    train(one, claims)
                if number:
                    trained.setdefault((way, width), []).append(passed[0] / width)
                    host[way, width] = passed[1] / width
        one_s = median(plain_s[len(alone)])
        yield at_least(f"{kind}, plain, trials a second", 1 / one_s, 1e-3)
        beside = _in_processes(setup, hp, epochs)
        yield at_least(f"{kind}, plain in {PROCESSES} processes, trials a second", beside, 1e-3)
        for (way, width), seconds in trained.items():
            each = median(seconds)
            yield at_least(
                f"{kind}, {way}, width {width}: times plain "
                f"({1 / each:.0f} trials/s, host {host[way, width] * 1e3:.2f} ms a trial)",
                one_s / each,
                0.0,
            )
        best = max(one_s / median(seconds) for seconds in trained.values())
        yield at_least(f"{kind}, the best: times plain", best, 0.01 if setup.smoke else GOALS[kind])


def train_plain(claims: Sequence[Claim], task: Loaded, at: torch.device) -> float:
    """Train trials one at a time with plain PyTorch. Return the mean of their best accuracies."""
    data, found = task.data(), []
    inputs, targets = data.train.inputs.to(at), data.train.targets.to(at)
    val_inputs, val_targets = data.val.inputs.to(at), data.val.targets.to(at)
    for claim in claims:
        hp = {**BASE, **claim.trial.hyperparameters}
        torch.manual_seed(claim.trial.seed)
        model = task.model(hp).to(at)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=float(hp["learning_rate"]), momentum=float(hp["momentum"])
        )
        loss, best = nn.CrossEntropyLoss(), 0.0
        batches = Batches(len(targets), int(hp["batch_size"]), SEED, at)
        for epoch in range(int(claim.trial.epochs)):
            model.train()
            for rows in batches.rows(epoch * batches.per_epoch, batches.per_epoch):
                optimizer.zero_grad(set_to_none=True)
                loss(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                right = model(val_inputs).argmax(-1) == val_targets
                best = max(best, float(right.double().mean()))
        found.append(best)
    synchronize(at)
    return sum(found) / len(found)


def _in_processes(setup: Setup, hp: Mapping[str, Any], epochs: int) -> float:
    """Return the trials a second of plain PyTorch in several processes that share the device."""
    n = setup.size(PROCESSES, 1)
    each = setup.size(4, 1)
    way = "spawn" if setup.device.type == "cuda" else "fork"  # a device bears no fork
    with ProcessPoolExecutor(n, mp_context=get_context(way)) as pool:
        given = [(str(setup.device), each, epochs, dict(hp))] * n
        list(pool.map(_serve_plain, given))  # the first round starts and warms up
        began = time.perf_counter()
        list(pool.map(_serve_plain, given))
        return n * each / (time.perf_counter() - began)


def _serve_plain(given: tuple[str, int, int, dict[str, Any]]) -> float:
    name, n, epochs, hp = given
    torch.set_num_threads(1)
    return train_plain(jobs(n, epochs, **hp), Loaded(), torch.device(name))


RUNS = {"device": measure_device, "waits": count_waits, "speed": measure_speed}
