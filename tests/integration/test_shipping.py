"""A project in git, with helpers, data and a package called like one of ours, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.integration.commands import Place

FILES = {
    "project/mine.py": """
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from coarsefine import Data, Part
from common import make
from helpers.parts import N_CLASSES, halve

HERE = Path(__file__).parent


class Task:
    def data(self):
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            halves = pool.map(halve, [8])
        assert halves == [4]
        x = torch.tensor(np.loadtxt(HERE / "points.csv", delimiter=","), dtype=torch.float32)
        part = Part(x, (x.sum(1) > 0).long())
        return Data(part, part, None, N_CLASSES)

    def model(self, hp):
        return make(2, N_CLASSES)
""",
    "project/common.py": (
        "from torch import nn\n\n\ndef make(*sizes):\n    return nn.Linear(*sizes)\n"
    ),
    "project/helpers/__init__.py": "",
    "project/helpers/parts.py": (
        "from .numbers import N_CLASSES\n\n\ndef halve(x):\n    return x // N_CLASSES\n"
    ),
    "project/helpers/numbers.py": "N_CLASSES = 2\n",
    "project/points.csv": "1,2\n-1,-3\n2,1\n-2,-2\n0.5,1\n-1,0\n",
    "project/.gitignore": "*.npy\n",
}


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_project_in_git_trains_as_it_is(here: Place) -> None:
    for name, text in FILES.items():
        path = here.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    project = here.path / "project"
    (project / "ignored.npy").write_bytes(bytes(2 << 20))
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "all")
    here.write_search(name="own", task="project/mine.py:Task", trials=2, hidden="8")
    launch = ("master", "launch", "--stage", "coarse", "--workers", "1")
    done = here.run(*launch)
    assert done.returncode == 0, done.stderr
    folder = here.root / "own"
    records = [json.loads(path.read_text()) for path in folder.glob("coarse/trials/*.json")]
    digest = json.loads((folder / "task.json").read_text())["digest"]
    assert {
        (record["state"], record["task_digest"], record["task_commit"], record["task_dirty"])
        for record in records
    } == {("completed", digest, git(project, "rev-parse", "HEAD"), False)}
    shipped = [path for path in (folder / "task-code" / digest[:16]).rglob("*") if path.is_file()]
    assert len(shipped) == 6

    (project / "helpers" / "numbers.py").write_text("N_CLASSES = 3\n")
    refused = here.run(*launch)
    assert refused.returncode == 2 and "(changed helpers/numbers.py)" in refused.stderr
    here.write_search(name="own", task="project/mine.py:Task", trials=3, hidden="8")
    assert here.run(*launch, "--search", "own").returncode == 0  # with the launched code
