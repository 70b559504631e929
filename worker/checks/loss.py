"""Checks of the first loss against chance, and of the regularisation term."""

from __future__ import annotations

import math
from itertools import pairwise

from worker.checks.report import Finding, Status
from worker.checks.subject import Subject
from worker.tasks.base import Part

HIGHEST = 2.0  # times chance: He's initialisation, also in the last layer, costs up to that much
LOWEST = 0.5  # times chance: a lower loss means that the model knows the answers already
FAR = 4.0  # times chance: such a start explodes, or wastes epochs on shrinking weights
ACTIVATIONS = "activation_l1"
STRENGTHS = (0.0, 1e-4, 1e-2, 1.0)  # of the regularisation; the default ranges span them
AGREEMENT = 1e-6  # relative, between the engine's term and the sum over the weights


def first(subject: Subject, batch: Part, configuration: str) -> Finding:
    """Check the loss before the first update against that of guessing.

    Source: CS231n notes, "Neural Networks Part 3", sanity checks: "look for correct loss at chance
    performance".
    """
    name = "first loss"
    loss = subject.gradients(batch)[0]
    chance = subject.objective.chance(subject.model.recipe.values)
    figures = {"loss": loss, "chance": chance}
    if not math.isfinite(loss):
        means = (
            "Initial weights far too large (check the scale of the initialisation), or a log, "
            "root or division of zero in model or loss."
        )
        return Finding(
            name, Status.FAILED, f"{loss} on {len(batch)} examples", means, figures, configuration
        )
    if chance is None:
        return Finding(
            name,
            Status.PASSED,
            f"{loss:.4g}; what chance costs is not known for the task's own loss",
            "",
            figures,
            configuration,
        )
    found = f"{loss:.4g} on {len(batch)} examples; chance costs {chance:.4g}"
    if loss > FAR * chance + FAR:
        means = (
            "Initial weights are far too large (use He's or Xavier's), the inputs are not scaled, "
            "or the outputs are not scores."
        )
        return Finding(name, Status.FAILED, found, means, figures, configuration)
    if loss > HIGHEST * chance:
        means = (
            "The untrained model is too sure of itself: smaller initial weights in the last layer "
            "begin nearer to chance."
        )
        return Finding(name, Status.WARNING, found, means, figures, configuration)
    if loss < LOWEST * chance:
        means = (
            "The untrained model knows the answers: it is pretrained, or the labels are among the "
            "inputs."
        )
        return Finding(name, Status.WARNING, found, means, figures, configuration)
    return Finding(name, Status.PASSED, found, "", figures, configuration)


def check_regularisation(subject: Subject, batch: Part) -> Finding:
    """Check that the loss grows with each strength of L2 and L1, by the sums over the weights.

    The subject's update rule adds the terms to the loss. AdamW shrinks the weights without such a
    term. If the configuration has ``activation_l1``, the loss has to grow by the sum over the
    hidden activations, too.

    Source: CS231n notes, "Neural Networks Part 3", sanity checks: "increasing the regularization
    strength should increase the loss".
    """
    name = "regularisation"
    weights = subject.decayed_weights()
    if not len(weights):
        means = (
            "weight_decay and l1 act on weights of two dimensions and more; set decay_biases = "
            "true to regularise the others."
        )
        return Finding(name, Status.WARNING, "no parameter of the model is regularised", means)
    norms = {"weight_decay": 0.5 * float(weights.square().sum()), "l1": float(weights.abs().sum())}
    if ACTIVATIONS in subject.values:
        norms[ACTIVATIONS] = subject.activity(batch)
    wrong: list[str] = []
    told: list[str] = []
    for strength, norm in norms.items():
        none = dict.fromkeys(("weight_decay", "l1", ACTIVATIONS), 0.0)
        steps = subject.penalties(batch, [none | {strength: value} for value in STRENGTHS])
        costs = [loss + penalty for loss, penalty in steps]
        expected = [value * norm for value in STRENGTHS]
        agree = all(
            abs(p - e) <= AGREEMENT * max(e, 1e-12)
            for (_, p), e in zip(steps, expected, strict=True)
        )
        rising = norm == 0 or all(a < b for a, b in pairwise(costs))
        told.append(f"{strength} 0 to {STRENGTHS[-1]:g}: {costs[0]:.4g} to {costs[-1]:.4g}")
        wrong += [] if agree and rising else [strength]
    if wrong:
        means = (
            "The term in the loss is not the sum over the weights or activations: an error in the "
            "engine, or a model that changes its weights by itself."
        )
        return Finding(
            name,
            Status.FAILED,
            "; ".join(told),
            f"{', '.join(wrong)} does not grow as it should. {means}",
        )
    return Finding(name, Status.PASSED, f"the loss grows with it ({'; '.join(told)})")
