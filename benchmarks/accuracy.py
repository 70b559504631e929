"""Test accuracy of what the default digits search selects, over several search seeds: the whole main job, as a user runs it.

    python benchmarks/accuracy.py [--seeds 231 1 2 3 4] [--limit 0.965] [--config FILE]

Each seed runs `master launch --stage all` in a folder of its own, takes the first line of `master rank --stage fine`, and looks
at the test part once with `worker test`. Ends with 1 if the mean is below the limit.
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
from pathlib import Path

from common.search import default_text


def main() -> int:
    arguments = _arguments()
    text = arguments.config.read_text() if arguments.config else default_text()
    accuracies = []
    print(f"{'seed':>6} {'seconds':>8} {'val_acc':>8} {'test_acc':>8}  selected")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seconds, best, accuracy = _search(Path(folder), re.sub(r"(?m)^seed = \d+", f"seed = {seed}", text))
        accuracies.append(accuracy)
        print(f"{seed:>6} {seconds:>8.1f} {best['val_acc']:>8.4f} {accuracy:>8.4f}  {best['trial']} of {best['stage']}", flush=True)
    mean = statistics.mean(accuracies)
    verdict = "ok" if mean >= arguments.limit else "TOO LOW"
    print(f"mean test accuracy {mean:.4f} over {len(accuracies)} seeds, limit {arguments.limit}: {verdict}")
    return int(mean < arguments.limit)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[231, 1, 2, 3, 4])
    parser.add_argument("--limit", type=float, default=0.965)
    parser.add_argument("--config", type=Path, help="another search file than the built-in one; its seed is replaced")
    return parser.parse_args()


def _search(folder: Path, text: str) -> tuple[float, dict[str, object], float]:
    """One search: its seconds, the first line of the ranking, its test accuracy."""
    (folder / "search.toml").write_text(text)
    began = time.perf_counter()
    _run(folder, "master", "launch", "--stage", "all")
    seconds = time.perf_counter() - began
    stage = list(json.loads(_run(folder, "master", "status", "--json"))["stages"])[-1]
    best = json.loads(_run(folder, "master", "rank", "--stage", stage, "--top", "1", "--format", "json"))[0]
    checkpoint = next((folder / "checkpoints").glob(f"*/{stage}/{best['checkpoint']}"))
    said = _run(folder, "worker", "test", str(checkpoint))
    correct, n = re.search(r"\((\d+) of (\d+)\)", said).groups()  # type: ignore[union-attr]
    return seconds, best, int(correct) / int(n)


def _run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CHECKPOINT_DIR")}
    done = subprocess.run([sys.executable, "-P", "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
