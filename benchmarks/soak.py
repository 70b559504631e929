"""The cost of a trial to Redis and the master, over a million trials and a thousand workers.

    python benchmarks/soak.py [--trials 1000000] [--workers 1000] [--processes 20] [--think 3]

The workers are threads, each with its own connection. Each claims up to 16 trials, renews their
leases and announces itself once a second like a real worker, and reports that they have ended,
without training. The master is a process that queues the trials and watches them with the code of
`master launch`. On average three seconds pass between a claim and its end, so that Redis has spare
time and the measured latency is its own. With ``--think 0`` the machine is saturated: the rate is
then the highest, and a claim mostly waits for its turn.

The first tenth of the run, after a warm-up of a twentieth, is compared with the last but one tenth
(at the very end the queue runs dry). The memory that an ended trial adds to Redis is compared
between halves, because Redis's hash tables grow by doubling. When saturated, Redis writes 20 MB a
second to its append-only file, and the slowest claims are those that wait for the disk;
``TMPDIR=/dev/shm`` excludes the disk. The exit code is 1 if anything else is not constant within
20 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.dispatch import connect, ended, server
from common.broker.connection import Broker
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.search_file import Search, parse_search
from common.search.trial import Claim, Progress, Result, WorkerInfo
from master.run.progress import LiveProgress
from master.run.supervisor import Supervisor
from master.stages.prepare import Launched
from master.stages.publishing import publish

FORK = multiprocessing.get_context("fork")
CLAIM = 16  # trials per claim: a thousand workers then hold 16,000
SEARCH_ID = "50aa50aa50aa50aa"
SAMPLE_S = 0.2
ALLOWED = 0.2  # relative difference allowed between the start and the end
# Printed but not judged: it depends on the master's polling and the disk.
SLOWEST = "claim, 99th of 100 ms"
SEARCH = """
id = "50aa50aa50aa50aa"
protocol = 2
name = "soak"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-6, 1e1] }
weight_decay = { log_uniform = [1e-7, 1e0] }
hidden = { choice = [32, 64, 128] }
[stages.coarse]
epochs = 1
"""


class Sample(NamedTuple):
    """What was measured at one moment."""

    at: float  # seconds of the machine's monotonic clock, which all processes share
    n: int  # trials queued or ended so far
    # Bytes of Redis's data, without the buffers of connections and the append-only file.
    redis: int
    redis_s: float  # seconds of processor time that Redis has used
    master: int  # resident bytes of the master


def main() -> None:
    options = argparse.ArgumentParser(
        description="A million trials through one Redis and one master."
    )
    options.add_argument("--trials", type=int, default=1_000_000, help="how many (default 1000000)")
    options.add_argument(
        "--workers", type=int, default=1000, help="simulated workers (default 1000)"
    )
    options.add_argument(
        "--processes",
        type=int,
        default=20,
        help="processes that the workers are threads of (default 20)",
    )
    options.add_argument(
        "--think",
        type=float,
        default=3.0,
        help="mean seconds between a claim and its end (default 3)",
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, server(Path(folder)) as socket:
        soak(socket, Path(folder), chosen.trials, chosen.workers, chosen.processes, chosen.think)


def soak(socket: str, folder: Path, n: int, workers: int, processes: int, think_s: float) -> None:
    queue = TrialQueue(connect(socket), SEARCH_ID)
    ours, theirs = FORK.Pipe()
    master = FORK.Process(target=launch, args=(socket, folder, n, theirs), daemon=True)
    began = time.monotonic()
    master.start()
    theirs.close()
    watched = psutil.Process(master.pid)
    bare = ours.recv()
    queuing = sampled(queue, watched, lambda: queue.pending_total(), n)
    print(f"{n} trials sampled and queued in {queuing[-1].at - began:.0f} s")
    ours.recv()  # the master watches now

    latencies: Any = FORK.Queue()
    shares = [workers // processes + (p < workers % processes) for p in range(processes)]
    crowd = [
        FORK.Process(target=work, args=(socket, share, p, think_s, latencies), daemon=True)
        for p, share in enumerate(shares)
    ]
    began = time.monotonic()
    for process in crowd:
        process.start()
    ending = sampled(queue, watched, lambda: queue.counts()["coarse"]["completed"], n)
    waits = sorted(wait for _ in crowd for wait in latencies.get(timeout=60))
    for process in [master, *crowd]:
        process.join(60)
    assert master.exitcode == 0, f"the master ended with {master.exitcode}"
    took = ending[-1].at - began
    print(
        f"{n} trials claimed and ended by {workers} workers in {took:.0f} s: {n / took:.0f} a "
        f"second, claims of {CLAIM}\n"
    )
    report(queuing, ending, waits, n, bare)


def sampled(
    queue: TrialQueue, master: psutil.Process, count: Callable[[], int], n: int
) -> list[Sample]:
    """Sample every ``SAMPLE_S`` seconds until ``n`` trials are counted."""
    samples: list[Sample] = []
    while not samples or samples[-1].n < n:
        time.sleep(SAMPLE_S)
        done = count()
        alive = master.is_running() and master.status() != psutil.STATUS_ZOMBIE
        if not alive and done < n:
            sys.exit("the master is gone")
        resident = master.memory_info().rss if alive else samples[-1].master
        samples.append(Sample(time.monotonic(), done, *redis_spent(queue.client), resident))
    return samples


def redis_spent(client: redis.Redis) -> tuple[int, float]:
    """Return the bytes of Redis's data and its seconds of processor time.

    The data excludes the buffers of connections and of the append-only file.
    """
    stats = client.info("memory") | client.info("cpu")
    return int(stats["used_memory_dataset"]), stats["used_cpu_user"] + stats["used_cpu_sys"]


# --- master and workers ---------------------------------------------------------------------


def launch(socket: str, folder: Path, n: int, told: Connection) -> None:
    """Do what `master launch` does, from sampling on.

    Sends its resident bytes before sampling, and None when it begins to watch.
    """
    search: Search = parse_search(f"{SEARCH}trials = {n}\n")
    launched = Launched(search, SearchFolder(folder, search.name))
    client = connect(socket)
    queue = TrialQueue(client, SEARCH_ID)
    told.send(psutil.Process().memory_info().rss)
    published = publish(launched, search.stages[0], queue, None, print)
    with Path(os.devnull).open("w") as nowhere, LiveProgress(Console(file=nowhere)) as display:
        supervisor = Supervisor(
            Broker(client, f"unix://{socket}", "Redis"), launched, published, queue, display, None
        )
        told.send(None)
        supervisor.watch()


def work(socket: str, n_threads: int, process: int, think_s: float, latencies: Any) -> None:
    # A thread whose answer has arrived must go on soon. Otherwise the wait for Python's lock is
    # measured.
    sys.setswitchinterval(0.001)
    found: list[list[tuple[float, float]]] = [[] for _ in range(n_threads)]
    threads = [
        threading.Thread(target=one_worker, args=(socket, f"node-{process}-{t}", think_s, found[t]))
        for t in range(n_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies.put([entry for entries in found for entry in entries])


def one_worker(
    socket: str, name: str, think_s: float, latencies: list[tuple[float, float]]
) -> None:
    """Claim trials, renew and announce once a second, and finish them, until none are left."""
    client = connect(socket)
    queue, registry = TrialQueue(client, SEARCH_ID), WorkerRegistry(client)
    draw = random.Random(name)
    spoke_at = 0.0
    time.sleep(think_s * draw.random())  # workers do not all start at once
    for claims, sent, answered in claimed(queue, name):
        latencies.append((answered, answered - sent))
        until = answered + think_s * draw.uniform(0.5, 1.5)
        while True:
            now = time.monotonic()
            if now - spoke_at > 1:
                spoke_at = now
                registry.announce(
                    WorkerInfo(name, "node", 1, "cpu", state="training", trials=len(claims))
                )
                queue.renew(name, [progress(claim) for claim in claims])
            if now >= until:
                break
            time.sleep(min(until - now, 1.0))
        queue.finish([(claim.fence, result(claim)) for claim in claims])


def claimed(queue: TrialQueue, name: str) -> Iterator[tuple[list[Claim], float, float]]:
    """Yield claims with the times of the request and of the answer, until none are left."""
    while True:
        before = time.monotonic()
        claims = queue.claim(name, CLAIM, secrets.token_hex(4))
        if not claims:
            return
        yield claims, before, time.monotonic()


def progress(claim: Claim) -> Progress:
    return Progress(claim.fence, 1, epoch=0.5, device_model="CPU", array_width=CLAIM, val_acc=0.5)


def result(claim: Claim) -> Result:
    return replace(ended(claim), epoch_s=1.0625, array_width=CLAIM)


# --- results -------------------------------------------------------------------------------


def report(
    queuing: list[Sample], ending: list[Sample], waits: list[tuple[float, float]], n: int, bare: int
) -> None:
    tenths = spent(ending, waits, n, 0.05, 0.15), spent(ending, waits, n, 0.8, 0.9)
    halves = added(queuing, n, 0.05, 0.5), added(queuing, n, 0.5, 0.95)
    later = added(ending, n, 0.05, 0.5), added(ending, n, 0.5, 0.95)
    held = [
        (within(ending, n, low, high)[0].master - bare) / n
        for low, high in ((0.05, 0.15), (0.8, 0.9))
    ]
    rows = {name: (tenths[0][name], tenths[1][name]) for name in tenths[0]}
    rows |= {
        "Redis: bytes of a waiting trial": halves,
        "Redis: bytes that its end adds": later,
        "master: bytes of a trial": (held[0], held[1]),
    }
    print(f"{'':36}{'at first':>12}{'at last':>12}{'ratio':>8}")
    for name, (first, last) in rows.items():
        print(f"{name:36}{first:12.5g}{last:12.5g}{last / first:8.2f}")
    data, most = ending[-1].redis - queuing[0].redis, max(sample.master for sample in ending)
    print(f"\nat the end: Redis {data / 2**20:.0f} MiB of data, master {most / 2**20:.0f} MiB")
    bent = [
        name
        for name, (first, last) in rows.items()
        if abs(last / first - 1) > ALLOWED and name != SLOWEST
    ]
    if bent:
        sys.exit(f"not within {ALLOWED:.0%} of what it was at first: {', '.join(bent)}")


def within(samples: list[Sample], n: int, low: float, high: float) -> list[Sample]:
    """Return the samples between two shares of the trials."""
    inside = [sample for sample in samples if low * n <= sample.n <= high * n]
    if len(inside) < 2:
        sys.exit(f"--trials {n}: over too soon to be measured; take more")
    return inside


def added(samples: list[Sample], n: int, low: float, high: float) -> float:
    """Return the bytes that a trial adds to Redis, between two shares of the trials."""
    inside = within(samples, n, low, high)
    return (inside[-1].redis - inside[0].redis) / (inside[-1].n - inside[0].n)


def spent(
    samples: list[Sample], waits: list[tuple[float, float]], n: int, low: float, high: float
) -> dict[str, float]:
    """Return rate and latency between two shares of the trials."""
    inside = within(samples, n, low, high)
    start, end = inside[0], inside[-1]
    found = [wait for at, wait in waits if start.at <= at <= end.at]
    return {
        "trials a second": (end.n - start.n) / (end.at - start.at),
        "Redis: processor us of a trial": (end.redis_s - start.redis_s) / (end.n - start.n) * 1e6,
        "claim, median ms": statistics.median(found) * 1e3,
        SLOWEST: statistics.quantiles(found, n=100)[98] * 1e3,
    }


if __name__ == "__main__":
    main()
