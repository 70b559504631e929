"""What the workers of a search did with their time, from the records in its folder.

    python benchmarks/idle.py FOLDER [FOLDER ...]
    python benchmarks/idle.py [--workers 2 4] [--config FILE]

With folders of searches (`checkpoints/digits`) it reads these. Without, it runs `master launch
--stage all` with each number of workers and reads the folder that this leaves.
`master/results/usage.py` explains the columns of the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

from common.folder.record import Record
from master.results.usage import Times, Usage, use_of_time

SHARE_NEEDED = 0.8  # of the window, for searches of a minute and more


def table(usage: Usage) -> str:
    """Return the table in Markdown: one row per worker and one for all, in seconds and shares."""
    names = [f.name for f in fields(Times)]
    lines = [
        "| worker | " + " | ".join(names) + " | sum |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for worker, times in [*usage.workers.items(), ("all", usage.all)]:
        cells = [
            f"{getattr(times, name):.2f} s ({getattr(times, name) / (times.total or 1):.0%})"
            for name in names
        ]
        lines.append(f"| {worker} | " + " | ".join(cells) + f" | {times.total:.2f} s |")
    return "\n".join(lines)


def show(folder: Path) -> None:
    """Print what the workers of the search in ``folder`` did.

    Raises:
        SystemExit: no record in it has trained.
    """
    # Every attempt, also those that were followed by a promotion or another attempt.
    paths = folder.glob("*/trials/*.json")
    records = [Record.model_validate_json(path.read_bytes()) for path in paths]
    try:
        usage = use_of_time(records)
    except ValueError as error:
        sys.exit(
            f"{folder}: {error}; name the folder of a search that has run, such as "
            "checkpoints/digits"
        )
    print(table(usage))
    window = f"the {usage.seconds:.1f} s from the first claim to the last record"
    told = f"{usage.trained_share:.0%} of the workers' time in {window} trained"
    print(f"\n{told} ({SHARE_NEEDED:.0%} are needed of a minute and more).")
    for before, path in [("before it", folder / "search.toml"), ("after it", folder / "logs")]:
        print(f"{before}: {_beside(usage, path)}")


def _beside(usage: Usage, path: Path) -> str:
    """Return the seconds outside of the window, from the time when a file was last written."""
    if path.name == "logs":
        ends = [log.stat().st_mtime for log in path.glob("worker*.log")]
        return (
            f"{max(ends) - usage.ended:.2f} s until the last line in a worker's log"
            if ends
            else "no log tells"
        )
    if not path.exists():
        return "no file tells"
    return f"{usage.began - path.stat().st_mtime:.2f} s since the launch wrote {path.name}"


def run(workers: int, config: Path | None) -> None:
    """Run a search with this many workers in a temporary folder and show what they did."""
    with tempfile.TemporaryDirectory(prefix="idle-", ignore_cleanup_errors=True) as place:
        command = [
            "master",
            "--checkpoints",
            place,
            "launch",
            "--stage",
            "all",
            "--workers",
            str(workers),
        ]
        command += ["--config", str(config.resolve())] if config else []
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("REDIS_URL", "CHECKPOINT_DIR")
        }
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-m", *command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        print(
            f"\n## {workers} workers on {os.cpu_count()} cores, {time.perf_counter() - began:.1f} "
            "s from command to prompt\n"
        )
        for folder in sorted({path.parent.parent for path in Path(place).glob("*/*/trials")}):
            show(folder)


def main() -> None:
    """Read the folders that the command line names, or run searches first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="FOLDER", help="folders of searches"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[2, 4],
        help="without folders: run with so many (default 2 4)",
    )
    parser.add_argument(
        "--config", type=Path, help="without folders: the search file (default: the built-in one)"
    )
    options = parser.parse_args()
    for folder in options.folders:
        print(f"\n## {folder}\n")
        show(folder)
    if not options.folders:
        for workers in options.workers:
            run(workers, options.config)


if __name__ == "__main__":
    main()
