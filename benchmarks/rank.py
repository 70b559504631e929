"""How long `master rank` takes over 10,000 records, with the start of Python and pandas.

    python benchmarks/rank.py [--records 10000] [--limit 2.0]

Prints medians of three runs. The exit code is 1 if the median of the slowest format is above the
limit.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.search_file import default_text, parse_search
from common.search.trial import Result, TrialState
from master.stages.sampling import configurations
from master.stages.source import first_source, write_source

ID = "0123456789abcdef"
CURVES = ("epoch", "train_loss", "val_loss", "val_acc", "update_ratio")
FORMS = ("json", "table", "csv", "markdown")
REPEATS = 3


def made_search(root: Path, n_records: int) -> None:
    """Write a coarse stage whose trials have ended, one record per trial.

    The files are not synced, because they are only read.
    """
    search = parse_search(default_text())
    folder, stage = SearchFolder(root, search.name), search.stages[0]
    folder.stage(stage.name).make()
    folder.search_file.write_text(f'id = "{ID}"\nprotocol = 2\n{default_text()}')
    write_source(folder.stage(stage.name), ID, first_source(search))
    for trial in configurations(search, stage, first_source(search), range(n_records)):
        accuracy = trial.seed % 1000 / 1000
        state = TrialState.EXPLODED if trial.index % 4 == 0 else TrialState.COMPLETED
        result = Result(
            state,
            "loss 7.1 above 3 x 2.3",
            accuracy,
            1 - accuracy,
            1.0,
            worker="host-4242-abcdef",
            device_model="cpu",
        )
        record = Record.of(
            ID, trial, 1, result, curves={name: [0.123456789] * 20 for name in CURVES}
        )
        folder.stage(stage.name).record_path(trial.id, 1).write_text(
            record.model_dump_json(exclude_none=True)
        )


def seconds(root: Path, form: str) -> tuple[float, float]:
    """Return the wall-clock and the processor seconds of one command.

    The difference shows how much a busy machine adds to the first.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "master",
        "--checkpoints",
        str(root),
        "rank",
        "--search",
        "digits",
        "--format",
        form,
    ]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        time.perf_counter() - start,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        made_search(Path(root), options.records)
        times = {form: [seconds(Path(root), form) for _ in range(REPEATS)] for form in FORMS}
    medians = {
        form: [statistics.median(values) for values in zip(*pairs, strict=True)]
        for form, pairs in times.items()
    }
    for form, (clock, processor) in medians.items():
        print(
            f"master rank --format {form:8s} over {options.records:,} records: {clock:.2f} s, "
            f"{processor:.2f} s of the processor"
        )
    slowest = max(clock for clock, _ in medians.values())
    print(
        f"slowest {slowest:.2f} s, limit {options.limit:.2f} s: "
        f"{'ok' if slowest <= options.limit else 'TOO SLOW'}"
    )
    return 0 if slowest <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
