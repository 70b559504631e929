"""A million trials, a thousand workers, one Redis and one master: what a trial costs both, and whether that stays so.

    python benchmarks/soak.py [--trials 1000000] [--workers 1000] [--processes 20] [--think 3]

The workers are threads with a connection of their own. Each claims up to 16 trials, renews their leases and announces itself once a
second as a worker does, and says that they have ended, without training. The master is a process that queues the trials and watches
them with the code of `master launch`. Three seconds lie between a claim and its end on average, so that Redis has time to spare and the
latency is its own. With ``--think 0`` the machine is saturated: the rate is then the highest, and a claim mostly waits for its turn.

Compared are the first tenth of the run, after a warm-up of a twentieth, and the last but one tenth (at the very end the queue runs
dry). What an ended trial adds to Redis is compared between halves, since its hash tables grow by doubling. Saturated, Redis writes
20 MB a second to its append-only file, and the slowest claims are those that wait for the disk; ``TMPDIR=/dev/shm`` shows the rest.
The exit code is 1 where something else is not flat within 20 %.
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
from dispatch import connect, ended, server
from rich.console import Console

from common.broker import Broker
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import Search, parse_search
from common.trial import Claim, Progress, Result, WorkerInfo
from common.workers import WorkerRegistry
from master.prepare import Launched, publish
from master.progress import LiveProgress
from master.supervisor import Supervisor

FORK = multiprocessing.get_context("fork")
CLAIM = 16  # trials a worker takes at a time: a thousand workers then hold 16,000
SEARCH_ID = "50aa50aa50aa50aa"
SAMPLE_S = 0.2
ALLOWED = 0.2  # that the end may differ from the start
SLOWEST = "claim, 99th of 100 ms"  # told and not judged: the master's looks, and the disk
SEARCH = """
id = "50aa50aa50aa50aa"
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
    """What was seen at one moment."""

    at: float  # s of the machine's one monotonic clock
    n: int  # trials queued or ended so far
    redis: int  # bytes of its data, without buffers of connections and the append-only file
    redis_s: float  # s of processor time that it has used
    master: int  # bytes resident


