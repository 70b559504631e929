"""A million trials, a thousand workers, one Redis and one master: what a trial costs both, and whether that stays so.

    python benchmarks/soak.py [--trials 1000000] [--workers 1000] [--processes 4]

The workers are threads with a connection of their own. Each claims up to 16 trials, renews their leases and announces itself once a
second as a worker does, and says that they have ended, without training. The master is a process that watches with the same
supervisor as `master launch`. Compared are the first tenth of the run, after a warm-up of a twentieth, and the last but one tenth
(at the very end the queue runs dry): rate, latency of a claim, and the bytes of a trial in Redis and in the master.
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from dispatch import connect, ended, made, server, used
from rich.console import Console

from common.broker import Broker
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import Search, Stage, parse_search
from common.trial import Claim, Progress, WorkerInfo
from common.witness import Reconciled
from common.workers import WorkerRegistry
from master.prepare import Launched, Published
from master.progress import LiveProgress
from master.supervisor import Supervisor

FORK = multiprocessing.get_context("fork")
CLAIM = 16  # trials a worker takes at a time: a thousand workers then hold 16,000
SEARCH_ID = "50aa50aa50aa50aa"
SAMPLE_S = 0.5
Sample = tuple[float, int, int, int]  # time in s, trials ended, bytes in Redis, bytes of the master
SEARCH = f"""
id = "{SEARCH_ID}"
name = "soak"
task = "digits"
[space]
learning_rate = {{ log_uniform = [1e-6, 1e1] }}
weight_decay = {{ log_uniform = [1e-7, 1e0] }}
hidden = {{ choice = [32, 64, 128] }}
[stages.coarse]
trials = 1000000
epochs = 1
"""


def main() -> None:
    options = argparse.ArgumentParser(description="A million trials through one Redis and one master.")
    options.add_argument("--trials", type=int, default=1_000_000)
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--processes", type=int, default=4)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, server(Path(folder)) as socket:
        soak(socket, Path(folder), chosen.trials, chosen.workers, chosen.processes)


def soak(socket: str, folder: Path, n: int, workers: int, processes: int) -> None:
    queue = TrialQueue(connect(socket), SEARCH_ID)
    empty = used(queue)
    halves = [empty]
    for first in range(0, n, n // 2):
        queue.publish(made(min(n // 2, n - first), first))
        halves.append(used(queue))
    waiting = [(after - before) / (n // 2) for before, after in pairwise(halves)]
    print(f"bytes of a waiting trial in Redis: {waiting[0]:.0f} of the first half, {waiting[1]:.0f} of the second")
    latencies: Any = FORK.Queue()
    master = FORK.Process(target=watch, args=(socket, folder, n), daemon=True)
    master.start()
    crowd = [FORK.Process(target=work, args=(socket, workers // processes, p, latencies), daemon=True) for p in range(processes)]
    for process in crowd:
        process.start()
    samples = sampled(queue, n, psutil.Process(master.pid))
    found = sorted(wait for _ in crowd for wait in latencies.get(timeout=60))
    for process in [master, *crowd]:
        process.join(60)
    report(samples, found, n, empty)


def sampled(queue: TrialQueue, n: int, master: psutil.Process) -> list[Sample]:
    """Twice a second, until all have ended."""
    samples: list[Sample] = []
    while not samples or samples[-1][1] < n:
        time.sleep(SAMPLE_S)
        done = queue.counts()["coarse"]["completed"]
        resident = master.memory_info().rss if master.is_running() and master.status() != psutil.STATUS_ZOMBIE else samples[-1][3]
        samples.append((time.monotonic(), done, used(queue), resident))
    return samples


def work(socket: str, n_threads: int, process: int, latencies: Any) -> None:
    sys.setswitchinterval(0.001)  # a thread whose answer has come goes on soon: else the wait for the lock is measured
    found: list[list[tuple[float, float]]] = [[] for _ in range(n_threads)]
    threads = [threading.Thread(target=one_worker, args=(socket, f"node-{process}-{t}", found[t])) for t in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies.put([entry for entries in found for entry in entries])


def one_worker(socket: str, name: str, latencies: list[tuple[float, float]]) -> None:
    """Claims, renews and announces once a second, finishes; until nothing is left."""
    client = connect(socket)
    queue, registry = TrialQueue(client, SEARCH_ID), WorkerRegistry(client)
    spoke_at = 0.0
    while True:
        before = time.monotonic()
        claims = queue.claim(name, CLAIM, secrets.token_hex(4))
        now = time.monotonic()
        if not claims:
            return
        latencies.append((now, now - before))
        if now - spoke_at > 1:
            spoke_at = now
            registry.announce(WorkerInfo(name, "node", 1, "cpu", state="training", trials=len(claims)))
            queue.renew(name, [progress(claim) for claim in claims])
        queue.finish([(claim.fence, ended(claim)) for claim in claims])


def progress(claim: Claim) -> Progress:
    return Progress(claim.fence, 1, epoch=0.5, device_model="CPU", array_width=CLAIM, val_acc=0.5)


def watch(socket: str, folder: Path, n: int) -> None:
    """What `master launch` does while a stage runs."""
    search: Search = parse_search(SEARCH)
    launched = Launched(search, SearchFolder(folder, search.name))
    stage = Stage(name="coarse", trials=n, epochs=1)
    launched.folder.stage("coarse").make()
    client = connect(socket)
    queue = TrialQueue(client, SEARCH_ID)
    published = Published(stage, search.space, (), n, Reconciled())
    with Path("/dev/null").open("w") as nowhere, LiveProgress(Console(file=nowhere)) as display:
        Supervisor(Broker(client, f"unix://{socket}", "Redis"), launched, published, queue, display, None).watch()


def report(samples: list[Sample], latencies: list[tuple[float, float]], n: int, empty: int) -> None:
    began, over = samples[0][0] - SAMPLE_S, samples[-1][0]
    print(f"{n} trials in {over - began:.0f} s: {n / (over - began):.0f} a second, claims of {CLAIM}\n")
    first, last = spent(samples, latencies, n, 0.05, 0.15), spent(samples, latencies, n, 0.8, 0.9)
    print(f"{'':46}{'first tenth':>12}{'last tenth':>12}{'ratio':>8}")
    for name in first:
        ratio = last[name] / first[name] if first[name] else float("nan")
        print(f"{name:46}{first[name]:12.5g}{last[name]:12.5g}{ratio:8.2f}")
    print(f"\nRedis at the end: {(samples[-1][2] - empty) / n:.0f} B a trial; master at the end: {samples[-1][3] / 2**20:.0f} MiB resident")


def spent(samples: list[Sample], latencies: list[tuple[float, float]], n: int, low: float, high: float) -> dict[str, float]:
    """What happened between two shares of the trials."""
    inside = [sample for sample in samples if low * n <= sample[1] <= high * n]
    if len(inside) < 2:
        sys.exit(f"--trials {n}: over too soon to be measured; take more")
    (start, done, bytes_before, master_before), (end, done_after, bytes_after, master_after) = inside[0], inside[-1]
    n_ended = done_after - done
    waits = [wait for at, wait in latencies if start <= at <= end]
    return {
        "trials a second": n_ended / (end - start),
        "claim, median ms": statistics.median(waits) * 1e3,
        "claim, 99th of 100 ms": statistics.quantiles(waits, n=100)[98] * 1e3,
        "Redis: bytes that a trial adds when it ends": (bytes_after - bytes_before) / n_ended,
        "master: bytes that a trial adds when it ends": (master_after - master_before) / n_ended,
    }


if __name__ == "__main__":
    main()
