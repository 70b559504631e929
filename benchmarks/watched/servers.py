"""The same trials in the dashboard of this project and in optuna-dashboard."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import ID, TEXT, made_record
from benchmarks.watched.programs import running, wait
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from common.search.trial import TrialState
from master.stages.sampling import configurations
from master.stages.source import first_source, write_source

OURS, OPTUNA = "coarsefine", "optuna-dashboard"


@dataclass(frozen=True)
class Served:
    """A dashboard that runs.

    ``content`` is a pattern of the text that a visitor waits for: the best trial.
    """

    name: str
    address: str
    content: str


def make_search(root: Path, n_trials: int) -> str:
    """Write a search of one ended stage of ``n_trials``, and return the best trial's name."""
    text = re.sub(r"trials = 10_000", f"trials = {n_trials}", TEXT)
    text = text[: text.index("[stages.fine]")]
    search = parse_search(f'id = "{ID}"\nprotocol = 2\n{text}')
    folder, stage = SearchFolder(root, search.name), search.stages[0]
    folder.stage(stage.name).make()
    folder.search_file.write_text(f'id = "{ID}"\nprotocol = 2\n{text}')
    source, noise = first_source(search), np.random.default_rng(0)
    write_source(folder.stage(stage.name), ID, source)
    best = None
    for trial in configurations(search, stage, source, range(n_trials)):
        record = made_record(trial, noise)
        path = folder.stage(stage.name).record_path(trial.id, 1)
        path.write_text(record.model_dump_json(exclude_none=True))
        ended_well = record.state is TrialState.COMPLETED and record.measured is not None
        if ended_well and (best is None or record.measured > best.measured):
            best = record
    assert best is not None  # half of the range of learning rates trains well
    return best.trial


@contextlib.contextmanager
def serve_ours(root: Path, best: str) -> Iterator[Served]:
    """Run `master serve` on the folder."""
    command = [sys.executable, "-P", "-m", "master", "--checkpoints", str(root), "serve"]
    log = root / "serve.log"
    with running([*command, "--port", "0"], log) as server:
        found = wait(lambda: re.findall(r"http://\S+", log.read_text()), server)
        yield Served(OURS, found[0], re.escape(best))


@contextlib.contextmanager
def serve_optuna(root: Path) -> Iterator[Served]:
    """Export the search to Optuna, and run optuna-dashboard on its study."""
    storage = f"sqlite:///{root / 'study.db'}"
    export = [sys.executable, "-P", "-m", "master", "--checkpoints", str(root), "export"]
    subprocess.run(
        [*export, "--format", "optuna", "--out", storage], check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from optuna_dashboard._cli import main; main()"
    command = [sys.executable, "-c", start, storage, "--port", str(port)]
    with running(command, root / "optuna.log") as server:
        wait(lambda: _answers(port), server)
        address = f"http://127.0.0.1:{port}/dashboard/studies/1"
        yield Served(OPTUNA, address, r"Best Trial \(number=\d+\)")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
