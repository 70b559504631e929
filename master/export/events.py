"""TensorBoard's event files: a run a trial with its curves, and what the HParams view needs.

    OUT/coarsefine.json                         whose export it is
    OUT/events.out.tfevents.0.coarsefine        the experiment: hyperparameters with their ranges, metrics
    OUT/coarse-0042/events.out.tfevents...      one trial: configuration, curves, best values, how it ended

Written with TensorBoard's own package, which needs neither torch nor TensorFlow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams import summary_v2 as hp  # its public name, hparams.api, loads TensorFlow
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from common import durable
from common.errors import ConfigError
from common.record import Record
from common.search import Search
from common.space import Choice, Fixed, Parameter, Scalar, Space
from common.trial import TrialState
from master import ranking
from master.export.ended import Ended, EndedStage, evaluations
from master.export.files import appearing, plain_path

EVENTS = "events.out.tfevents.0.coarsefine"  # always the same, so that a later export replaces it
MARK = "coarsefine.json"
FORMAT_VERSION = "brain.Event:2"  # the first record of every event file
BEST = "best/"  # before metrics at the best epoch: the HParams view takes a curve's last value, which is not the best
STATUS = {  # the HParams view filters by these
    TrialState.COMPLETED: api_pb2.STATUS_SUCCESS,
    TrialState.STOPPED: api_pb2.STATUS_SUCCESS,
    TrialState.EXPLODED: api_pb2.STATUS_FAILURE,
    TrialState.KILLED: api_pb2.STATUS_FAILURE,
    TrialState.FAILED: api_pb2.STATUS_FAILURE,
}


def write(stages: Sequence[EndedStage], out: str, search: Search, spaces: Sequence[Space]) -> Path:
    """Writes a folder for ``tensorboard --logdir``. Runs of an earlier export of the same search are written anew.

    Args:
        stages: what to export.
        out: the folder.
        search: it must have been launched.
        spaces: the ranges of all launched stages, which the experiment describes.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else.
        CheckpointError: it cannot be written.
    """
    folder = _claimed(plain_path(out), search)
    domains = {name: _domain([space.parameters[name] for space in spaces]) for name in search.space.parameters}
    records = [record for stage in stages for record in stage.records]
    _write(folder / EVENTS, [_experiment(domains, records)])
    for stage in stages:
        for trial in stage.trials:
            run = durable.make_folder(folder / trial.record.trial)
            _write(run / EVENTS, _run(trial, domains))
    return folder


def _claimed(folder: Path, search: Search) -> Path:
    """The folder, which is empty or an earlier export of this search."""
    mark = folder / MARK
    own = json.dumps({"search": search.name, "id": search.id})
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; name a folder for TensorBoard's files")
    durable.make_folder(folder)
    try:
        if mark.exists():
            if mark.read_text(encoding="utf-8") != own:
                raise ConfigError(f"--out {folder}: holds the export of another search ({mark}); name another folder, or remove it")
        elif any(folder.iterdir()):
            raise ConfigError(f"--out {folder}: holds other files, which runs might be mixed up with; name an empty or a new folder")
        else:
            mark.write_text(own, encoding="utf-8")
    except OSError as error:
        raise durable.explained(error, folder) from error
    return folder


def _write(path: Path, events: Iterator[Event] | Sequence[Event]) -> None:
    with appearing(path) as temporary, temporary.open("xb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version=FORMAT_VERSION).SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())


def _experiment(domains: Mapping[str, hp.Domain], records: Sequence[Record]) -> Event:
    metric = ranking.metric_of(records)[0]
    names = dict.fromkeys([metric, "val_acc", "val_loss", *(name for record in records for name in record.metrics)])
    known = [name for name in names if any(name in _best(record) for record in records)]
    experiment = api_pb2.Experiment(
        hparam_infos=[_told(name, domain, records) for name, domain in domains.items()],
        metric_infos=[hp.Metric(BEST + name, display_name=name, dataset_type=hp.Metric.VALIDATION).as_proto() for name in known],
        time_created_secs=min((_started(record) for record in records), default=0.0),
    )
    return Event(wall_time=0.0, summary=_hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)))


def _told(name: str, domain: hp.Domain, records: Sequence[Record]) -> api_pb2.HParamInfo:
    """A hyperparameter and its range; those that differ between trials are the view's first columns."""
    info = api_pb2.HParamInfo(name=name, differs=len({record.hyperparameters.get(name) for record in records}) > 1)
    domain.update_hparam_info(info)
    return info


