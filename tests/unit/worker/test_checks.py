"""The checks before learning. Sound tasks pass, and the check made for a planted bug catches it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from common.errors import TaskError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from worker.checks import model, overfit
from worker.checks.learning import agreement
from worker.checks.plan import centre, variants
from worker.checks.report import CENTRE, Finding, Report, Status
from worker.checks.run import Run
from worker.tasks.base import Data, Part
from worker.tasks.mnist import Mnist
from worker.training.math import regularization
from worker.training.model.networks import ChainNetwork

SPACE = "learning_rate = { log_uniform = [1e-4, 1e0] }\n"
SEARCH = """
name = "planted"
task = "planted.py:{task}"
metric = "{metric}"
mode = "{mode}"
[space]
{space}
[stages.coarse]
trials = 2
epochs = 1
"""


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Use one thread like the command, a shorter training, and a long time limit.

    The shorter training suffices here, and a busy machine needs the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overfit, "EPOCHS", 15)
        for limit in ("GRADIENT_S", "OVERFIT_S", "LEARN_S", "OPTIONS_S"):
            patch.setattr(model, limit, 60.0)
        yield
    torch.set_num_threads(before)


@lru_cache
def checked(task: str, space: str = SPACE, metric: str = "val_acc", mode: str = "max") -> Report:
    search = parse_search(SEARCH.format(task=task, space=space, metric=metric, mode=mode))
    with TemporaryDirectory() as place:
        root = Path(place)
        shutil.copy(Path(__file__).with_name("planted.py"), root)
        return Run(Chosen(search, "", root, SearchFolder(root, "planted")), Path("data")).report()


def found(report: Report, check: str, configuration: str = CENTRE) -> Finding:
    (finding,) = [
        f for f in report.findings if f.check == check and f.configuration == configuration
    ]
    return finding


def failed(report: Report) -> set[str]:
    return {f.check for f in report.findings if f.status is Status.FAILED}


def warned(report: Report) -> set[str]:
    return {f.check for f in report.findings if f.status is Status.WARNING}


def test_a_sound_task_passes_every_check() -> None:
    report = checked("Sound")
    assert report.passed and {f.status for f in report.findings} == {Status.PASSED}
    assert {f.check for f in report.findings} == {
        "task", "data: finite", "data: scaled", "data: parts", "data: labels", "model",
        "hyperparameters", "first loss", "regularisation", "saving",
        "symmetry", "gradient at the start", "overfit", "learns", "gradient after 20 steps",
    }  # fmt: skip
    assert float(str(found(report, "gradient at the start").figures["typical"])) < 1e-7


@pytest.mark.parametrize(
    ("task", "caught_by", "says"),
    [
        ("ShuffledLabels", "learns", "other examples of the training part"),
        ("ShuffledValidation", "learns", "other examples of the validation part"),
        ("WrongBackward", "gradient at the start", "backward pass is wrong"),
        ("HugeInit", "first loss", "too large"),
        ("Leak", "data: parts", "leak"),
        ("Zeros", "symmetry", "0.weight"),
        ("Equal", "symmetry", "0.weight"),
        ("LambdaState", "saving", "the state cannot be saved and read again"),
        ("ObjectState", "saving", "the state cannot be saved and read again"),
        ("Unsaved", "saving", "its state_dict() lacks"),
        ("Pixels", "data: scaled", "255"),
        ("HoledData", "data", "example 17"),
        ("LabelsFromOne", "data", "run from 1 to 4"),
        ("UnseenClass", "data: labels", "never in training: 2"),
        ("BrokenData", "data", "no such disk (planted.py, line"),
        ("TooManyOutputs", "model", "5"),
        ("RaisingModel", "model", 'hp["width"]: [space] has no width'),
        ("Frozen", "overfit", "20 examples"),
        ("DetachedLoss", "gradient at the start", "detach()"),
        ("MetricOfEach", "metrics", "metric right gives a tensor of shape (200,)"),
        ("MetricRaises", "metrics", "no such score (planted.py, line"),
        ("Nowhere", "task", "no class or function Nowhere"),
    ],
)
def test_a_planted_bug_is_caught(task: str, caught_by: str, says: str) -> None:
    report = checked(task)
    assert not report.passed and caught_by in failed(report), report.json()
    finding = found(report, caught_by)
    assert (
        says in f"{finding.found} {finding.means}" and finding.means
    )  # what it is, and what it usually means


def test_metrics_of_the_task_are_measured_where_it_has_some() -> None:
    finding = found(checked("Measured", metric="share"), "metrics")
    assert (
        finding.status is Status.PASSED
        and 0 <= float(str(finding.figures["share"])) <= 1
        and "200 examples" in finding.found
    )


def test_a_state_besides_the_tensors_is_saved_where_a_file_can_hold_it() -> None:
    assert found(checked("ExtraState"), "saving").status is Status.PASSED
    finding = found(checked("Counting"), "saving")
    assert finding.status is Status.WARNING
    assert "its forward changes the attribute `steps` (planted.py, line" in finding.found


@pytest.mark.parametrize("task", ["Counting", "LayerDrop"])
def test_a_model_that_depends_on_python_fails_no_check(task: str) -> None:
    report = checked(task)
    assert report.passed, report.json()
    assert "one at a time" in found(report, "model").found


def test_agreement_is_that_of_permutations() -> None:
    generator = torch.Generator().manual_seed(4)
    predicted, targets = (
        torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 90, True, generator=generator)
        for _ in range(2)
    )
    dealt = torch.stack(
        [
            (predicted == targets[torch.randperm(90, generator=generator)]).double().sum()
            for _ in range(4000)
        ]
    )
    z = (float((predicted == targets).sum()) - float(dealt.mean())) / float(dealt.std())
    assert float(agreement(predicted, targets, 3)) == pytest.approx(z, abs=0.1)
    assert float(agreement(targets, targets, 3)) > 10
    assert (
        float(agreement(torch.zeros_like(targets), targets, 3)) == 0.0
    )  # always the most frequent class: right in 70 %, and no knowledge


def test_what_is_unusual_and_may_be_right_is_a_warning() -> None:
    for task, check, says in [
        ("Unbalanced", "data: labels", "Unbalanced: guessing has an accuracy of"),
        ("Categories", "data: parts", "the data itself may repeat"),
        ("Single", "gradient at the start", "single precision"),
        ("Linear", "overfit", "linear model"),
        ("MetricOfNone", "metrics", "ranks last"),
    ]:
        report = checked(task)
        finding = found(report, check)
        assert finding.status is Status.WARNING and says in finding.means, finding
    assert checked("Filled").passed, checked("Filled").json()
    assert warned(checked("ZeroHead")) | failed(checked("ZeroHead")) == set()


def test_a_model_that_is_no_chain_and_draws_its_own_noise_is_compared_with_the_same_noise() -> None:
    report = checked("Normed")
    assert report.passed, report.json()
    assert "trains in arrays" in found(report, "model").found  # its noise is dropout's
    assert float(str(found(report, "gradient at the start").figures["error"])) <= 1e-7


def test_a_mistyped_hyperparameter_is_told_with_what_may_be_meant() -> None:
    report = checked("Sound", f"{SPACE}hiden = 12\nhidden = 12\n")
    finding = found(report, "hyperparameters")
    assert (
        report.passed
        and finding.status is Status.WARNING
        and "hiden (is hidden meant?)" in finding.found
    )
    for task, space in (
        ("OwnLoss", "sharpness = { uniform = [0.5, 1.5] }\n"),  # by the task's loss alone
        ("ReadInForward", "gain = { uniform = [0.5, 1.5] }\n"),  # by a model that keeps hp
        ("ReadWhereDeep", "depth = { int_uniform = [1, 9] }\nrest = 0.1\n"),  # not at the centre
    ):
        finding = found(checked(task, f"{SPACE}{space}"), "hyperparameters")
        assert finding.status is Status.PASSED, finding


def test_lazy_layers_are_checked_like_any_other() -> None:
    report = checked("Lazy")
    assert report.passed and "trains in arrays" in found(report, "model").found, report.json()


def test_every_option_of_a_choice_is_looked_at() -> None:
    space = (
        f'{SPACE}activation = {{ choice = ["relu", "square"] }}\nhidden = {{ choice = [8, 16] }}\n'
    )
    report = checked("WrongOption", space)
    wrong = found(report, "gradient at the start", 'activation = "square"')
    assert wrong.status is Status.FAILED and "gradient at the start" not in {
        f.check for f in report.findings if f.configuration == "x"
    }
    assert found(report, "gradient at the start").status is Status.PASSED  # the centre is right
    assert found(report, "option", "hidden = 16").status is Status.PASSED
    bad = checked("Sound", f'{SPACE}optimizer = {{ choice = ["adam", "sgd"] }}\nnesterov = true\n')
    assert "momentum" in found(bad, "option", 'optimizer = "sgd"').found  # nesterov needs some


def test_the_centre_of_a_space() -> None:
    space = parse_search(
        SEARCH.format(
            task="Sound",
            metric="val_acc",
            mode="max",
            space="learning_rate = { log_uniform = [1e-4, 1e0] }\n"
            "d = { uniform = [0.0, 0.8] }\nn = { int_uniform = [1, 9] }\n"
            'w = { choice = [64, 128] }\na = { choice = ["relu", "tanh", "elu"] }\nfixed = 3\n',
        )
    ).space
    assert centre(space) == {
        "learning_rate": pytest.approx(1e-2),
        "d": 0.4,
        "n": 5,
        "w": 64,
        "a": "relu",
        "fixed": 3,
    }
    assert [v.differs for v in variants(space)] == [
        'a = "tanh"',
        'a = "elu"',
        "w = 128",
    ]  # words before numbers
    assert variants(space)[0].values == {**centre(space), "a": "tanh"}


def test_the_centre_and_its_variants_have_what_exists_under_their_conditions() -> None:
    space = parse_search(
        SEARCH.format(
            task="Sound",
            metric="val_acc",
            mode="max",
            space="learning_rate = 0.1\n"
            "momentum = { uniform = [0.5, 0.9], when = \"optimizer == 'sgd'\" }\n"
            "beta2 = { fixed = 0.9, when = \"optimizer == 'adam'\" }\n"
            "kind = { choice = [1, 2], when = \"optimizer == 'adam'\" }\n"
            'optimizer = { choice = ["sgd", "adam"] }\n',
        )
    ).space
    assert centre(space) == {"learning_rate": 0.1, "momentum": 0.7, "optimizer": "sgd"}
    (only,) = variants(space)
    assert only.values == {"learning_rate": 0.1, "beta2": 0.9, "kind": 1, "optimizer": "adam"}


def test_a_task_without_classes() -> None:
    report = checked("Regression", metric="val_loss", mode="min")
    assert report.passed, report.json()
    assert (
        "not known" in found(report, "first loss").found
        and found(report, "overfit").status is Status.PASSED
    )
    assert "val_acc" in found(checked("Regression"), "metric").found  # which it does not measure


def test_a_loop_of_its_own_gets_what_makes_sense() -> None:
    report = checked("train")
    assert report.passed and report.digest and len(report.digest) == 64
    assert [f.status for f in report.findings] == [Status.PASSED, Status.LEFT_OUT]
    assert "its own training loop" in report.findings[1].found


def test_a_data_set_whose_files_are_elsewhere_is_no_fault_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Mnist) -> Data:
        raise TaskError("MNIST: 4 files are missing; put them into data/mnist")

    monkeypatch.setattr(Mnist, "data", missing)
    search = parse_search(
        SEARCH.format(task="x", space=SPACE, metric="val_acc", mode="max").replace(
            "planted.py:x", "mnist"
        )
    )
    chosen = Chosen(search, "", Path(), SearchFolder(tmp_path, "planted"))
    report = Run(chosen, Path("data")).report()
    assert (
        report.no_data is not None and "data/mnist" in report.no_data and failed(report) == {"data"}
    )
    assert checked("BrokenData").no_data is None  # the user's own code has no such excuse


def test_an_error_in_the_engines_own_backward_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ChainNetwork.backward

    def wrong(self: ChainNetwork, gradient: torch.Tensor) -> None:
        sound(self, gradient * 1.05)

    monkeypatch.setattr(ChainNetwork, "backward", wrong)
    checked.cache_clear()
    assert "gradient at the start" in failed(checked("Sound"))
    checked.cache_clear()


def test_an_error_in_the_engines_regularisation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = regularization.penalties

    def halved(penalty: torch.Tensor | None) -> torch.Tensor | None:
        return None if penalty is None else penalty * 0.5

    monkeypatch.setattr(
        regularization, "penalties", lambda parts, l2, l1: halved(sound(parts, l2, l1))
    )
    checked.cache_clear()
    assert failed(checked("Sound")) == {"regularisation"}
    checked.cache_clear()


def test_the_loss_has_to_grow_with_the_activations_if_the_space_penalises_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = f"{SPACE}activation_l1 = 0.01\n"
    finding = found(checked("Sound", space), "regularisation")
    assert finding.status is Status.PASSED and "activation_l1 0 to 1: " in finding.found
    monkeypatch.setattr(
        "worker.training.stacked.stack.activation_penalty",
        lambda activity, strength: 0.5 * activity * strength.view(-1),
    )
    finding = found(checked("Sound", f"{space}hidden = 12\n"), "regularisation")
    assert finding.status is Status.FAILED and "activation_l1 does not grow" in finding.means


def test_a_penalty_on_activations_that_are_not_seen_is_refused() -> None:
    report = checked("Functional", f"{SPACE}activation_l1 = 0.01\n")
    assert "the model has no activation layer" in found(report, "model").found
    assert failed(report) == {"model"}


def test_the_report_is_strict_json_and_a_table() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report = Report(
        "s",
        "t",
        None,
        {},
        [],
        [Finding("first loss", Status.FAILED, "inf", "means this", {"loss": float("inf")})],
        1.0,
    )
    content = json.loads(report.json(), parse_constant=refuse)
    assert content["passed"] is False and content["checks"][0]["figures"] == {"loss": None}
    assert content["checks"][0]["status"] == "failed" and report.summary() == "1 failed, in 1.0 s"
    assert json.loads(checked("Sound").json(), parse_constant=refuse)["passed"] is True


def test_a_module_that_is_not_shipped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lying_elsewhere.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "planted.py").write_text("import lying_elsewhere\n\ndef train(trial): ...\n")
    search = parse_search(SEARCH.format(task="train", space=SPACE, metric="val_acc", mode="max"))
    chosen = Chosen(search, "", tmp_path, SearchFolder(tmp_path / "root", "planted"))
    report = Run(chosen, Path("data")).report()
    assert report.passed
    assert any("lying_elsewhere.py, which is not shipped with it" in note for note in report.notes)


def test_a_busy_machine_is_not_taken_for_a_model_that_learns_nothing() -> None:
    """A pass that took long leaves out learning rates at first. The model needs one of them."""
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    part = Part(x, (x[:, 0] > 0).long())
    data = Data(part, part, None, 2)

    class Small:
        def data(self) -> Data:
            return data

        def model(self, hp: object) -> torch.nn.Module:
            return torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
            )

    values = {"learning_rate": 0.1, "weight_decay": 0.0}
    for pass_s in (0.0, 1e6):
        told = overfit.twenty(Small(), data, values, 0.69, 0.7, 0, 60.0, pass_s)
        assert told.status is Status.PASSED, (pass_s, told)
