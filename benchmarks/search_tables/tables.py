"""Tasks whose training runs are known: published tables, and functions with a known optimum.

A task returns the metric of a configuration after a number of epochs at once, so that a search of
hours takes a second.

Source: Zimmer et al., "Auto-PyTorch Tabular", TPAMI 2021 (LCBench), by the surrogate of Pfisterer
et al., "YAHPO Gym", AutoML 2022; Metz et al., "Using a thousand optimization tasks to learn
hyperparameter search strategies", 2020 (TaskSet), by the tables of Kadra et al., "Scaling Laws for
Hyperparameter Optimization", NeurIPS 2023.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.search.space import Space
from common.search.values import Hyperparameters

Floats = NDArray[np.float64]
# Epochs of LCBench's curves before the first step: the surrogate's epoch 1 is the untrained
# network.
UNTRAINED = 1


class Curves(Protocol):
    """The known training runs of a task."""

    space: Space

    def at(self, configurations: Sequence[Hyperparameters], epochs: float) -> Floats:
        """Return the validation and test metric after ``epochs``, (n, 2). Larger is better."""


class Task:
    """A task as a search sees it.

    Args:
        name: its name in tables.
        curves: its known training runs.
        max_epochs: the longest training, R.
        noise: standard deviation of the noise on each measurement, in the metric's unit.
        best: the best validation metric known at ``max_epochs``. None if it is unknown.
        scale: factor from the metric's unit to the unit in which regret is printed.
    """

    def __init__(
        self,
        name: str,
        curves: Curves,
        max_epochs: int,
        noise: float,
        best: float | None,
        scale: float = 1.0,
    ) -> None:
        self.name, self.space, self.max_epochs, self.noise, self.best, self.scale = (
            name,
            curves.space,
            max_epochs,
            noise,
            best,
            scale,
        )
        self._curves = curves

    def measure(
        self, trials: Sequence[tuple[int, Hyperparameters]], epochs: float, seed: int
    ) -> list[float]:
        """Return the validation metric of numbered trials, with noise.

        The noise depends only on the trial, the epochs and the seed, so the order of training does
        not matter.
        """
        values = self._curves.at([hyperparameters for _, hyperparameters in trials], epochs)[:, 0]
        if self.noise:
            key = zlib.crc32(self.name.encode())
            values = values + [
                self.noise
                * np.random.default_rng([seed, key, n, round(epochs * 1000)]).standard_normal()
                for n, _ in trials
            ]
        return [float(value) for value in values]

    def outcome(self, chosen: Hyperparameters) -> tuple[float, float]:
        """Return a configuration's true validation and test metric after ``max_epochs``."""
        validation, test = self._curves.at([chosen], self.max_epochs)[0]
        return float(validation), float(test)


