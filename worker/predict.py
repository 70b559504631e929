"""`worker predict`: a checkpoint, or the mean of several, on new inputs."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from common import durable
from common.errors import CheckpointError, ConfigError
from common.options import DATA_FOLDER
from common.records import SearchFolder, home_of
from common.search import Search, check_name
from worker.device import owned
from worker.inputs import Expected, read_inputs
from worker.tasks.base import Task
from worker.tasks.loader import load_class
from worker.training.evaluate import Saved, load, ranked_weights

FORMATS = (".csv", ".npz")


@dataclass(frozen=True)
class Request:
    """What the command line asked for: checkpoints, the best of a stage, or an ensemble that was printed as JSON."""

    models: Sequence[Path]  # weights files
    inputs: Path
    root: Path
    search: str | None = None
    stage: str | None = None
    top: int = 1
    ensemble: Path | None = None  # JSON of `master ensemble`
    out: Path | None = None
    device: str = "auto"
    weights: str | None = None  # None: those that the search ranks by
    data: Path = DATA_FOLDER


@dataclass(frozen=True)
class Predicted:
    """``values``: (n, C) probabilities where there are classes, else what the model gives, (n, ...)."""

    values: NDArray[np.floating]
    classes: NDArray[np.int64] | None  # (n,) the most probable class
    n_models: int

    def csv(self) -> str:
        """A line an example: its number from 0, the class, and all values."""
        flat = self.values.reshape(len(self.values), -1)
        name = "output" if self.classes is None else "probability"
        table = pd.DataFrame(flat, columns=[f"{name}_{column}" for column in range(flat.shape[1])])
        if self.classes is not None:
            table.insert(0, "class", self.classes)
        return table.to_csv(index_label="example", lineterminator="\n")

    def npz(self) -> bytes:
        """The arrays ``probabilities`` and ``classes``, or ``outputs``."""
        buffer = io.BytesIO()
        arrays = {"outputs": self.values} if self.classes is None else {"probabilities": self.values, "classes": self.classes}
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def predict(request: Request) -> tuple[str, str]:
    """Runs the models; returns the text for stdout and a line for stderr.

    Raises:
        ConfigError: the inputs or the command line are wrong.
        CheckpointError: a checkpoint is missing, damaged, or of another task.
        TaskError: the task cannot be loaded.
    """
    if request.out is not None and request.out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {request.out}: {request.out.suffix or 'no ending'} cannot be written; use .csv or .npz")
    folder, paths = _chosen(request)
    search = folder.search()
    assert search is not None  # home_of and _best have seen its file
    task = load_class(search.task_in_folder, folder.path, request.data)
    with owned(request.device) as device:
        found = mixed(paths, search, task, request.inputs, device.torch_device, request.weights or ranked_weights(search))
        told = f"{len(found.values)} examples, {found.n_models} {'model' if found.n_models == 1 else 'models'}, on {device.name}"
    if request.out is None:
        return found.csv().rstrip("\n"), told
    durable.replace(request.out, found.npz() if request.out.suffix.lower() == ".npz" else found.csv().encode())
    return "", f"{told}: wrote {request.out}"


def mixed(paths: Sequence[Path], search: Search, task: Task, inputs: Path, device: torch.device, weights: str) -> Predicted:
    """What the models in ``paths`` predict together; one that is named twice counts twice.

    Raises:
        ConfigError: the inputs are wrong, or there are no such weights.
        CheckpointError: a checkpoint is missing, damaged, or of another task, or takes other inputs than the first.
    """
    counted = Counter(path.resolve() for path in paths)
    models = {path: load(path, task, search.task, device, weights) for path in counted}
    first = next(iter(models.values()))
    examples = read_inputs(inputs, _expected(first))
    total, shape = None, None
    for path, model in models.items():
        if _expected(model) != _expected(first) or model.n_classes != first.n_classes:
            raise CheckpointError(f"{path}: takes other inputs, or has other classes, than {first.path.name}; they make no ensemble")
        outputs = model.outputs(examples).double()
        values = (outputs.softmax(-1) if model.n_classes is not None else outputs) * counted[path]
        if shape not in (None, values.shape):
            raise CheckpointError(
                f"{path}: gives outputs of shape {tuple(values.shape)}, {first.path.name} of {shape}; they make no ensemble"
            )
        total, shape = values if total is None else total + values, values.shape
    assert total is not None  # there is at least one path
    mean = (total / counted.total()).float().numpy()
    return Predicted(mean, mean.argmax(axis=-1) if first.n_classes is not None else None, len(models))


def _expected(model: Saved) -> Expected:
    return Expected(model.shape, model.floating)


def _chosen(request: Request) -> tuple[SearchFolder, list[Path]]:
    """The search and its checkpoints."""
    given = [bool(request.models), request.ensemble is not None, request.search is not None]
    if sum(given) != 1:
        raise ConfigError("which model? Give CHECKPOINT..., or --ensemble FILE, or --search NAME with --stage and --top; one of the three")
    if request.search is not None:
        return _best(request, request.search)
    paths = list(request.models) or _listed(request)
    folder = home_of(paths[0])[0]
    for path in paths[1:]:
        if home_of(path)[0].path != folder.path:
            raise CheckpointError(f"{path}: is of another search than {paths[0]}; an ensemble is of one search")
    return folder, paths


def _listed(request: Request) -> list[Path]:
    """The models of the first ensemble in a file that `master ensemble --json` has written, each as often as it counts."""
    assert request.ensemble is not None  # _chosen has seen it
    try:
        raw = json.loads(request.ensemble.read_text(encoding="utf-8"))
        home = request.root.resolve() / check_name(str(raw["search"]))
        members = raw["ensembles"][0]["members"]
        paths = [home / str(member["checkpoint"]) for member in members for _ in range(int(member["weight"]))]
    except OSError as error:
        raise ConfigError(f"--ensemble {request.ensemble}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--ensemble {request.ensemble}: not what `master ensemble --json` prints ({told}); write it again") from None
    if not paths:
        raise ConfigError(f"--ensemble {request.ensemble}: holds no model; write it again with `master ensemble --json`")
    return paths


def _best(request: Request, search_name: str) -> tuple[SearchFolder, list[Path]]:
    folder = SearchFolder(request.root.resolve(), check_name(search_name))
    search = folder.search()
    if search is None:
        raise ConfigError(f"--search {search_name}: no such search in {request.root}")
    launched = [stage.name for stage in search.stages if folder.stage(stage.name).ranges.exists()]
    name = search.stage(request.stage).name if request.stage else (launched or [search.stages[0].name])[-1]
    stage = folder.stage(name)
    latest = {found.trial_id: found for found in sorted(stage.checkpoints(search.mode), key=lambda found: found.attempt)}
    names = [found for found in stage.checkpoints(search.mode) if latest[found.trial_id] == found][: request.top]
    if not names:
        raise CheckpointError(f"{stage.path}: holds no checkpoint; `master rank --search {search.name} --stage {name}` shows what came out")
    return folder, [stage.path / str(found) for found in names]
