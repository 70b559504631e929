"""Test accuracy of what the default digits search selects, and of ensembles of its models.

    python benchmarks/accuracy.py [--seeds 231 1 2 3 4] [--limit 0.97] [--config FILE]

The whole search runs once for each seed. It runs `master launch --stage all` in a new folder, takes
the first line of `master rank`, evaluates it on the test set with `worker test`, and asks `master
ensemble --test` for the ten best models and for a greedy selection. The exit code is 1 if the mean
accuracy of the selected models is below the limit.

The gain of the ensembles is printed with two 95 % intervals. One is over the test images, which are
the same for all seeds: an image's gain is averaged over the searches (normal distribution). The
other is over the searches (Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.folder.predictions import Part, read
from common.search.search_file import default_text, parse_search
from master.ensembles.ensemble import mixture
from master.run.planning import count_epochs

KINDS = ("top", "greedy")
COVERED = 0.95


@dataclass(frozen=True)
class Search:
    """The results of one search.

    ``right`` says of each test image whether the selected model and each kind of ensemble are
    right.
    """

    seconds: float
    trial: str
    val_acc: float
    right: dict[str, NDArray[np.bool_]]

    def gain(self, kind: str) -> NDArray[np.float64]:
        """Return 1 for each image that only the ensemble has right, -1 for the reverse, else 0."""
        return self.right[kind].astype(np.float64) - self.right["selected"]


def main() -> int:
    arguments = _arguments()
    text = arguments.config.read_text() if arguments.config else default_text()
    searches = []
    print(f"epochs planned a search: {count_epochs(parse_search(text)):g}")
    print(
        f"{'seed':>6} {'seconds':>8} {'val_acc':>8} {'test_acc':>8} {'top 10':>8} {'greedy':>8}  "
        "selected"
    )
    for seed in arguments.seeds:
        # The report may still be drawn when the folder is removed.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found = _search(Path(folder), re.sub(r"(?m)^seed = \d+", f"seed = {seed}", text))
        searches.append(found)
        shares = " ".join(f"{found.right[kind].mean():>8.4f}" for kind in ("selected", *KINDS))
        print(
            f"{seed:>6} {found.seconds:>8.1f} {found.val_acc:>8.4f} {shares}  {found.trial}",
            flush=True,
        )
    mean = statistics.mean(float(found.right["selected"].mean()) for found in searches)
    for kind in KINDS:
        print(_gain(kind, searches))
    verdict = "ok" if mean >= arguments.limit else "TOO LOW"
    print(
        f"mean test accuracy {mean:.4f} over {len(searches)} seeds, limit {arguments.limit}: "
        f"{verdict}"
    )
    return int(mean < arguments.limit)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[231, *range(1, 10)])
    parser.add_argument("--limit", type=float, default=0.97)
    parser.add_argument(
        "--config",
        type=Path,
        help="another search file than the built-in one; its seed is replaced",
    )
    return parser.parse_args()


def _gain(kind: str, searches: Sequence[Search]) -> str:
    """Return the gain of an ensemble over the selected model, with both intervals."""
    gains = np.stack([found.gain(kind) for found in searches])  # (searches, images)
    mean, of_images, of_searches = gains.mean(), gains.mean(axis=0), gains.mean(axis=1)
    half = stats.norm.ppf((1 + COVERED) / 2) * of_images.std(ddof=1) / np.sqrt(len(of_images))
    told = (
        f"{kind}: test accuracy {np.mean([found.right[kind].mean() for found in searches]):.4f}, "
        f"gain {mean:+.4f}"
    )
    told += f", 95 % interval {mean - half:+.4f} to {mean + half:+.4f} over the images"
    if len(searches) > 1:
        half = (
            stats.t.ppf((1 + COVERED) / 2, len(searches) - 1)
            * of_searches.std(ddof=1)
            / np.sqrt(len(searches))
        )
        told += f", {mean - half:+.4f} to {mean + half:+.4f} over the searches"
    return told


def _search(folder: Path, text: str) -> Search:
    (folder / "search.toml").write_text(text)
    began = time.perf_counter()
    _run(folder, "master", "launch", "--stage", "all")
    seconds = time.perf_counter() - began
    best = json.loads(_run(folder, "master", "rank", "--top", "1", "--format", "json"))[0]
    checkpoint = next((folder / "checkpoints").glob(f"*/{best['stage']}/{best['checkpoint']}"))
    said = _run(folder, "worker", "test", str(checkpoint))
    correct = int(re.search(r"\((\d+) of \d+\)", said).group(1))  # type: ignore[union-attr]
    of = [part for kind in KINDS for part in ("--of", kind)]
    ensembles = json.loads(
        _run(folder, "master", "ensemble", "--stage", "all", *of, "--test", "--json")
    )["ensembles"]
    home = checkpoint.parent.parent
    right = {"selected": _right(_test_part(home / best_of(ensembles)))}
    right |= {made["kind"]: _right(_mixed(home, made["members"])) for made in ensembles}
    if correct != right["selected"].sum():
        raise SystemExit(
            f"worker test says {correct} right, the stored predictions {right['selected'].sum()}"
        )
    return Search(seconds, best["trial"], best["val_acc"], right)


def best_of(ensembles: Sequence[dict[str, Any]]) -> str:
    """Return the checkpoint that all ensembles are compared with: the one that ranks first."""
    return str(ensembles[0]["best"]["checkpoint"])


def _mixed(home: Path, members: Sequence[dict[str, Any]]) -> Part:
    return mixture(
        [_test_part(home / member["checkpoint"]) for member in members],
        [member["weight"] for member in members],
    )


def _test_part(checkpoint: Path) -> Part:
    part = read(checkpoint.with_suffix(".npz")).test
    assert part is not None  # digits has a test set
    return part


def _right(part: Part) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = part.probabilities.argmax(axis=1) == part.targets
    return found


def _run(folder: Path, *command: str) -> str:
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
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
