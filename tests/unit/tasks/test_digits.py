import gzip
import math
import subprocess
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from common.errors import TaskError
from tests.unit.training.helpers import job, outcomes
from worker.tasks import digits
from worker.tasks.base import Data, Part
from worker.tasks.digits import SPLIT_SEED, Digits, split_stratified
from worker.training.math.preprocess import fit


def test_the_split_is_fixed_stratified_and_covers_every_image_once():
    data, again = Digits().data(), Digits().data()
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [1077, 360, 360]
    assert torch.equal(data.test.inputs, again.test.inputs) and torch.equal(
        data.train.targets, again.train.targets
    )
    assert data.n_classes == 10
    for part in parts:
        shares = part.targets.bincount(minlength=10) / len(part)
        assert float((shares - 0.1).abs().max()) < 0.01
    assert len(torch.cat([part.inputs for part in parts]).unique(dim=0)) == 1797


def test_images_and_parts_are_those_of_scikit_learn_to_the_byte():
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    train, val = train_test_split(
        rest, test_size=0.25, stratify=labels[rest], random_state=SPLIT_SEED
    )
    data = Digits().data()
    for part, rows in ((data.train, train), (data.val, val), (data.test, test)):
        assert part.inputs.numpy().tobytes() == (images[rows] / 16).astype(np.float32).tobytes()
        assert part.targets.numpy().tobytes() == labels[rows].astype(np.int64).tobytes()


@pytest.mark.parametrize(
    ("counts", "share"),
    [([10, 10, 10], 0.2), ([7, 12, 33, 5], 0.25), ([4, 4, 4, 4, 4], 0.3), ([50, 3], 0.35)],
)
def test_the_split_is_that_of_scikit_learn_whatever_the_classes(counts, share):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    for seed in range(5):
        wanted = train_test_split(
            np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
        )
        for part, places in zip(split_stratified(labels, share, seed), wanted, strict=True):
            assert part.tolist() == places.tolist()


def test_scikit_learn_is_not_imported_for_it():
    code = (
        "import sys; from worker.tasks.digits import Digits; Digits().data(); "
        "print({'sklearn', 'scipy', 'pandas'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        gzip.compress(b"1,2\n"),
        gzip.compress(b"a\n" * 65),
        gzip.compress(b"1," * 900)[:-9],
    ],
)
def test_a_damaged_or_missing_file_is_named(tmp_path, monkeypatch, content):
    spec = ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    if content is not None:
        (tmp_path / "datasets" / "data").mkdir(parents=True)
        (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(content)
    with pytest.raises(TaskError, match=r"digits\.csv\.gz"):
        Digits().data()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="not installed"):
        Digits().data()


def test_pixels_lie_between_black_and_white():
    data = Digits().data()
    for part in (data.train, data.val, data.test):
        assert (float(part.inputs.min()), float(part.inputs.max())) == (0.0, 1.0)
        assert part.inputs.shape[1:].numel() == math.prod(Digits.image_shape)


def test_unless_told_otherwise_pixels_are_standardised_with_the_training_part_alone():
    raw = Digits().data()
    fitted = fit(Digits.preprocess, raw.train.inputs)
    data = Data(
        *(Part(fitted.apply(part.inputs), part.targets) for part in (raw.train, raw.val, raw.test)),
        raw.n_classes,
    )
    inputs = data.train.inputs
    assert inputs.dtype == torch.float32 and data.train.targets.dtype == torch.int64
    varying = inputs.std(0) > 0
    assert int((~varying).sum()) > 0  # the corners are always white
    assert torch.allclose(inputs.mean(0), torch.zeros(64), atol=1e-5)
    assert torch.allclose(
        inputs[:, varying].std(0, unbiased=False), torch.ones(int(varying.sum())), atol=1e-4
    )
    assert torch.isfinite(data.val.inputs).all() and torch.isfinite(data.test.inputs).all()
    assert float(data.val.inputs.mean().abs()) > 0  # not centred by itself


def test_the_model_has_the_width_depth_and_dropout_it_is_told():
    torch.manual_seed(0)
    model = Digits().model({"hidden": 128, "depth": 3, "dropout": 0.25})
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (64, 128),
        (128, 128),
        (128, 128),
        (128, 10),
    ]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.25] * 3
    assert float(linear[1].weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert float(linear[1].bias.detach().abs().max()) == 0
    assert len(Digits().model({"depth": 0})) == 1
    assert len(Digits().model({})) == 7


@pytest.mark.parametrize(
    "hp",
    [
        {"hidden": 0},
        {"hidden": 2.5},
        {"depth": -1},
        {"depth": True},
        {"dropout": 1},
        {"dropout": -0.1},
        {"dropout": "much"},
    ],
)
def test_what_no_perceptron_has_is_named(hp):
    (name,) = hp
    with pytest.raises(TaskError, match=rf"{name} = .*correct \[space\]"):
        Digits().model(hp)


def test_what_only_the_other_model_reads_is_no_mistake():
    said = []
    ended = outcomes(
        [job(0, epochs=1, filters=4, warmth=2), job(1, epochs=1, model="convnet", filters=2)],
        task=Digits(),
        log=said.append,
    )
    assert all(outcome.val_acc is not None for outcome in ended.values())
    assert [
        message.split(" is used by neither")[0] for message in said if "neither" in message
    ] == ["hyperparameter warmth"]


def test_a_convnet_of_digits_learns():
    hp = {
        "model": "convnet",
        "filters": 4,
        "blocks": 1,
        "hidden": 32,
        "optimizer": "adam",
        "learning_rate": 0.01,
    }
    assert (
        outcomes([job(0, epochs=5, **hp)], task=Digits(), dtype=torch.float32)[
            "coarse-0000"
        ].val_acc
        > 0.9
    )
