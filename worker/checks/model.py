"""The checks of a model in one configuration after the other: first loss, symmetry, gradient, and what is learnt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from common.practice import SCHEDULES, UPDATES
from common.space import Hyperparameters
from worker.checks import gradient, learning, loss, metrics, overfit, symmetry
from worker.checks.errors import explained
from worker.checks.plan import Configuration, quiet
from worker.checks.report import CENTRE, Finding, Status
from worker.checks.subject import Subject
from worker.checks.training import Portion, engine_of, job_of, spread, take
from worker.tasks.base import Data, Part, Task, no_exit, own_metrics
from worker.training.engine import Engine
from worker.training.session import USED

GRADIENT_S, OVERFIT_S, LEARN_S, OPTIONS_S = 1.0, 3.0, 5.0, 2.0  # at most; the digits search needs a fraction
BATCH_S = 0.5  # that a batch may take: larger models are looked at with fewer examples
LOSS_ROWS, GRADIENT_ROWS = 256, 8  # examples; few for the gradient: less rounding, fewer kinks (CS231n notes)
TIMED_ROWS = 32
TRAINED_STEPS = 20  # before the gradient is looked at again: off the initial weights, far from one that has vanished
WITHOUT_MODEL = frozenset({*UPDATES, *SCHEDULES})  # options that change neither model nor loss: only read


@dataclass(frozen=True)
class Ground:
    """What models are checked on."""

    task: Task
    n_classes: int | None
    engine: Engine
    seed: int

    @classmethod
    def of(cls, task: Task, data: Data, seed: int) -> Ground:
        """``data``: as many examples as are looked at, not yet preprocessed."""
        portion = Portion(task, data, getattr(task, "preprocess", "none"))
        return cls(task, data.n_classes, engine_of(portion, seed), seed)


class Looked:
    """One configuration, built, with batches to look at it with."""

    def __init__(self, ground: Ground, values: Hyperparameters, configuration: str = CENTRE) -> None:
        """Builds the model twice: as a trial of it would be, and silenced.

        Raises:
            Exception: whatever the model raises, or TaskError for what the engine refuses.
        """
        self.ground, self.values, self.configuration = ground, values, configuration
        engine = ground.engine
        engine.entry(job_of(values, seed=ground.seed))
        calm = quiet(values, {"batch_size": GRADIENT_ROWS})
        self.subject = Subject(engine, calm, ground.seed)
        parts = engine.setting().parts(self.subject.model.recipe)
        self.data = Data(parts.train, parts.val, None, ground.n_classes)
        self.few = self.batch(GRADIENT_ROWS)
        self.subject.gradients(self.few)  # shows whether it can be stacked, and warms up
        self.pass_s = self._pass_s()
        self.many = self.batch(max(GRADIENT_ROWS, min(LOSS_ROWS, round(BATCH_S / self.pass_s))))

    def _pass_s(self) -> float:
        """Seconds of one example, forward and backward, in a batch as trainings have them."""
        timed = self.batch(TIMED_ROWS)
        started = time.perf_counter()
        self.subject.gradients(timed)
        return (time.perf_counter() - started) / len(timed)

    def batch(self, n: int) -> Part:
        """So many different examples, of all classes."""
        return take(self.data.train, spread(self.data.train, n, self.data.n_classes, self.ground.seed))

    def built(self) -> Finding:
        """What the engine made of the model."""
        layout = self.subject.model.layout
        how = "trains in arrays" if self.subject.stacked else "trains one at a time"
        return Finding("model", Status.PASSED, f"{layout.size} parameters in {len(layout.shapes)} tensors; {how}")

    def first_loss(self) -> Finding:
        """See ``loss.first``."""
        return loss.first(self.subject, self.many, self.configuration)

    def metrics(self) -> Finding:
        """See ``metrics.numbers``."""
        val, n = self.data.val, max(GRADIENT_ROWS, round(BATCH_S / self.pass_s))
        part = take(val, spread(val, n, self.data.n_classes, self.ground.seed))
        return metrics.numbers(own_metrics(self.ground.task), self.subject.stack.predict(part.inputs), part.targets)

    def symmetry(self) -> Finding:
        """See ``symmetry.broken``."""
        return symmetry.broken(self.subject, self.many, self.configuration)

    def gradient(self, when: str, seconds: float = GRADIENT_S) -> Finding:
        """See ``gradient.compare``."""
        _, gradients = self.subject.gradients(self.few)
        parameters = self.subject.parameters
        until_s = time.monotonic() + seconds
        compared = gradient.compare(lambda: self.subject.plain_loss(self.few), parameters, gradients, self.ground.seed, until_s)
        return gradient.judged(compared, when, len(parameters), self.configuration)

    def gradient_later(self) -> Finding:
        """The same after a few steps."""
        self.subject.train(self.many, TRAINED_STEPS)
        return self.gradient(f"after {TRAINED_STEPS} steps")

    def overfit(self) -> Finding:
        """See ``overfit.twenty``."""
        start = self.subject.gradients(self.many)[0]
        chance = self.subject.objective.chance(self.subject.model.recipe.values)
        return overfit.twenty(self.ground.task, self.data, self.values, chance, start, self.ground.seed, OVERFIT_S, self.pass_s)

    def learns(self) -> Finding:
        """See ``learning.generalises``."""
        return learning.generalises(self.ground.task, self.data, self.values, self.ground.seed, LEARN_S, self.pass_s)


def of_centre(looked: Looked) -> Iterator[Finding]:
    """All checks of the configuration in the middle."""
    yield guarded("first loss", looked.first_loss)
    if own_metrics(looked.ground.task):
        yield guarded("metrics", looked.metrics)
    yield guarded("regularisation", lambda: loss.regularised(looked.subject, looked.few))
    yield guarded("symmetry", looked.symmetry)
    yield guarded("gradient at the start", lambda: looked.gradient("at the start"))
    yield guarded("overfit", looked.overfit)
    yield guarded("learns", looked.learns)
    yield guarded("gradient later", looked.gradient_later)  # last: it moves the weights


def of_options(ground: Ground, options: Sequence[Configuration]) -> tuple[list[Finding], list[str]]:
    """(findings, names of the options that the time did not suffice for): the quick checks of each."""
    until_s = time.monotonic() + OPTIONS_S
    findings: list[Finding] = []
    for number, option in enumerate(options):
        if time.monotonic() > until_s:
            return findings, [left.differs for left in options[number:]]
        findings += _of_option(ground, option)
    return findings, []


def _of_option(ground: Ground, option: Configuration) -> list[Finding]:
    name = "option"
    try:
        if option.name in WITHOUT_MODEL:
            ground.engine.entry(job_of(option.values, seed=ground.seed))
            return [Finding(name, Status.PASSED, "is understood", configuration=option.differs)]
        with no_exit(USED):
            looked = Looked(ground, option.values, option.differs)
    except Exception as error:
        means = "Every trial with this option would fail: correct model(hp), or remove the option."
        return [Finding(name, Status.FAILED, explained(error), means, configuration=option.differs)]
    checks = {"first loss": looked.first_loss, "symmetry": looked.symmetry, "gradient": lambda: looked.gradient("at the start", 0.3)}
    found = [guarded(check, function, option.differs) for check, function in checks.items()]
    if bad := [finding for finding in found if finding.status is not Status.PASSED]:
        return bad
    told = f"first loss {found[0].figures['loss']:.3g}; units differ; the gradient agrees ({found[2].figures['typical']:.0e} in the middle)"
    return [Finding(name, Status.PASSED, told, configuration=option.differs)]


def guarded(name: str, check: Callable[[], Finding], configuration: str = CENTRE) -> Finding:
    """What ``check`` finds; where the task's code raises, that is the finding."""
    try:
        with no_exit(USED):
            return check()
    except Exception as error:
        means = "The task's own code raised; a trial would fail with the same."
        return Finding(name, Status.FAILED, explained(error), means, configuration=configuration)
