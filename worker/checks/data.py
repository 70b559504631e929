"""Whether the data is sane: finite, scaled, all classes there in like shares, and no example in two parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worker.checks.report import Finding, Status
from worker.tasks.base import Data, Part

# Sizes of inputs as the model sees them (root of the mean square). Initialisations assume about 1; a pixel in [0, 1] has about 0.3.
LARGEST_RMS = 5.0  # up to here nothing is wrong
UNSCALED_RMS = 20.0  # beyond, it is raw: pixels of 0 to 255 have some 30 to 150
SMALLEST_RMS = 0.01  # below, weights hardly see the inputs
LARGEST_SHIFT = 3.0  # means this many standard deviations from zero slow learning down
UNEQUAL_SCALES = 100.0  # ratio of the largest to the smallest deviation of an input
UNBALANCED = 10.0  # ratio of the largest class to the smallest that accuracy hides
UNLIKE_PARTS = 0.1  # total variation distance of the class shares of training and validation
NATURAL_FACTOR = 3.0  # overlap of parts up to this many times the repetitions within training may be the data's own (coarse values)
ROWS_AT_ONCE = 1024  # copied at a time: the data set itself never is
LOOKED_AT = 20_000  # rows whose scale is measured: enough for two digits


def of_data(data: Data, train: Part) -> list[Finding]:
    """All findings about the data; ``train`` is the training part as the model sees it, preprocessed."""
    checks: list[Callable[[], Finding]] = [lambda: finite(train), lambda: scaled(train.inputs), lambda: apart(data)]
    if data.n_classes is not None:
        checks.append(lambda: balanced(data))
    return [check() for check in checks]


def finite(train: Part) -> Finding:
    """Every number a number, after the preprocessing too; a Part refuses what is not finite before."""
    bad = int((~torch.isfinite(train.inputs)).sum()) if train.inputs.is_floating_point() else 0
    shape = " x ".join(str(n) for n in train.inputs.shape)
    if bad:
        means = "The preprocessing divides by zero or overflows: look at inputs that never change, and at their sizes."
        return Finding(
            "data: finite", Status.FAILED, f"{bad} of {train.inputs.numel()} training inputs are not finite", means, {"bad": bad}
        )
    return Finding("data: finite", Status.PASSED, f"training inputs {shape}, all finite", figures={"n_train": len(train)})


def scaled(inputs: Tensor) -> Finding:
    """Inputs of about the size that initial weights are made for.

    Source: CS231n notes, "Neural Networks Part 2", data preprocessing; LeCun et al., "Efficient BackProp", 1998, section 4.3.
    """
    name = "data: scaled"
    if not inputs.is_floating_point():
        return Finding(name, Status.LEFT_OUT, f"inputs are {inputs.dtype}: numbers of words or categories have no scale")
    looked = inputs[:: max(1, len(inputs) // LOOKED_AT)].flatten(1).double()
    rms, mean, deviation = float(looked.square().mean().sqrt()), float(looked.mean()), float(looked.std())
    low, high = float(looked.min()), float(looked.max())
    figures = {"rms": rms, "mean": mean, "deviation": deviation, "lowest": low, "highest": high}
    found = f"from {low:.3g} to {high:.3g}, mean {mean:.2g}, deviation {deviation:.2g}"
    remedy = 'Set preprocess = "normalise" in [space] (or on the task), or divide in data(): pixels by 255.'
    if rms > UNSCALED_RMS or rms < SMALLEST_RMS:
        size = "far larger" if rms > UNSCALED_RMS else "far smaller"
        return Finding(
            name, Status.FAILED, found, f"The inputs are {size} than initial weights are made for: not scaled. {remedy}", figures
        )
    if rms > LARGEST_RMS:
        return Finding(name, Status.WARNING, found, f"The inputs are large; the best learning rate shrinks with them. {remedy}", figures)
    if deviation and abs(mean) > LARGEST_SHIFT * deviation:
        return Finding(name, Status.WARNING, found, f"The mean is far from zero, measured in deviations. {remedy}", figures)
    return _unequal(name, looked, found, remedy, figures)


def _unequal(name: str, looked: Tensor, found: str, remedy: str, figures: dict[str, float]) -> Finding:
    deviations = looked.std(0) if len(looked) > 1 else looked.new_zeros(looked.shape[1])
    moving = deviations[deviations > 0]
    n_constant = len(deviations) - len(moving)
    told = f"{found}{f'; {n_constant} of {len(deviations)} inputs never change' if n_constant else ''}"
    ratio = float(torch.quantile(moving, 0.95) / torch.quantile(moving, 0.05)) if 1 < len(moving) < 1 << 20 else 1.0  # robust to oddities
    figures = {**figures, "constant": float(n_constant), "ratio": ratio}
    if ratio > UNEQUAL_SCALES:
        means = f"Some inputs vary {ratio:.0f} times as much as others, which drown. {remedy}"
        return Finding(name, Status.WARNING, told, means, figures)
    return Finding(name, Status.PASSED, told, figures=figures)


def balanced(data: Data) -> Finding:
    """Every class in both parts, in like shares; what is unbalanced is said with the accuracy that guessing has."""
    assert data.n_classes is not None  # asked for by the caller
    counts = {
        name: torch.bincount(part.targets, minlength=data.n_classes).double() for name, part in _parts(data).items() if name != "test"
    }
    shares = {name: count / count.sum() for name, count in counts.items()}
    largest, smallest = float(shares["train"].max()), float(shares["train"].min())
    majority = float(shares["val"].max())
    distance = 0.5 * float((shares["train"] - shares["val"]).abs().sum())
    figures = {"largest_share": largest, "smallest_share": smallest, "val_majority": majority, "distance": distance}
    found = f"{data.n_classes} classes of {smallest:.1%} to {largest:.1%} of training; always guessing one is right in {majority:.1%}"
    name = "data: labels"
    only_val = ((counts["train"] == 0) & (counts["val"] > 0)).nonzero().flatten().tolist()
    if only_val:
        listed = ", ".join(str(c) for c in only_val[:5])
        means = (
            "They cannot be learnt. The parts were cut from sorted data, or the labels are shifted: split at random, by class (stratify)."
        )
        return Finding(name, Status.FAILED, f"{found}; in validation but never in training: {listed}", means, figures)
    absent = [c for c in range(data.n_classes) if not counts["train"][c]]
    if absent:
        means = f"n_classes = {data.n_classes} counts classes that do not occur; the first loss and the accuracy of guessing mislead."
        return Finding(name, Status.WARNING, f"{found}; never in training: {', '.join(map(str, absent[:5]))}", means, figures)
    if distance > UNLIKE_PARTS and min(len(data.train), len(data.val)) >= 10 * data.n_classes:  # fewer: chance alone makes such distances
        means = "Training and validation have other shares of the classes: split at random, by class (stratify)."
        return Finding(name, Status.WARNING, f"{found}; shares differ between the parts by {distance:.0%}", means, figures)
    if largest > UNBALANCED * smallest:
        means = (
            f"Unbalanced: an accuracy of {majority:.1%} is guessing. Weigh the loss, or rank by another metric (see metrics of the task)."
        )
        return Finding(name, Status.WARNING, found, means, figures)
    return Finding(name, Status.PASSED, found, figures=figures)


def apart(data: Data) -> Finding:
    """No example in two parts, by the hash of its inputs.

    Values as coarse as a few categories repeat by themselves: how often they do within training says what is natural.
    """
    hashes = {name: _hashes(part.inputs) for name, part in _parts(data).items()}
    train = Counter(hashes["train"])
    repeated = sum(n for n in train.values() if n > 1) / len(hashes["train"])
    overlaps = {f"{name} in train": _share(hashes[name], train) for name in hashes if name != "train"}
    if "test" in hashes:
        overlaps["test in val"] = _share(hashes["test"], Counter(hashes["val"]))
    figures = {**overlaps, "repeated_in_train": repeated}
    worst = max(overlaps.values())
    name, told = (
        "data: parts",
        ", ".join(f"{share:.2%} of {where.replace(' in ', ' are also in ')}" for where, share in overlaps.items() if share),
    )
    if not worst:
        unique = f"; {repeated:.1%} of training rows occur twice" if repeated else ""
        sizes = ", ".join(f"{len(known)} {name}" for name, known in hashes.items())
        return Finding(name, Status.PASSED, f"{sizes}: no example in two of them{unique}", figures=figures)
    if worst <= NATURAL_FACTOR * repeated:
        means = (
            f"{repeated:.2%} of the training rows occur twice as well, so this may be the data's own; remove repetitions before the split."
        )
        return Finding(name, Status.WARNING, told, means, figures)
    means = (
        "A leak: what is validated on was trained on, so that its accuracy flatters. "
        "Split once, by example (or by person, by scene), before any copying."
    )
    return Finding(name, Status.FAILED, told, means, figures)


def _parts(data: Data) -> Mapping[str, Part]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def rows(inputs: Tensor) -> list[bytes]:
    """Each example's inputs as bytes, equal for equal inputs."""
    values = inputs.detach().reshape(len(inputs), -1).cpu()
    values = values + 0 if values.is_floating_point() else values  # -0.0 and 0.0 are one value
    return [row.tobytes() for row in values.contiguous().numpy()]


def _hashes(inputs: Tensor) -> list[bytes]:
    chunks = torch.split(inputs, ROWS_AT_ONCE)  # so that no second copy of the data lies in memory
    return [hashlib.blake2b(row, digest_size=16).digest() for chunk in chunks for row in rows(chunk)]


def _share(hashes: list[bytes], others: Counter[bytes]) -> float:
    return sum(row in others for row in hashes) / len(hashes)