@lru_cache(maxsize=4)
def _surrogate(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise SystemExit(
            "the suite lc needs onnxruntime; install the extra: pip install -e '.[bench]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class LCBench:
    """A perceptron with 7 hyperparameters on one of 34 tables. Accuracy is in points.

    Args:
        data: the folder with model.onnx and encoding.json.
        task: OpenML's number.
        learning_rate: the range that is searched.
        n_idle: number of additional hyperparameters without any effect.
    """

    NAMES = (
        "batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "depth",
        "hidden",
        "dropout",
    )

    def __init__(
        self,
        data: Path,
        task: str,
        learning_rate: tuple[float, float] = (1e-4, 1e-1),
        n_idle: int = 0,
    ) -> None:
        encoding = json.loads((data / "encoding.json").read_text())["OpenML_task_id"]
        if task not in encoding:
            raise SystemExit(
                f"--tasks {task}: the surrogate in {data} knows "
                f"{', '.join(sorted(set(encoding) - {'#na#'}))}"
            )
        self._model, self._code = data / "model.onnx", encoding[task]
        ranges: dict[str, Any] = {
            "batch_size": _bounded("log_int_uniform", 16, 512),
            "learning_rate": {"log_uniform": list(learning_rate), "limits": [1e-4, 1e-1]},
            "momentum": _bounded("uniform", 0.1, 0.99),
            "weight_decay": _bounded("uniform", 1e-5, 1e-1),
            "depth": _bounded("int_uniform", 1, 5),
            "hidden": _bounded("log_int_uniform", 64, 1024),
            "dropout": _bounded("uniform", 0.0, 0.99),
        }
        self.space = Space.parse(
            ranges | {f"idle{number}": _bounded("uniform", 0.0, 1.0) for number in range(n_idle)}
        )

    def at(self, configurations: Sequence[Hyperparameters], epochs: float) -> Floats:
        """Return accuracy on validation and balanced accuracy on test, in points, (n, 2)."""
        numbers = np.array(
            [
                [epochs + UNTRAINED, *(float(one[name]) for name in self.NAMES)]
                for one in configurations
            ],
            np.float32,
        )
        codes = np.full((len(numbers), 1), self._code, np.int32)
        (out,) = _surrogate(self._model).run(["output"], {"x_cat": codes, "x_cont": numbers})
        return np.stack([out[:, 1], 100 * out[:, 5]], axis=1).astype(float)


@lru_cache(maxsize=64)
def _forest(path: Path) -> Any:
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError:
        raise SystemExit(
            "the suite ts needs scikit-learn; install the extra: pip install -e '.[bench]'"
        ) from None
    table = np.load(path)
    best_so_far = np.minimum.accumulate(table["valid"].astype(float), axis=1)[:, TaskSet.GRID]
    targets = np.concatenate([best_so_far, table["test"][:, TaskSet.GRID]], axis=1)
    return ExtraTreesRegressor(40, max_features=0.7, random_state=0).fit(table["x"], targets)


class TaskSet:
    """Adam with 8 hyperparameters over many decades: 1,000 real runs per task.

    A forest of trees interpolates between them. The metric is the negative validation loss in nats,
    best so far. Losses are capped at 0.75 (guessing has 0.69).
    """

    GRID = (0, 1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 50)  # epochs that the forest predicts
    RANGES = (
        ("learning_rate", 1e-8, 10.0),
        ("beta1", 1e-4, 1.0),  # 1 - beta1, as in the tables; beta2 likewise
        ("beta2", 1e-6, 1.0),
        ("epsilon", 1e-10, 1e3),
        ("l1", 1e-8, 10.0),
        ("l2", 1e-8, 10.0),
        ("linear_decay", 1e-7, 1e-4),
        ("exponential_decay", 1e-6, 1e-3),
    )

    def __init__(self, data: Path, task: str) -> None:
        path = data / f"{int(task):02d}.npz"
        if not path.exists():
            raise SystemExit(
                f"--tasks {task}: no such table; {data} has "
                f"{', '.join(p.stem for p in sorted(data.glob('*.npz')))}"
            )
        self._path = path
        # The whole curve of each configuration, because the forest is slow.
        self._known: dict[tuple[float, ...], Floats] = {}
        self.space = Space.parse(
            {name: _bounded("log_uniform", low, high) for name, low, high in self.RANGES}
        )

    def at(self, configurations: Sequence[Hyperparameters], epochs: float) -> Floats:
        """Return the negative losses on validation and test, (n, 2)."""
        keys = [tuple(float(one[name]) for name, _, _ in self.RANGES) for one in configurations]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            self._known |= zip(new, _forest(self._path).predict(np.log10(new)), strict=True)
        losses = np.array([self._known[key] for key in keys])
        column = int(np.searchsorted(self.GRID, epochs))
        return -np.stack([losses[:, column], losses[:, len(self.GRID) + column]], axis=1)


class Synthetic:
    """A task with a known optimum.

    Quality falls with the squared distance from the optimum, and training approaches it.

    Args:
        d: number of hyperparameters.
        relevant: number of hyperparameters that matter.
        slow: how much a large first hyperparameter speeds up training, so that the winner at the
            end loses the first epochs.
        at: where the optimum of the first hyperparameter lies, in units of its range; 1.3 is beyond
            its border.
        choices: number of choices, the last hyperparameters, with five options of which one is
            best.
        sharp: how narrow the optimum is.
        seed: of the task itself.
    """

    OPTIONS = "abcde"

    def __init__(
        self,
        d: int,
        relevant: int,
        slow: float = 0.0,
        at: float | None = None,
        choices: int = 0,
        sharp: float = 1.0,
        seed: int = 0,
    ) -> None:
        generator = np.random.default_rng(seed)
        self._slow, self._n_numbers = slow, d - choices
        choice, number = (
            {"choice": list(self.OPTIONS)},
            {"uniform": [0.0, 1.0], "limits": [-1.0, 2.0]},
        )
        self.space = Space.parse(
            {f"h{j}": choice if j >= self._n_numbers else number for j in range(d)}
        )
        self._optimum = generator.uniform(0.1, 0.9, d)
        self._optimum[0] = 0.25 if slow else self._optimum[0]
        self._optimum[0] = self._optimum[0] if at is None else at
        self._weights = (
            np.where(np.arange(d) < relevant, generator.uniform(0.5, 2.0, d), 0.0) * sharp
        )
        self._weights[self._n_numbers :] = 1.0
        # (d, 5): how bad each option is
        self._badness = 0.15 * generator.permuted(np.tile(np.arange(5), (d, 1)), axis=1)

    def at(self, configurations: Sequence[Hyperparameters], epochs: float) -> Floats:
        """Return the quality, (n, 2). Test is the same as validation."""
        off = np.array([self._off(one) for one in configurations])
        loss = 100 * (self._weights * np.minimum(off * off, 1.0)).sum(axis=1)
        first = np.array([float(one["h0"]) for one in configurations])
        speed = np.exp(4 * self._slow * (first - 0.25)) * 0.25
        value = 100 - loss - 60 * np.exp(-speed * epochs)
        return np.stack([value, value], axis=1)

    def _off(self, configuration: Hyperparameters) -> list[float]:
        values = list(configuration.values())
        numbers = [
            float(value) - optimum
            for value, optimum in zip(values[: self._n_numbers], self._optimum, strict=False)
        ]
        return numbers + [
            self._badness[j, self.OPTIONS.index(str(values[j]))]
            for j in range(self._n_numbers, len(values))
        ]


def _bounded(kind: str, low: float, high: float) -> dict[str, list[float]]:
    """Return a range that is its own limit, because the table has nothing beyond it."""
    return {kind: [low, high], "limits": [low, high]}