def main() -> None:
    options = argparse.ArgumentParser(description="A million trials through one Redis and one master.")
    options.add_argument("--trials", type=int, default=1_000_000, help="how many (default 1000000)")
    options.add_argument("--workers", type=int, default=1000, help="simulated workers (default 1000)")
    options.add_argument("--processes", type=int, default=20, help="processes that the workers are threads of (default 20)")
    options.add_argument("--think", type=float, default=3.0, help="mean seconds between a claim and its end (default 3)")
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
    ours.recv()  # the master watches

    latencies: Any = FORK.Queue()
    shares = [workers // processes + (p < workers % processes) for p in range(processes)]
    crowd = [FORK.Process(target=work, args=(socket, share, p, think_s, latencies), daemon=True) for p, share in enumerate(shares)]
    began = time.monotonic()
    for process in crowd:
        process.start()
    ending = sampled(queue, watched, lambda: queue.counts()["coarse"]["completed"], n)
    waits = sorted(wait for _ in crowd for wait in latencies.get(timeout=60))
    for process in [master, *crowd]:
        process.join(60)
    assert master.exitcode == 0, f"the master ended with {master.exitcode}"
    took = ending[-1].at - began
    print(f"{n} trials claimed and ended by {workers} workers in {took:.0f} s: {n / took:.0f} a second, claims of {CLAIM}\n")
    report(queuing, ending, waits, n, bare)


def sampled(queue: TrialQueue, master: psutil.Process, count: Callable[[], int], n: int) -> list[Sample]:
    """Every ``SAMPLE_S``, until all are counted."""
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
    """Bytes of Redis's data, without the buffers of its connections and of its append-only file, and seconds of processor time."""
    stats = client.info("memory") | client.info("cpu")
    return int(stats["used_memory_dataset"]), stats["used_cpu_user"] + stats["used_cpu_sys"]


# --- those who take part ----------------------------------------------------------------------------------------------------


def launch(socket: str, folder: Path, n: int, told: Connection) -> None:
    """What `master launch` does from sampling on. Tells its size before, and when it begins to watch."""
    search: Search = parse_search(f"{SEARCH}trials = {n}\n")
    launched = Launched(search, SearchFolder(folder, search.name))
    client = connect(socket)
    queue = TrialQueue(client, SEARCH_ID)
    told.send(psutil.Process().memory_info().rss)
    published = publish(launched, search.stages[0], queue, None, print)
    with Path(os.devnull).open("w") as nowhere, LiveProgress(Console(file=nowhere)) as display:
        supervisor = Supervisor(Broker(client, f"unix://{socket}", "Redis"), launched, published, queue, display, None)
        told.send(None)
        supervisor.watch()


def work(socket: str, n_threads: int, process: int, think_s: float, latencies: Any) -> None:
    sys.setswitchinterval(0.001)  # a thread whose answer has come goes on soon: else the wait for the lock is measured
    found: list[list[tuple[float, float]]] = [[] for _ in range(n_threads)]
    threads = [threading.Thread(target=one_worker, args=(socket, f"node-{process}-{t}", think_s, found[t])) for t in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies.put([entry for entries in found for entry in entries])


def one_worker(socket: str, name: str, think_s: float, latencies: list[tuple[float, float]]) -> None:
    """Claims, renews and announces once a second, finishes; until nothing is left."""
    client = connect(socket)
    queue, registry = TrialQueue(client, SEARCH_ID), WorkerRegistry(client)
    draw = random.Random(name)
    spoke_at = 0.0
    time.sleep(think_s * draw.random())  # workers do not all come at once
    for claims, sent, answered in claimed(queue, name):
        latencies.append((answered, answered - sent))
        until = answered + think_s * draw.uniform(0.5, 1.5)
        while True:
            now = time.monotonic()
            if now - spoke_at > 1:
                spoke_at = now
                registry.announce(WorkerInfo(name, "node", 1, "cpu", state="training", trials=len(claims)))
                queue.renew(name, [progress(claim) for claim in claims])
            if now >= until:
                break
            time.sleep(min(until - now, 1.0))
        queue.finish([(claim.fence, result(claim)) for claim in claims])


def claimed(queue: TrialQueue, name: str) -> Iterator[tuple[list[Claim], float, float]]:
    """Claims with the moments they were asked for and answered, until nothing is left."""
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


# --- what is told -----------------------------------------------------------------------------------------------------------


def report(queuing: list[Sample], ending: list[Sample], waits: list[tuple[float, float]], n: int, bare: int) -> None:
    tenths = spent(ending, waits, n, 0.05, 0.15), spent(ending, waits, n, 0.8, 0.9)
    halves = added(queuing, n, 0.05, 0.5), added(queuing, n, 0.5, 0.95)
    later = added(ending, n, 0.05, 0.5), added(ending, n, 0.5, 0.95)
    held = [(within(ending, n, low, high)[0].master - bare) / n for low, high in ((0.05, 0.15), (0.8, 0.9))]
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
    bent = [name for name, (first, last) in rows.items() if abs(last / first - 1) > ALLOWED and name != SLOWEST]
    if bent:
        sys.exit(f"not within {ALLOWED:.0%} of what it was at first: {', '.join(bent)}")


def within(samples: list[Sample], n: int, low: float, high: float) -> list[Sample]:
    """The samples between two shares of the trials."""
    inside = [sample for sample in samples if low * n <= sample.n <= high * n]
    if len(inside) < 2:
        sys.exit(f"--trials {n}: over too soon to be measured; take more")
    return inside


def added(samples: list[Sample], n: int, low: float, high: float) -> float:
    """Bytes of data that a trial adds to Redis between two shares of the trials."""
    inside = within(samples, n, low, high)
    return (inside[-1].redis - inside[0].redis) / (inside[-1].n - inside[0].n)


def spent(samples: list[Sample], waits: list[tuple[float, float]], n: int, low: float, high: float) -> dict[str, float]:
    """Rate and latency between two shares of the trials."""
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
