"""What distillation keeps of an ensemble's gain, over several search seeds.

    python benchmarks/distill.py [--task digits|mnist_part] [--seeds 1 2 3 4 5] [--trials 8]
        [--epochs 300] [--mnist FOLDER]

Each seed is one search, run from the command line: a budget, then a stage that distills its best
configuration, then a stage that trains the same configuration as often from new initial weights
without a teacher. On the test set, it compares

    single      the trial that ranks first after the search
    ensemble    the models that teach
    again       the best by validation of the trials without a teacher: what more trials alone gain
    distilled   the best by validation of the trials with a teacher

Each line gives the test accuracies of one search, and `distilled - single` with its paired 95 %
interval over the test examples (Agresti and Min). Below are the mean differences over the searches
with two 95 % intervals. One is over the test examples, which are the same for all searches: an
example's difference is averaged over them (normal distribution). The other is over the searches
(Student's t). `mnist_part` is MNIST's 10,000 test images, divided into 8,000 / 1,000 / 1,000, from
the two files in --mnist.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from common.folder.predictions import Part, read
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.folder.teacher import read_teacher
from common.intervals import compute_paired_difference
from common.search.search_file import Search
from master.ensembles.ensemble import mixture
from master.results import ranking
from worker.tasks import Task, load_launched
from worker.tasks.base import data_of
from worker.training.outcome.evaluate import find_ranked_weights, load

KINDS = ("single", "ensemble", "again", "distilled")
DIFFERENCES = (
    ("ensemble", "single"),
    ("distilled", "single"),
    ("distilled", "again"),
    ("distilled", "ensemble"),
)
MAX_EPOCHS = 20  # of one trial
COVERED = 0.95
TASK_FILE = Path(__file__).parent / "target" / "task_files.py"
TASKS = {
    "digits": ("digits", "hidden = { choice = [64, 128, 256] }\nbatch_size = 16"),
    "mnist_part": (f"{TASK_FILE.name}:MnistPart", "hidden = 256\nbatch_size = 64"),
}
FILE = """
name = "distill"
task = "{task}"
seed = {seed}
[space]
learning_rate = {{ log_uniform = [1e-6, 1e1] }}
weight_decay = {{ log_uniform = [1e-7, 1e0] }}
dropout = {{ uniform = [0.0, 0.8] }}
depth = 2
optimizer = "sgd"
momentum = 0.9
nesterov = true
{own}
[budget]
epochs = {epochs}
max_epochs = {max_epochs}
[stages.small]
kind = "distill"
trials = {trials}
epochs = {max_epochs}
[stages.again]
kind = "seeds"
trials = {trials}
epochs = {max_epochs}
"""


@dataclass(frozen=True)
class Searched:
    """The results of one search. ``right`` says of each kind and example whether it is right."""

    seconds: float
    right: dict[str, NDArray[np.bool_]]
    # Mean test accuracy of all trials of a stage, by kind: without the choice by validation.
    means: dict[str, float]

    def difference(self, first: str, second: str) -> NDArray[np.float64]:
        """Return 1 for each example that only the first has right, -1 for the reverse, else 0."""
        return self.right[first].astype(np.float64) - self.right[second]


def main() -> None:
    """Run all searches and print the table."""
    arguments = _arguments()
    if arguments.mnist is not None:
        # The task reads it, in this process and in others.
        os.environ["MNIST_PART"] = str(arguments.mnist.resolve())
    searches = []
    print(
        f"{'seed':>6} {'seconds':>8} {' '.join(f'{kind:>9}' for kind in KINDS)}  distilled - single"
    )
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found = _search(Path(folder), arguments, seed)
        searches.append(found)
        shares = " ".join(f"{found.right[kind].mean():>9.4f}" for kind in KINDS)
        print(f"{seed:>6} {found.seconds:>8.1f} {shares}  {_paired(found)}", flush=True)
    for first, second in DIFFERENCES:
        print(_told(first, second, searches))
    for kind in ("again", "distilled"):
        print(
            f"mean of all trials {kind}: test accuracy "
            f"{np.mean([found.means[kind] for found in searches]):.4f}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument(
        "--trials", type=int, default=8, help="of each of the two stages after the search"
    )
    parser.add_argument("--epochs", type=int, default=300, help="of the search")
    parser.add_argument(
        "--mnist",
        type=Path,
        help="folder with t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
    )
    arguments = parser.parse_args()
    if arguments.task == "mnist_part" and arguments.mnist is None:
        parser.error(
            "--task mnist_part needs --mnist FOLDER, where the two files of MNIST's test part are"
        )
    return arguments


def _search(folder: Path, arguments: argparse.Namespace, seed: int) -> Searched:
    task, own = TASKS[arguments.task]
    text = FILE.format(
        task=task,
        own=own,
        seed=seed,
        epochs=arguments.epochs,
        max_epochs=MAX_EPOCHS,
        trials=arguments.trials,
    )
    (folder / "search.toml").write_text(text)
    shutil.copy(TASK_FILE, folder)
    began = time.perf_counter()
    _run(folder, "master", "launch", "--stage", "all")
    seconds = time.perf_counter() - began
    home = SearchFolder(folder / "checkpoints", "distill")
    return Searched(seconds, *_measured(home))


def _measured(home: SearchFolder) -> tuple[dict[str, NDArray[np.bool_]], dict[str, float]]:
    """Return what each kind gets right, and the mean test accuracy of the last two stages."""
    search = home.search()
    assert search is not None  # launch has written it
    known = {stage.name: home.stage(stage.name).records(print) for stage in search.stages}
    searched = [record for stage in search.stages if stage.searches for record in known[stage.name]]
    members = read_teacher(home.stage("small").teacher).members
    task = load_launched(search, home, Path("data"))
    parts = [_ask(home.path / member.checkpoint, task, search) for member in members]
    right = {
        "single": _right(_of(home, ranking.best(searched, 1)[0])),
        "ensemble": _right(mixture(parts, [member.weight for member in members])),
    }
    means = {}
    for kind, stage in (("again", "again"), ("distilled", "small")):
        ended = ranking.best(known[stage])
        right[kind] = _right(_of(home, ended[0]))
        means[kind] = float(np.mean([_right(_of(home, record)).mean() for record in ended]))
    return {kind: right[kind] for kind in KINDS}, means


def _of(home: SearchFolder, record: Record) -> Part:
    return _test_part(home.stage(record.stage).path / str(record.checkpoint))


def _test_part(checkpoint: Path) -> Part:
    part = read(checkpoint.with_suffix(".npz")).test
    assert part is not None  # both tasks have a test set
    return part


def _ask(checkpoint: Path, task: Task, search: Search) -> Part:
    """Return the predictions stored beside the weights.

    A trial that was too short to store any is evaluated now.
    """
    if checkpoint.with_suffix(".npz").exists():
        return _test_part(checkpoint)
    test = data_of(task).test
    assert test is not None
    model = load(checkpoint, task, search.task, torch.device("cpu"), find_ranked_weights(search))
    probabilities = model.outputs(test.inputs).softmax(-1).numpy()
    return Part(probabilities, test.targets.numpy())


def _right(part: Part) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = part.probabilities.argmax(axis=1) == part.targets
    return found


def _paired(found: Searched) -> str:
    one, other = found.right["distilled"], found.right["single"]
    only_first, only_second, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    low, high = compute_paired_difference(only_first, only_second, n)
    return f"{(only_first - only_second) / n:+.4f} ({low:+.4f} to {high:+.4f})"


def _told(first: str, second: str, searches: Sequence[Searched]) -> str:
    # (searches, examples)
    gains = np.stack([found.difference(first, second) for found in searches])
    mean, of_examples, of_searches = gains.mean(), gains.mean(axis=0), gains.mean(axis=1)
    half = stats.norm.ppf((1 + COVERED) / 2) * of_examples.std(ddof=1) / np.sqrt(len(of_examples))
    told = (
        f"{first} - {second}: {mean:+.4f}, 95 % interval {mean - half:+.4f} to {mean + half:+.4f} "
        "over the examples"
    )
    if len(searches) > 1:
        freedom = len(searches) - 1
        half = (
            stats.t.ppf((1 + COVERED) / 2, freedom)
            * of_searches.std(ddof=1)
            / np.sqrt(len(searches))
        )
        told += f", {mean - half:+.4f} to {mean + half:+.4f} over the searches"
    return told


def _run(folder: Path, *command: str) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("REDIS_URL", "CHECKPOINT_DIR")
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


if __name__ == "__main__":
    main()
