"""Stages of kind "distill": which models teach, and what the trials sample.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from common.errors import CheckpointError
from common.folder import durable, predictions
from common.folder.checkpoint_name import PREDICTIONS_SUFFIX, CheckpointName
from common.folder.predictions import Part
from common.folder.record import Record, format_metric
from common.folder.records import SearchFolder
from common.folder.teacher import Member, Teacher, read_teacher
from common.search.hyperparameters import DISTILLATION
from common.search.parameters import LogUniform, Parameter, Uniform
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.shell_command import shell_command
from master.ensembles.ensemble import gain, greedy, mixture, same_data, score
from master.ensembles.pool import TOP, find_kept_members
from master.results import ranking

DEFAULT_RANGES: dict[str, Parameter] = {
    # The paper uses 1 to 20, and less for smaller models. Above 10 the value hardly matters.
    "distill_temperature": LogUniform(1.0, 10.0),
    "distill_mix": Uniform(0.3, 1.0),  # the paper gives the targets "a considerably lower weight"
}
assert DEFAULT_RANGES.keys() == DISTILLATION.keys()


def make_distilled_space(space: Space, fixed: Space) -> Space:
    """Return what a stage that distills samples.

    It samples the temperature and the mix. All other values are those of the best configuration.

    Args:
        space: the search file's space; if it names one of the two, its range counts.
        fixed: the best configuration, each value fixed.
    """
    own = {name: space.parameters.get(name, default) for name, default in DEFAULT_RANGES.items()}
    return Space({**fixed.parameters, **own})


def choose_teacher(
    search: Search,
    folder: SearchFolder,
    stage: Stage,
    warn: Callable[[str], None],
    kind: str = "top",
    top: int = TOP,
) -> Teacher:
    """Choose the models that ``stage`` learns from, among all stages before it that do not distill.

    Args:
        search: the search as launched.
        folder: its folder.
        stage: a stage of kind "distill".
        warn: called with a message about each damaged record or file of predictions.
        kind: "top" takes the best models, each once. "greedy" takes as many as help on the
            validation part, each as often as it helps.
        top: number of models of the kind "top"; for "greedy", the number of best models to choose
            from.

    Raises:
        CheckpointError: no weights are kept; or for "greedy", there are no predictions, or they are
            of different data.
    """
    before = [one for one in search.up_to(stage.name)[:-1] if not one.traits.distills]
    records = [
        record
        for one in before
        for record in folder.stage(one.name).records(warn)
        if record.search_id == search.id
    ]
    ranked = (
        [record for record in ranking.best(records) if _is_kept(folder, record)] if records else []
    )
    if not ranked:
        names = " and ".join(one.name for one in before)
        raise CheckpointError(
            f"--stage {stage.name}: no stage before it ({names}) keeps weights of a trial that "
            f"ended well, so there is no teacher; `{shell_command('master rank')}` shows the "
            "results"
        )
    if kind == "top":
        return Teacher(kind, [Member(_path(record)) for record in ranked[:top]])
    members = find_kept_members(folder, ranked[:top], stage.name, warn)
    if stranger := same_data(members):
        raise CheckpointError(
            f"{folder.path / stranger.checkpoint}: was trained on other data than "
            f"{members[0].checkpoint}; all models of a teacher need the same data"
        )
    made = greedy(members, by_loss=True)
    return Teacher(
        kind,
        [
            Member(m.checkpoint, weight)
            for m, weight in zip(made.members, made.weights, strict=True)
        ],
    )


def write_teacher(folder: SearchFolder, stage: Stage, choose: Callable[[], Teacher]) -> None:
    """Freeze the models that a stage learns from. An existing list stays: the first launch counts.

    Args:
        folder: the search's folder; the stage's own folder has been made.
        stage: a stage of kind "distill".
        choose: called if there is no list yet.

    Raises:
        CheckpointError: the folder cannot be written, or whatever ``choose`` raises.
    """
    path = folder.stage(stage.name).teacher
    if not path.exists():
        durable.write_new({path: choose().content()})


def outcome(
    folder: SearchFolder,
    stage: Stage,
    records: Sequence[Record],
    top: Record,
    warn: Callable[[str], None],
) -> Text | None:
    """Return what the best distilled model kept of its teacher's gain, on the validation part.

    Args:
        folder: the search's folder.
        stage: a stage of kind "distill" that has ended.
        records: its records.
        top: the record of the trial whose configuration it trained, from the stages before.
        warn: called with a message about each damaged file.

    Returns:
        The text, or None if there are no predictions.
    """
    best = ranking.best(records)
    found = (
        _read_predictions(folder, f"{stage.name}/{best[0].checkpoint}", warn)
        if best and best[0].checkpoint
        else None
    )
    members = _members(folder, stage, warn)
    if found is None or not members:
        return None
    values = best[0].hyperparameters
    numbers = ", ".join(
        f"{name.removeprefix('distill_')} {ranking.cell(values.get(name))}" for name in DISTILLATION
    )
    flattered = f", selected over {len(best)} trials" if len(best) > 1 else ""
    told = Text(
        f"Distilled: {best[0].trial}, {best[0].metric} {format_metric(best[0].measured)} "
        f"({numbers}{flattered})."
    )
    parts = [
        one
        for member in members
        if (one := _read_predictions(folder, member.checkpoint, warn)) is not None
    ]
    if len(parts) == len(members):
        teacher = mixture(parts, [member.weight for member in members])
        told.append(
            _against(
                found,
                teacher,
                f"its teacher, {len(members)} models together, {score(teacher).accuracy:.4f}",
            )
        )
    alone = _read_predictions(folder, _path(top), warn) if top.checkpoint else None
    if alone is not None:
        told.append(
            _against(
                found,
                alone,
                f"{top.trial}, which had the same configuration without a teacher, "
                f"{score(alone).accuracy:.4f}",
            )
        )
    return told


def _members(folder: SearchFolder, stage: Stage, warn: Callable[[str], None]) -> Sequence[Member]:
    try:
        return read_teacher(folder.stage(stage.name).teacher).members
    except FileNotFoundError:
        return ()
    except CheckpointError as error:
        warn(str(error))
        return ()


def _read_predictions(
    folder: SearchFolder, checkpoint: str, warn: Callable[[str], None]
) -> Part | None:
    """Return a kept model's predictions for the validation part.

    Return None if they are missing or damaged.
    """
    try:
        return predictions.read((folder.path / checkpoint).with_suffix(PREDICTIONS_SUFFIX)).val
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        warn(str(error))
        return None


def _against(found: Part, other: Part, what: str) -> str:
    if found.probabilities.shape != other.probabilities.shape:
        return ""
    own = gain(found, other)
    interval = f"95 % interval {own.low:+.4f} to {own.high:+.4f}, paired on {own.n} examples"
    return f"\nIts accuracy on validation is {own.value:+.4f} against {what} ({interval})."


def _path(record: Record) -> str:
    return f"{record.stage}/{record.checkpoint}"


def _is_kept(folder: SearchFolder, record: Record) -> bool:
    """Return whether the weights of a record exist."""
    name = CheckpointName.parse(record.checkpoint) if record.checkpoint else None
    return name is not None and (folder.stage(record.stage).path / str(name)).exists()
