"""How long `master report` takes for 10,000 trials, how large the page is, how soon it is shown.

    python benchmarks/report.py [--trials 10000] [--seconds 10] [--megabytes 15] [--opens 3]

The exit code is 1 if a limit is exceeded. If playwright and a Chromium are installed, the page is
opened in Chromium and scrolled through, so that every figure is drawn.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common.folder.record import Diagnosis, Record
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from common.search.trial import Result, TrialState
from master.stages.sampling import configurations
from master.stages.source import first_source, write_source

ID = "0123456789abcdef"
TEXT = """
name = "large"
task = "digits"
sampler = "random"
[space]
learning_rate = { log_uniform = [1e-6, 1e1] }
weight_decay = { log_uniform = [1e-7, 1e0] }
dropout = { uniform = [0.0, 0.8] }
momentum = { uniform = [0.5, 0.99] }
hidden = { choice = [64, 128, 256] }
depth = { int_uniform = [1, 4] }
[stages.coarse]
trials = 10_000
epochs = 10
[stages.fine]
trials = 100
epochs = 50
"""
EPOCHS = 10
WORKERS = 8
BINS = 32
KEPT = 50  # trials with histograms
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def made_search(root: Path, n_trials: int) -> None:
    """Write a stage whose trials have ended.

    Accuracy peaks at a learning rate of 0.01. Above 0.3 trials explode.
    """
    search = parse_search(f'id = "{ID}"\nprotocol = 2\n{TEXT}')
    folder, stage = SearchFolder(root, search.name), search.stages[0]
    folder.stage(stage.name).make()
    folder.search_file.write_text(f'id = "{ID}"\nprotocol = 2\n{TEXT}')
    write_source(folder.stage(stage.name), ID, first_source(search))
    noise = np.random.default_rng(0)
    for trial in configurations(search, stage, first_source(search), range(n_trials)):
        record = made_record(trial, noise)
        folder.stage(stage.name).record_path(trial.id, 1).write_text(
            record.model_dump_json(exclude_none=True)
        )


def made_record(trial, noise: np.random.Generator) -> Record:
    rate = float(trial.hyperparameters["learning_rate"])
    accuracy = float(
        np.clip(
            0.95 - 0.12 * abs(np.log10(rate / 0.01)) + 0.02 * noise.standard_normal(), 0.05, 0.99
        )
    )
    exploded, killed = rate > 0.3, trial.index % 97 == 0
    state = (
        TrialState.KILLED if killed else TrialState.EXPLODED if exploded else TrialState.COMPLETED
    )
    worker = f"host-{trial.index % WORKERS}-abcdef"
    ended = 1.7e9 + 2.0 * (trial.index // WORKERS) + noise.uniform(0, 2)
    seconds = float(noise.uniform(1, 20))
    value = None if state is not TrialState.COMPLETED else accuracy
    result = Result(
        state,
        "loss 7.1 above 3 x 2.3" if exploded else None,
        value,
        value and 1 - value,
        EPOCHS,
        None,
        worker,
        seconds,
    )
    epochs = np.arange(1.0, EPOCHS + 1)
    curves = {
        name: (accuracy * (1 - np.exp(-epochs))).tolist() for name in ("train_acc", "val_acc")
    }
    curves |= {
        name: (2.3 * np.exp(-accuracy * epochs) + 0.1).tolist()
        for name in ("train_loss", "val_loss")
    }
    curves |= {"epoch": epochs.tolist()} | {
        f"update_ratio.{layer}": (1e-3 / epochs).tolist() for layer in (0, 3, 6)
    }
    histogram = {
        "low": -1.0,
        "high": 1.0,
        "counts": noise.integers(0, 999, BINS).tolist(),
        "mean": 0.0,
        "std": 0.3,
        "zeros": 0.5,
    }
    portrait = (
        {"activations": {"1": {"kind": "relu", **histogram}}, "gradients": {"0": histogram}}
        if trial.index < KEPT
        else None
    )
    diagnosis = Diagnosis(word="exploded" if exploded else "good", sentence="As it says.")
    return Record.of(
        ID,
        trial,
        1,
        result,
        curves=curves,
        portrait=portrait,
        diagnosis=diagnosis,
        ended_at=float(ended),
    )


def write(root: Path) -> tuple[float, float]:
    """Return the wall-clock and the processor seconds of `master report`, with Python's start."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "master",
        "--checkpoints",
        str(root),
        "report",
        "--search",
        "large",
    ]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        time.perf_counter() - start,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def opened(path: Path) -> tuple[float, float, float] | None:
    """Measure how long Chromium takes to open the page.

    Returns:
        Seconds until it has opened the page, drawn the first figure, and drawn all figures. None if
        there is no browser.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None:
        return None
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        ).new_page(viewport={"width": 1280, "height": 900})
        told: list[str] = []
        window.on("console", lambda message: told.append(message.text))
        window.on("pageerror", lambda error: told.append(str(error)))
        start = time.perf_counter()
        window.goto(path.as_uri())
        loaded = time.perf_counter() - start
        window.locator(".plot").first.scroll_into_view_if_needed()
        window.locator(".main-svg").first.wait_for()
        first = time.perf_counter() - start
        for place in window.locator(".plot").all():
            place.scroll_into_view_if_needed()
            place.locator(".main-svg").first.wait_for()
        everything = time.perf_counter() - start
    if told:
        raise SystemExit(f"the page complained: {told}")
    return loaded, first, everything


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--megabytes", type=float, default=15.0)
    parser.add_argument("--opens", type=float, default=3.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        made_search(Path(root), options.trials)
        clock, processor = write(Path(root))
        path = Path(root, "large", "coarse", "report.html")
        megabytes, shown = path.stat().st_size / 1e6, opened(path)
    print(
        f"report of {options.trials:,} trials: {clock:.1f} s, {processor:.1f} s of the processor, "
        f"{megabytes:.1f} MB"
    )
    print(
        "in Chromium: open after {:.2f} s, first figure {:.2f} s, all {:.2f} s".format(*shown)
        if shown
        else "no Chromium to open it with"
    )
    ok = (
        clock <= options.seconds
        and megabytes <= options.megabytes
        and (shown is None or shown[0] <= options.opens)
    )
    print(
        f"limits {options.seconds:g} s, {options.megabytes:g} MB, {options.opens:g} s: "
        f"{'ok' if ok else 'TOO MUCH'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
