"""How fast trials that do nothing pass through the queue, beside Optuna and RQ on the same Redis.

    python benchmarks/dispatch.py [--trials 20000] [--rounds 3]

Two worker processes use one Redis server, which the benchmark starts (append-only file, synced
every second, on a unix socket). Each round measures everything once, one after the other. The
figures are medians of the rounds. Needs the extra "bench".
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import secrets
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import redis
import rq
from optuna.storages.journal import JournalRedisBackend
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.broker.server_program import choose, find_programs
from common.folder.record import Record
from common.folder.records import StageFolder
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Result, Trial, TrialState, trial_id, trial_seed
from common.search.values import Hyperparameters

WORKERS = 2
CLAIM = 64  # default number of trials per claim: the width of an array of small models on a CPU
HIDDEN = (32, 64, 128)
FORK = multiprocessing.get_context("fork")
NEEDED = {"default claims / Optuna": 30.0, "claims of one / Optuna": 5.0}
QUEUED = (1_000, 100_000)
# Claims timed at a time when the two depths take turns. The shallow queue then still has half of
# its trials.
CALLS = 8
TURNS = 30  # pairs of such measurements, whose median counts


@dataclass(frozen=True)
class Spent:
    """What a worker process did and how long it took.

    Times are in seconds of the machine's monotonic clock, which all processes share.
    """

    start: float
    end: float
    trials: int
    claiming_s: float = 0.0
    finishing_s: float = 0.0
    recording_s: float = 0.0


def main() -> None:
    options = argparse.ArgumentParser(description="Dispatch rates beside Optuna and RQ.")
    options.add_argument(
        "--trials", type=int, default=20_000, help="trials with default claims (default 20000)"
    )
    options.add_argument(
        "--rounds", type=int, default=3, help="rounds whose median counts (default 3)"
    )
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("rq.worker").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dispatch-") as folder, server(Path(folder)) as socket:
        measure(socket, Path(folder), chosen.trials, chosen.rounds)


def measure(socket: str, folder: Path, n: int, rounds: int) -> None:
    few = max(n // 10, 200)
    jobs: dict[str, Callable[[], float]] = {
        f"default claims ({CLAIM})": lambda: ours(socket, n, CLAIM, None),
        "claims of one": lambda: ours(socket, max(n // 4, 200), 1, None),
        f"default claims ({CLAIM}), records on disk": lambda: ours(socket, n // 2, CLAIM, folder),
        "claims of one, records on disk": lambda: ours(socket, few // 2, 1, folder),
        f"Optuna, JournalStorage on this Redis ({few // 4} trials)": lambda: optunas(
            socket, few // 4
        ),
        f"RQ, burst SimpleWorkers ({few // 2} jobs)": lambda: rqs(socket, few // 2),
    }
    print(
        f"{os.cpu_count()} cores, {WORKERS} worker processes, {n} trials, median of {rounds} "
        "rounds; first claim to last end\n"
    )
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            rates[name].append(job())
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:58} {middle[name]:9.0f} /s   ({min(values):.0f} to {max(values):.0f})")
    default, ones, _, _, theirs, rq_rate = middle.values()
    print(
        f"\n{'steps, one worker at a time waiting for Redis':58} {'published':>10} {'claimed':>9} "
        f"{'finished':>9} /s"
    )
    for size in (CLAIM, 1):
        steps(socket, min(n, 10_000) if size > 1 else few, size)
    print()
    for name, ratio in {
        "default claims / Optuna": default / theirs,
        "claims of one / Optuna": ones / theirs,
    }.items():
        print(f"{name:58} {ratio:9.1f} x   (needed: {NEEDED[name]:.0f})")
    print(f"{'default claims / RQ':58} {default / rq_rate:9.1f} x")
    print(f"{'claims of one / RQ':58} {ones / rq_rate:9.1f} x\n")
    memory(socket, n)
    for size in (CLAIM, 1):
        depth(socket, size)


# --- this program --------------------------------------------------------------------------


def made(n: int, first: int = 0) -> Iterator[Trial]:
    """Yield trials with three hyperparameters, one of them a choice."""
    for index in range(first, first + n):
        draw = random.Random(index)
        values: Hyperparameters = {
            "learning_rate": 10 ** draw.uniform(-6, 1),
            "weight_decay": 10 ** draw.uniform(-7, 0),
            "hidden": draw.choice(HIDDEN),
        }
        yield Trial(
            trial_id("coarse", index),
            "coarse",
            index,
            trial_seed(231, "coarse", index),
            1.0,
            values,
            f'{{"hidden":{values["hidden"]}}}',
        )


def ended(claim: Claim) -> Result:
    """Return a result as a worker sends it."""
    return Result(
        TrialState.COMPLETED,
        val_acc=0.5 + claim.trial.index % 4999 / 1e4,
        val_loss=0.3141592653589793,
        epochs=1.0,
        checkpoint=f"val_acc=0.9361-trial={claim.trial.id}-epoch=001-try=1.pt",
        worker="node-17-4242-9f3a",
        seconds=1.0625,
        device_model="NVIDIA H200",
        array_width=CLAIM,
    )


def ours(socket: str, n: int, size: int, folder: Path | None) -> float:
    """Return the rate, in trials per second, of claim, (record) and finish by two processes."""
    search = emptied(socket)
    search.publish(made(n))
    place = StageFolder(folder / search.search_id / "coarse") if folder else None
    if place:
        place.make()
    spent = in_processes(
        lambda worker: work(
            TrialQueue(connect(socket), search.search_id), f"worker-{worker}", size, place
        )
    )
    assert sum(s.trials for s in spent) == search.counts()["coarse"]["completed"] == n
    return rate(spent)


def work(
    queue: TrialQueue, worker: str, size: int, place: StageFolder | None, most: float = float("inf")
) -> Spent:
    """Claim and finish trials until there are none, or ``most`` are done."""
    done, claiming, recording, finishing = 0, 0.0, 0.0, 0.0
    start = time.monotonic()
    while done < most:
        before = time.monotonic()
        claims = queue.claim(worker, size, secrets.token_hex(4))
        claimed = time.monotonic()
        if not claims:
            break
        results = [(claim.fence, ended(claim)) for claim in claims]
        if place:
            place.write_records(
                [
                    Record.of(queue.search_id, c.trial, c.fence.attempt, r)
                    for c, (_, r) in zip(claims, results, strict=True)
                ]
            )
        recorded = time.monotonic()
        assert set(queue.finish(results)) == {"ok"}
        finishing += time.monotonic() - recorded
        claiming, recording, done = (
            claiming + claimed - before,
            recording + recorded - claimed,
            done + len(claims),
        )
    return Spent(start, time.monotonic(), done, claiming, finishing, recording)


def steps(socket: str, n: int, size: int) -> None:
    """Print the rate of each step, by one process."""
    search = emptied(socket)
    trials = list(made(n))
    start = time.monotonic()
    search.publish(trials)
    published = n / (time.monotonic() - start)
    spent = work(search, "worker", size, None)
    name = f"claims of {size} (published in batches of 500)"
    print(f"{name:58} {published:10.0f} {n / spent.claiming_s:9.0f} {n / spent.finishing_s:9.0f}")


def memory(socket: str, n: int) -> None:
    """Print the memory that a trial takes in Redis, waiting and ended."""
    search = emptied(socket)
    before = used(search)
    search.publish(made(n))
    waiting = (used(search) - before) / n
    work(search, "worker", CLAIM, None)
    print(
        f"{'memory in Redis a trial':58} {waiting:9.0f} B waiting, "
        f"{(used(search) - before) / n:.0f} B ended"
    )


def depth(socket: str, size: int) -> None:
    """Print the rates with few and with many trials queued, measured in turns."""
    emptied(socket)
    queues = [TrialQueue(connect(socket), f"{number:016x}") for number in range(len(QUEUED))]
    published = list(QUEUED)
    for queue, n in zip(queues, QUEUED, strict=True):
        queue.publish(made(n))
    calls = CALLS if size > 1 else QUEUED[0] // 2
    rates: list[list[float]] = []
    for turn in range(TURNS):
        pair = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            spent = work(queues[which], "worker", size, None, most=calls * size)
            pair[which] = rate([spent])
            # Refill the queue to its depth.
            published[which] += queues[which].publish(made(spent.trials, published[which]))
        rates.append(pair)
    few, many = (statistics.median(values) for values in zip(*rates, strict=True))
    # Compare within a turn, because the machine may be busier in the next.
    ratio = statistics.median(pair[1] / pair[0] for pair in rates)
    name = f"claims of {size}: {QUEUED[1]} queued / {QUEUED[0]} queued"
    print(f"{name:58} {ratio:9.2f} x   ({many:.0f} / {few:.0f} a second, one process)")


# --- the others ----------------------------------------------------------------------------


def optunas(socket: str, n: int) -> float:
    """Return Optuna's rate in trials per second: the same three parameters, drawn at random."""
    emptied(socket)

    def storage() -> optuna.storages.JournalStorage:
        return optuna.storages.JournalStorage(JournalRedisBackend(f"unix://{socket}"))

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("learning_rate", 1e-6, 1e1, log=True)
        trial.suggest_float("weight_decay", 1e-7, 1e0, log=True)
        trial.suggest_categorical("hidden", HIDDEN)
        return 0.5

    def optimize(worker: int) -> Spent:
        study = optuna.load_study(
            study_name="digits",
            storage=storage(),
            sampler=optuna.samplers.RandomSampler(seed=worker),
        )
        start = time.monotonic()
        study.optimize(objective, n_trials=n // WORKERS)
        return Spent(start, time.monotonic(), n // WORKERS)

    optuna.create_study(study_name="digits", storage=storage(), direction="maximize")
    return rate(in_processes(optimize))


def rqs(socket: str, n: int) -> float:
    """Return RQ's rate in jobs per second, each a call with the same three parameters.

    It uses RQ's fastest worker, which does not fork.
    """
    emptied(socket)

    def connection() -> redis.Redis:
        return redis.Redis(unix_socket_path=socket)

    def burst(worker: int) -> Spent:
        own = rq.SimpleWorker(
            [rq.Queue("trials", connection=connection())],
            connection=connection(),
            name=f"worker-{worker}",
        )
        start = time.monotonic()
        own.work(burst=True, logging_level="ERROR")
        return Spent(start, time.monotonic(), 0)

    queue = rq.Queue("trials", connection=connection())
    queue.enqueue_many(
        [rq.Queue.prepare_data("builtins.dict", kwargs=trial.hyperparameters) for trial in made(n)]
    )
    spent = in_processes(burst)
    assert queue.finished_job_registry.count == n
    return n / elapsed(spent)


# --- processes and the server ---------------------------------------------------------------


def in_processes(job: Callable[[int], Spent]) -> list[Spent]:
    """Run ``job`` in two processes that start together."""
    answers: Any = FORK.Queue()
    barrier = FORK.Barrier(WORKERS)

    def run(worker: int) -> None:
        barrier.wait()
        answers.put(job(worker))

    processes = [FORK.Process(target=run, args=(worker,)) for worker in range(WORKERS)]
    for process in processes:
        process.start()
    spent = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return spent


def rate(spent: list[Spent]) -> float:
    """Return the trials per second, from the first start to the last end."""
    return sum(s.trials for s in spent) / elapsed(spent)


def elapsed(spent: list[Spent]) -> float:
    """Return the seconds from the first start to the last end."""
    return max(s.end for s in spent) - min(s.start for s in spent)


def connect(socket: str) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=socket, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2
    )


def emptied(socket: str) -> TrialQueue:
    """Return the queue of a new search on an emptied server."""
    client = connect(socket)
    client.flushall()
    return TrialQueue(client, secrets.token_hex(8))


def used(queue: TrialQueue) -> int:
    return int(queue.client.info("memory")["used_memory"])


def answers(socket: str) -> bool:
    try:
        return bool(connect(socket).ping())
    except redis.ConnectionError:
        return False


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start a Redis server in ``folder`` and yield its socket."""
    program, socket = choose(find_programs(), (), folder), folder / "redis.sock"
    command: list[str | Path] = [
        program.path,
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--dir",
        folder,
        "--save",
        "",
    ]
    # A rewrite during the measurement would take a core.
    command += ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not answers(str(socket)):
            assert process.poll() is None and time.monotonic() < deadline, (
                f"{program} does not start"
            )
            time.sleep(0.01)
        print(f"Redis {program}")
        yield str(socket)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
