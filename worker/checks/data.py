"""Checks of the data: values are finite and scaled, classes are balanced, parts do not overlap."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from worker.checks.report import Finding, Status
from worker.tasks import trees
from worker.tasks.base import Data, Part
from worker.tasks.trees import Tree

# The RMS constants are limits on the root mean square of the inputs as the model sees them.
# Initialisations assume about 1; pixels in [0, 1] have about 0.3.
LARGEST_RMS = 5.0  # no warning up to here
UNSCALED_RMS = 20.0  # above: raw values; pixels from 0 to 255 have about 30 to 150
SMALLEST_RMS = 0.01  # below, the inputs hardly affect the outputs
LARGEST_SHIFT = 3.0  # a mean this many standard deviations from zero slows learning down
UNEQUAL_SCALES = 100.0  # ratio of the largest to the smallest standard deviation among the inputs
# Largest class over smallest class; above, accuracy hides errors on small classes.
UNBALANCED = 10.0
UNLIKE_PARTS = 0.1  # total variation distance between the class shares of training and validation
# Coarse values repeat naturally. An overlap of parts up to this many times the repetitions within
# the training part is only a warning.
NATURAL_FACTOR = 3.0
ROWS_AT_ONCE = 1024  # rows copied at a time, so that the whole data set is never copied
LOOKED_AT = 20_000  # rows whose scale is measured: enough for two digits


def of_data(data: Data, train: Part) -> list[Finding]:
    """Return all findings about the data.

    Args:
        data: the task's data.
        train: the training part as the model sees it, after preprocessing.
    """
    scales = [check_scale(inputs, name) for name, inputs in trees.name_leaves(train.inputs).items()]
    found = [finite(train), *scales, apart(data)]
    return [*found, check_balance(data)] if data.n_classes is not None else found


def finite(train: Part) -> Finding:
    """Check that all training inputs are finite after preprocessing.

    ``Part`` already refuses values that are not finite before preprocessing.
    """
    named = trees.name_leaves(train.inputs)
    floating = [one for one in named.values() if one.is_floating_point()]
    bad = sum(int((~torch.isfinite(one)).sum()) for one in floating)
    shape = ", ".join(
        f"{name} {' x '.join(str(n) for n in one.shape)}".strip() for name, one in named.items()
    )
    if bad:
        means = (
            "The preprocessing divides by zero or overflows: look at inputs that never change, "
            "and at their sizes."
        )
        return Finding(
            "data: finite",
            Status.FAILED,
            f"{bad} of {sum(one.numel() for one in named.values())} training inputs are not finite",
            means,
            {"bad": bad},
        )
    return Finding(
        "data: finite",
        Status.PASSED,
        f"training inputs {shape}, all finite",
        figures={"n_train": len(train)},
    )


def check_scale(inputs: Tensor, of: str = "") -> Finding:
    """Check that the inputs have about the scale that weight initialisations assume.

    ``of`` is the name of the tensor, if there are several.

    Source: CS231n notes, "Neural Networks Part 2", data preprocessing; LeCun et al., "Efficient
    BackProp", 1998, section 4.3.
    """
    name = f"data: scaled ({of})" if of else "data: scaled"
    if not inputs.is_floating_point():
        return Finding(
            name,
            Status.LEFT_OUT,
            f"inputs are {inputs.dtype}: indices of words or categories have no scale",
        )
    looked = inputs[:: max(1, len(inputs) // LOOKED_AT)].flatten(1).double()
    rms, mean, deviation = (
        float(looked.square().mean().sqrt()),
        float(looked.mean()),
        float(looked.std()),
    )
    low, high = float(looked.min()), float(looked.max())
    figures = {"rms": rms, "mean": mean, "deviation": deviation, "lowest": low, "highest": high}
    found = f"from {low:.3g} to {high:.3g}, mean {mean:.2g}, deviation {deviation:.2g}"
    remedy = (
        'Set preprocess = "normalise" in [space] (or on the task), or divide in data(): pixels by '
        "255."
    )
    if rms > UNSCALED_RMS or rms < SMALLEST_RMS:
        size = "far larger" if rms > UNSCALED_RMS else "far smaller"
        return Finding(
            name,
            Status.FAILED,
            found,
            f"The inputs are not scaled: {size} than initial weights assume. {remedy}",
            figures,
        )
    if rms > LARGEST_RMS:
        return Finding(
            name,
            Status.WARNING,
            found,
            f"The inputs are large; the best learning rate shrinks with them. {remedy}",
            figures,
        )
    if deviation and abs(mean) > LARGEST_SHIFT * deviation:
        return Finding(
            name,
            Status.WARNING,
            found,
            f"The mean is far from zero, measured in deviations. {remedy}",
            figures,
        )
    return _unequal(name, looked, found, remedy, figures)


def _unequal(
    name: str, looked: Tensor, found: str, remedy: str, figures: dict[str, float]
) -> Finding:
    deviations = looked.std(0) if len(looked) > 1 else looked.new_zeros(looked.shape[1])
    moving = deviations[deviations > 0]
    n_constant = len(deviations) - len(moving)
    told = (
        f"{found}{f'; {n_constant} of {len(deviations)} inputs never change' if n_constant else ''}"
    )
    # The quantiles ignore a few outliers.
    ratio = (
        float(torch.quantile(moving, 0.95) / torch.quantile(moving, 0.05))
        if 1 < len(moving) < 1 << 20
        else 1.0
    )
    figures = {**figures, "constant": float(n_constant), "ratio": ratio}
    if ratio > UNEQUAL_SCALES:
        means = (
            f"Some inputs vary {ratio:.0f} times as much as others, which then have no effect. "
            f"{remedy}"
        )
        return Finding(name, Status.WARNING, told, means, figures)
    return Finding(name, Status.PASSED, told, figures=figures)


def check_balance(data: Data) -> Finding:
    """Check that the classes are balanced and that both parts have similar shares of each.

    A warning about unbalanced classes states the accuracy of always guessing one class.
    """
    assert data.n_classes is not None  # checked by the caller
    counts = {
        name: torch.bincount(part.targets, minlength=data.n_classes).double()
        for name, part in _parts(data).items()
        if name != "test"
    }
    shares = {name: count / count.sum() for name, count in counts.items()}
    largest, smallest = float(shares["train"].max()), float(shares["train"].min())
    majority = float(shares["val"].max())
    distance = 0.5 * float((shares["train"] - shares["val"]).abs().sum())
    figures = {
        "largest_share": largest,
        "smallest_share": smallest,
        "val_majority": majority,
        "distance": distance,
    }
    found = (
        f"{data.n_classes} classes of {smallest:.1%} to {largest:.1%} of training; always "
        f"guessing one is right in {majority:.1%}"
    )
    name = "data: labels"
    only_val = ((counts["train"] == 0) & (counts["val"] > 0)).nonzero().flatten().tolist()
    if only_val:
        listed = ", ".join(str(c) for c in only_val[:5])
        means = (
            "They cannot be learnt. The parts were cut from sorted data, or the labels are "
            "shifted: split at random, by class (stratify)."
        )
        return Finding(
            name,
            Status.FAILED,
            f"{found}; in validation but never in training: {listed}",
            means,
            figures,
        )
    absent = [c for c in range(data.n_classes) if not counts["train"][c]]
    if absent:
        means = (
            f"n_classes = {data.n_classes} includes classes that do not occur, so the first loss "
            "and the accuracy of guessing mislead."
        )
        return Finding(
            name,
            Status.WARNING,
            f"{found}; never in training: {', '.join(map(str, absent[:5]))}",
            means,
            figures,
        )
    # With fewer examples, chance alone makes such distances.
    if distance > UNLIKE_PARTS and min(len(data.train), len(data.val)) >= 10 * data.n_classes:
        means = (
            "The shares of the classes differ between training and validation: split at random, "
            "by class (stratify)."
        )
        return Finding(
            name,
            Status.WARNING,
            f"{found}; shares differ between the parts by {distance:.0%}",
            means,
            figures,
        )
    if largest > UNBALANCED * smallest:
        means = (
            f"Unbalanced: guessing has an accuracy of {majority:.1%}. Weight the loss, or rank by "
            "another metric (see metrics of the task)."
        )
        return Finding(name, Status.WARNING, found, means, figures)
    return Finding(name, Status.PASSED, found, figures=figures)


def apart(data: Data) -> Finding:
    """Check that no example is in two parts. Examples are compared by the hash of their inputs.

    Coarse values, such as a few categories, repeat by themselves. The share of repetitions within
    the training part shows how much overlap is natural.
    """
    hashes = {name: _hashes(part.inputs) for name, part in _parts(data).items()}
    train = Counter(hashes["train"])
    repeated = sum(n for n in train.values() if n > 1) / len(hashes["train"])
    overlaps = {
        f"{name} in train": _share(hashes[name], train) for name in hashes if name != "train"
    }
    if "test" in hashes:
        overlaps["test in val"] = _share(hashes["test"], Counter(hashes["val"]))
    figures = {**overlaps, "repeated_in_train": repeated}
    worst = max(overlaps.values())
    name, told = (
        "data: parts",
        ", ".join(
            f"{share:.2%} of {where.replace(' in ', ' are also in ')}"
            for where, share in overlaps.items()
            if share
        ),
    )
    if not worst:
        unique = f"; {repeated:.1%} of training rows occur twice" if repeated else ""
        sizes = ", ".join(f"{len(known)} {name}" for name, known in hashes.items())
        return Finding(
            name, Status.PASSED, f"{sizes}: no example in two of them{unique}", figures=figures
        )
    if worst <= NATURAL_FACTOR * repeated:
        means = (
            f"{repeated:.2%} of the training rows also occur twice, so the data itself may repeat; "
            "remove repetitions before the split."
        )
        return Finding(name, Status.WARNING, told, means, figures)
    means = (
        "A leak: validation examples occur in training, so accuracy is too high. "
        "Split once, by example (or by person, by scene), before any copying."
    )
    return Finding(name, Status.FAILED, told, means, figures)


def _parts(data: Data) -> Mapping[str, Part]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def rows(inputs: Tree) -> list[bytes]:
    """Return each example's inputs as bytes. Equal inputs give equal bytes."""
    columns = [_rows(one) for one in trees.list_leaves(inputs)]
    return [b"".join(row) for row in zip(*columns, strict=True)]


def _rows(inputs: Tensor) -> list[bytes]:
    values = inputs.detach().reshape(len(inputs), -1).cpu()
    values = values + 0 if values.is_floating_point() else values  # makes -0.0 equal to 0.0
    return [row.tobytes() for row in values.contiguous().numpy()]


def _hashes(inputs: Tree) -> list[bytes]:
    # The chunks avoid a second copy of the data in memory.
    chunks = trees.split(inputs, ROWS_AT_ONCE)
    return [
        hashlib.blake2b(row, digest_size=16).digest() for chunk in chunks for row in rows(chunk)
    ]


def _share(hashes: list[bytes], others: Counter[bytes]) -> float:
    return sum(row in others for row in hashes) / len(hashes)
