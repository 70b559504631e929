"""TensorBoard's event files: one run per trial with its curves, and the data of the HParams view.

    OUT/coarsefine.json                       the search that this is an export of
    OUT/events.out.tfevents.0.coarsefine      the experiment: hyperparameters, ranges, metrics
    OUT/coarse-0042/events.out.tfevents...    one trial: configuration, curves, best values, end

The files are written with TensorBoard's own package, which needs neither torch nor TensorFlow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams import summary_v2 as hp  # hparams.api loads TensorFlow
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from common.errors import ConfigError
from common.folder import durable
from common.folder.record import Record
from common.search.parameters import Choice, Fixed, Parameter
from common.search.search_file import Search
from common.search.space import Space
from common.search.trial import TrialState
from common.search.values import Scalar, Value, distinct, flat
from master.export.ended import Ended, EndedStage, evaluations
from master.export.files import appearing, plain_path
from master.results import ranking
from master.results.lineage import budget_words, describe_draw

EVENTS = "events.out.tfevents.0.coarsefine"  # constant, so that a later export replaces the file
MARK = "coarsefine.json"
FORMAT_VERSION = "brain.Event:2"  # the first record of every event file
# Prefix of the metrics at the best epoch. The HParams view takes the last value of a curve, which
# is not the best one.
BEST = "best/"
STATUS = {  # the HParams view can filter by these
    TrialState.COMPLETED: api_pb2.STATUS_SUCCESS,
    TrialState.STOPPED: api_pb2.STATUS_SUCCESS,
    TrialState.EXPLODED: api_pb2.STATUS_FAILURE,
    TrialState.KILLED: api_pb2.STATUS_FAILURE,
    TrialState.FAILED: api_pb2.STATUS_FAILURE,
}


def write(stages: Sequence[EndedStage], out: str, search: Search, spaces: Sequence[Space]) -> Path:
    """Write a folder for ``tensorboard --logdir``.

    Runs of an earlier export of the same search are replaced.

    Args:
        stages: the stages to export.
        out: the folder.
        search: a search that has been launched.
        spaces: the ranges of all launched stages, which the experiment describes.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else.
        CheckpointError: it cannot be written.
    """
    folder = _claim_folder(plain_path(out), search)
    domains = {
        name: _domain([space.parameters[name] for space in spaces if name in space.parameters])
        for name in search.space.parameters
    }
    records = [record for stage in stages for record in stage.records]
    _write(folder / EVENTS, [_experiment(domains, records)])
    for stage in stages:
        for trial in stage.trials:
            run = durable.make_folder(folder / trial.record.trial)
            _write(run / EVENTS, _run(trial, domains))
    return folder


def _claim_folder(folder: Path, search: Search) -> Path:
    """Return the folder, which is empty or an earlier export of this search.

    Raises:
        ConfigError: it holds something else.
        CheckpointError: it cannot be read or written.
    """
    mark = folder / MARK
    own = json.dumps({"search": search.name, "id": search.id})
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; name a folder for TensorBoard's files")
    durable.make_folder(folder)
    try:
        if mark.exists():
            if mark.read_text(encoding="utf-8") != own:
                raise ConfigError(
                    f"--out {folder}: holds the export of another search ({mark}); name another "
                    "folder, or remove it"
                )
        elif any(folder.iterdir()):
            raise ConfigError(
                f"--out {folder}: holds other files, which runs might be mixed up with; name an "
                "empty or a new folder"
            )
        else:
            mark.write_text(own, encoding="utf-8")
    except OSError as error:
        raise durable.explain_os_error(error, folder) from error
    return folder


def _write(path: Path, events: Iterator[Event] | Sequence[Event]) -> None:
    with appearing(path) as temporary, temporary.open("xb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version=FORMAT_VERSION).SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())


def _experiment(domains: Mapping[str, hp.Domain], records: Sequence[Record]) -> Event:
    metric = ranking.metric_of(records)[0]
    names = dict.fromkeys(
        [metric, "val_acc", "val_loss", *(name for record in records for name in record.metrics)]
    )
    known = [name for name in names if any(name in _best(record) for record in records)]
    experiment = api_pb2.Experiment(
        hparam_infos=[
            _describe_hyperparameter(name, domain, records) for name, domain in domains.items()
        ],
        metric_infos=[
            hp.Metric(BEST + name, display_name=name, dataset_type=hp.Metric.VALIDATION).as_proto()
            for name in known
        ],
        time_created_secs=min((_find_start(record) for record in records), default=0.0),
    )
    return Event(
        wall_time=0.0,
        summary=_hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
    )


def _describe_hyperparameter(
    name: str, domain: hp.Domain, records: Sequence[Record]
) -> api_pb2.HParamInfo:
    """Return a hyperparameter and its range.

    The hyperparameters that differ between trials are the first columns of the view.
    """
    info = api_pb2.HParamInfo(
        name=name, differs=len(distinct(record.hyperparameters.get(name) for record in records)) > 1
    )
    domain.update_hparam_info(info)
    return info


def _run(trial: Ended, domains: Mapping[str, hp.Domain]) -> Iterator[Event]:
    record = trial.record
    start, end = _find_start(record), record.ended_at
    values = {
        name: _fitting(value, domains.get(name)) for name, value in record.hyperparameters.items()
    }
    yield Event(
        wall_time=start, summary=hp.hparams_pb(values, trial_id=record.trial, start_time_secs=start)
    )
    last = 0
    for evaluation in evaluations(record):
        done = min((evaluation.epoch or 0.0) / record.epochs, 1.0) if record.epochs else 1.0
        last = evaluation.step
        # The name before the first dot becomes a group, which has the layers of one curve.
        curves = {name.replace(".", "/", 1): value for name, value in evaluation.values.items()}
        yield Event(wall_time=start + done * (end - start), step=last, summary=_scalars(curves))
    best_step = (
        int(record.best_epoch)
        if record.best_epoch is not None and record.best_epoch.is_integer()
        else last
    )
    yield Event(
        wall_time=end,
        step=best_step,
        summary=_scalars({BEST + name: value for name, value in _best(record).items()}),
    )
    yield Event(wall_time=end, step=last, summary=_text(_in_words(trial)))
    yield Event(wall_time=end, summary=_session_end(record))


def _best(record: Record) -> dict[str, float]:
    """Return all values that were measured at the best epoch."""
    known = {**record.metrics, record.metric: record.measured}
    return {name: value for name, value in known.items() if value is not None}


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(
        value=[
            Summary.Value(tag=name, simple_value=_single(value)) for name, value in values.items()
        ]
    )


def _single(value: float) -> float:
    """Return the value as TensorBoard stores it, in 32 bits.

    A value beyond that range becomes infinite.
    """
    limit = 3.4028235677973366e38  # from here on a double is rounded to infinity
    return math.copysign(math.inf, value) if abs(value) >= limit else value


def _session_end(record: Record) -> Summary:
    ended = SessionEndInfo(status=STATUS[record.state], end_time_secs=record.ended_at)
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=ended))


def _hparams(tag: str, data: HParamsPluginData) -> Summary:
    return Summary(
        value=[
            Summary.Value(
                tag=tag,
                metadata=metadata.create_summary_metadata(data),
                tensor=metadata.NULL_TENSOR,
            )
        ]
    )


def _text(text: str) -> Summary:
    tensor = make_tensor_proto([text.encode()], dtype="string")
    return Summary(
        value=[Summary.Value(tag="trial", metadata=text_metadata("", ""), tensor=tensor)]
    )


def _in_words(trial: Ended) -> str:
    """Return how the trial ended, as indented lines.

    Markdown shows indented lines literally, whatever they contain.
    """
    record = trial.record
    diagnosis = (
        f"{record.diagnosis.word}: {record.diagnosis.sentence}" if record.diagnosis else None
    )
    told = {
        "trial": f"{record.trial}, attempt {record.attempt}, rank {trial.rank} in {record.stage}",
        "state": record.state.value,
        "budget": budget_words(record.budget_epochs, record.max_epochs, record.rung),
        "configuration": describe_draw(record.drawn, record.parents),
        "reason": record.reason,
        "diagnosis": diagnosis,
        "checkpoint": trial.checkpoint,
        "worker": record.worker and f"{record.worker} on {record.device}",
    }
    lines = [line for name, text in told.items() if text for line in f"{name}: {text}".splitlines()]
    return "\n".join(f"    {line}" for line in lines)


def _find_start(record: Record) -> float:
    return max(record.ended_at - record.seconds, 0.0)


def _domain(parameters: Sequence[Parameter]) -> hp.Domain:
    """Return the union of what all stages sample of a hyperparameter.

    Options of several kinds become text.
    """
    intervals = [p for p in parameters if not isinstance(p, Choice | Fixed)]
    if intervals:
        low, high = min(p.low for p in intervals), max(p.high for p in intervals)
        return (
            hp.IntInterval(int(low), int(high))
            if intervals[0].integer
            else hp.RealInterval(float(low), float(high))
        )
    options = [
        option
        for p in parameters
        for option in (
            p.options if isinstance(p, Choice) else [p.value]  # type: ignore[union-attr]
        )
    ]
    found = list(dict.fromkeys(map(flat, options)))
    kinds = {type(option) for option in found}
    if len(kinds) == 1:
        return hp.Discrete(found)
    return (
        hp.Discrete([float(o) for o in found])
        if kinds == {int, float}
        else hp.Discrete([str(o) for o in found])
    )


def _fitting(given: Value, domain: hp.Domain | None) -> Scalar:
    """Return the value in the type of its domain. A list or a table becomes text.

    A number that is not finite becomes text, because the view's JSON cannot hold it otherwise.
    """
    value = flat(given)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(domain, hp.Discrete) and domain.dtype is str else value
