import io

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from common.errors import TaskError
from common.search.hyperparameters import DATA, Kind
from tests.unit.training.helpers import job, load, outcomes
from tests.unit.training.references import covers
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.math import preprocess
from worker.training.math.preprocess import KINDS, Preprocessing, fit


@pytest.fixture
def images():
    """Return images (300, 2, 4, 4) with correlated pixels and one constant pixel.

    Their values are no binary fractions.
    """
    generator = torch.Generator().manual_seed(0)
    mixing = torch.rand(32, 32, generator=generator)
    made = (torch.randn(300, 32, generator=generator) @ mixing + 3.7).view(300, 2, 4, 4)
    made[:, 1, 2, 3] = 0.1
    return made


def flat(inputs):
    return inputs.double().flatten(1).numpy()


def test_the_kinds_are_those_of_the_search_file():
    assert isinstance(DATA["preprocess"], Kind) and DATA["preprocess"].options == KINDS


@covers(preprocess="none")
def test_none_leaves_all_as_it_is():
    words = torch.arange(6).view(2, 3)
    assert fit("none", words).apply(words) is words


@covers(preprocess="centre")
def test_centre_takes_the_training_mean_off_each_pixel(images):
    fitted = fit("centre", images)
    out = fitted.apply(images + 1)
    assert out.shape == images.shape and out.dtype == torch.float32
    np.testing.assert_allclose(flat(out), flat(images + 1) - flat(images).mean(0), atol=1e-5)


@covers(preprocess="normalise")
def test_normalise_divides_by_the_training_deviation_and_makes_constant_pixels_zero(images):
    fitted = fit("normalise", images[:200])
    seen, unseen = fitted.apply(images[:200]), fitted.apply(images[200:])
    reference = flat(images[:200])
    deviation = reference.std(0)
    deviation[2 * 16 - 5] = 1
    assert seen.shape == images[:200].shape
    np.testing.assert_allclose(
        flat(unseen), (flat(images[200:]) - reference.mean(0)) / deviation, atol=1e-5
    )
    assert (seen[:, 1, 2, 3] == 0).all() and seen.isfinite().all()
    varying = np.delete(flat(seen), 2 * 16 - 5, axis=1)
    np.testing.assert_allclose(varying.std(0), 1, atol=1e-5)


@covers(preprocess="pca")
def test_pca_agrees_with_scikit_learn_but_for_signs(images):
    inputs = images.double()
    out = fit("pca", inputs[:200]).apply(inputs[200:])
    reference = PCA().fit(flat(inputs[:200])).transform(flat(inputs[200:]))
    assert out.shape == (100, 32) and out.dtype == torch.float64
    np.testing.assert_allclose(
        out[:, :31].abs().numpy(), np.abs(reference[:, :31]), atol=1e-8
    )  # the last has no variance


def test_pca_decorrelates_and_orders_by_variance(images):
    inputs = images.double()
    covariance = np.cov(fit("pca", inputs).apply(inputs).numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)
    assert (np.diff(np.diag(covariance)) <= 1e-12).all()


@covers(preprocess="whiten")
def test_whitening_is_that_of_the_notes(images):
    inputs = images.double()
    x = flat(inputs) - flat(inputs).mean(0)
    u, s, _ = np.linalg.svd(x.T @ x / len(x))
    reference = x @ u / np.sqrt(s + 1e-5)
    out = fit("whiten", inputs).apply(inputs)
    np.testing.assert_allclose(out[:, :31].abs().numpy(), np.abs(reference[:, :31]), atol=1e-6)
    variances = out.var(0, unbiased=False)
    assert float((variances[:25] - 1).abs().max()) < 0.01 and float(variances[31]) < 1e-12


def test_statistics_do_not_depend_on_how_many_rows_are_summed_at_a_time(images, monkeypatch):
    whole = {kind: fit(kind, images).state() for kind in KINDS}
    monkeypatch.setattr(preprocess, "ROWS_AT_ONCE", 7)
    for kind in ("centre", "normalise"):
        for name, value in fit(kind, images).state().items():
            assert value == kind or torch.allclose(value, whole[kind][name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_survives_a_checkpoint(images, kind):
    fitted = fit(kind, images)
    file = io.BytesIO()
    torch.save(fitted.state(), file)
    file.seek(0)
    again = Preprocessing.from_state(torch.load(file, weights_only=True))
    assert again.kind == kind and torch.equal(again.apply(images), fitted.apply(images))


def test_bytes_are_taken_as_numbers():
    pixels = torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8)
    assert fit("normalise", pixels).apply(pixels).tolist() == [[-1, 0], [1, 0]]


def test_what_cannot_be_used_is_told(images):
    with pytest.raises(
        TaskError, match="preprocess = 'zca': no such preprocessing; use one of none, centre"
    ):
        fit("zca", images)
    with pytest.raises(
        TaskError, match=r"fitted on examples of shape \(2, 4, 4\), these have \(32,\)"
    ):
        fit("centre", images).apply(images.flatten(1))
    with pytest.raises(TaskError, match="kind 'centre' with kind cannot be read"):
        Preprocessing.from_state({"kind": "centre"})
    images[3, 0, 0, 0] = float("nan")
    for kind in KINDS[1:]:
        with pytest.raises(TaskError, match=f"preprocess = '{kind}': the training inputs hold NaN"):
            fit(kind, images)


class Beforehand(Digits):
    """Digits, preprocessed by whoever made the data."""

    preprocess = "none"

    def __init__(self, kind):
        self.kind = kind

    def data(self):
        raw = Digits().data()
        fitted = fit(self.kind, raw.train.inputs)
        return Data(
            *(
                Part(fitted.apply(part.inputs), part.targets)
                for part in (raw.train, raw.val, raw.test)
            ),
            raw.n_classes,
        )


def test_a_search_may_choose_among_them_and_its_checkpoints_know_theirs():
    jobs = [job(index, epochs=1, preprocess=kind) for index, kind in enumerate(KINDS)]
    ended = outcomes(jobs, task=Digits())
    losses = {kind: ended[one.id].val_loss for kind, one in zip(KINDS, jobs, strict=True)}
    assert len(set(losses.values())) == len(KINDS)
    for index, kind in enumerate(KINDS):
        beforehand = outcomes([job(index, epochs=1)], task=Beforehand(kind))[jobs[index].id]
        assert losses[kind] == pytest.approx(beforehand.val_loss, rel=1e-9)
        assert (
            Preprocessing.from_state(load(ended[jobs[index].id].checkpoint())["preprocessing"]).kind
            == kind
        )


def test_a_task_names_its_own_default():
    assert outcomes([job(0, epochs=1)], task=Digits())["coarse-0000"].val_loss == pytest.approx(
        outcomes([job(0, epochs=1, preprocess="normalise")], task=Digits())["coarse-0000"].val_loss,
        rel=1e-12,
    )