def _run(trial: Ended, domains: Mapping[str, hp.Domain]) -> Iterator[Event]:
    record = trial.record
    start, end = _started(record), record.ended_at
    values = {name: _fitting(value, domains.get(name)) for name, value in record.hyperparameters.items()}
    yield Event(wall_time=start, summary=hp.hparams_pb(values, trial_id=record.trial, start_time_secs=start))
    last = 0
    for evaluation in evaluations(record):
        done = min((evaluation.epoch or 0.0) / record.epochs, 1.0) if record.epochs else 1.0
        last = evaluation.step
        curves = {name.replace(".", "/", 1): value for name, value in evaluation.values.items()}  # the layers of one curve side by side
        yield Event(wall_time=start + done * (end - start), step=last, summary=_scalars(curves))
    best_step = int(record.best_epoch) if record.best_epoch is not None and record.best_epoch.is_integer() else last
    yield Event(wall_time=end, step=best_step, summary=_scalars({BEST + name: value for name, value in _best(record).items()}))
    yield Event(wall_time=end, step=last, summary=_text(_in_words(trial)))
    yield Event(wall_time=end, summary=_session_end(record))


def _best(record: Record) -> dict[str, float]:
    """All that was measured at the best epoch."""
    known = {"val_acc": record.val_acc, "val_loss": record.val_loss, **record.metrics, record.metric: record.measured}
    return {name: value for name, value in known.items() if value is not None}


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=_single(value)) for name, value in values.items()])


def _single(value: float) -> float:
    """TensorBoard's scalars have 32 bits; what is beyond them is infinite there, as in any conversion."""
    limit = 3.4028235677973366e38  # from here on a double rounds to infinity
    return math.copysign(math.inf, value) if abs(value) >= limit else value


def _session_end(record: Record) -> Summary:
    ended = SessionEndInfo(status=STATUS[record.state], end_time_secs=record.ended_at)
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=ended))


def _hparams(tag: str, data: HParamsPluginData) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)])


def _text(text: str) -> Summary:
    tensor = make_tensor_proto([text.encode()], dtype="string")
    return Summary(value=[Summary.Value(tag="trial", metadata=text_metadata("", ""), tensor=tensor)])


def _in_words(trial: Ended) -> str:
    """How it ended, as indented lines: Markdown shows these as they are, whatever is in them."""
    record = trial.record
    diagnosis = f"{record.diagnosis.word}: {record.diagnosis.sentence}" if record.diagnosis else None
    told = {
        "trial": f"{record.trial}, attempt {record.attempt}, rank {trial.rank} in {record.stage}",
        "state": record.state.value,
        "reason": record.reason,
        "diagnosis": diagnosis,
        "checkpoint": trial.checkpoint,
        "worker": record.worker and f"{record.worker} on {record.device}",
    }
    lines = [line for name, text in told.items() if text for line in f"{name}: {text}".splitlines()]
    return "\n".join(f"    {line}" for line in lines)


def _started(record: Record) -> float:
    return max(record.ended_at - record.seconds, 0.0)


def _domain(parameters: Sequence[Parameter]) -> hp.Domain:
    """What all stages together sample of a hyperparameter; options of several kinds are told as text."""
    intervals = [p for p in parameters if not isinstance(p, Choice | Fixed)]
    if intervals:
        low, high = min(p.low for p in intervals), max(p.high for p in intervals)
        return hp.IntInterval(int(low), int(high)) if intervals[0].integer else hp.RealInterval(float(low), float(high))
    options = [option for p in parameters for option in (p.options if isinstance(p, Choice) else [p.value])]  # type: ignore[union-attr]
    distinct = list(dict.fromkeys(options))
    kinds = {type(option) for option in distinct}
    if len(kinds) == 1:
        return hp.Discrete(distinct)
    return hp.Discrete([float(o) for o in distinct]) if kinds == {int, float} else hp.Discrete([str(o) for o in distinct])


def _fitting(value: Scalar, domain: hp.Domain | None) -> Scalar:
    """The value as its domain has it; a number that is not finite has no place in the view's JSON but as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(domain, hp.Discrete) and domain.dtype is str else value
