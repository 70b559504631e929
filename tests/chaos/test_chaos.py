"""Every trial ends exactly once whatever is killed, stopped, cut off, filled up or lost.

Both witnesses say so. Each test is a search of some hundred short trials under one family of
faults. ``CHAOS_FAULTS`` and ``CHAOS_SEED`` give another run.
"""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.arena import LEASE_S, Arena, Work
from tests.chaos.conftest import A_ROUND, FAULTS, RunsEpisode
from tests.chaos.disks import mounted
from tests.chaos.needs import needed
from tests.chaos.networks import network
from tests.chaos.nursery import Nursery
from tests.chaos.planted import Planted
from tests.chaos.proxy import Proxy
from tests.chaos.servers import served
from tests.chaos.tally import TALLY
from tests.chaos.tasks import troubled

pytestmark = pytest.mark.timeout(420)
KILLS = ("worker killed", "worker stopped past its lease", "master killed")
CLOCKS = ("worker's clock jumped", "master's clock jumped")
MIXED = (
    *KILLS, *CLOCKS, "worker told to leave", "Redis killed", "disk full under the folder",
    "answer lost: claim", "answer lost: finish",
    "answer lost: publish", "worker killed at record_temporary", "worker killed at after_finish",
)  # fmt: skip
TROUBLES = {  # by what a task does: how the reason of its end reads, and what was made
    "raise": ("planted", "task raised"),
    "exit": ("its process ended with exit status 9", "task called os._exit"),
    "leak": ("its process was ended by SIGKILL", "task leaked until killed"),
    "hang": ("lost 3 attempts while alone: try", "task hung"),
}
AWAY, BACK = "trying again until Redis is back", "Redis is back; going on"
ARRAYS = Work(
    "spiral",
    (
        "learning_rate = { log_uniform = [1e-2, 1.0] }\ndropout = { uniform = [0.0, 0.3] }\n"
        "hidden = 16\nbatch_size = 50"
    ),
    # Without rungs: a promotion may depend on the last digit.
    stages="[stages.coarse]\ntrials = 240\nepochs = 3",
)
FELT_S = 0.3  # a worker waits so long for an answer, so that a cut of a second is felt
# Three of 300 validation points: arrays of other widths and other backends round differently.
TOLERANCE = 0.01
FOLDER_BYTES, REDIS_BYTES = 8 << 20, 32 << 20
MEMORY_BYTES = (
    600 << 20
)  # beyond what a worker has from the nursery; it is then killed, as the kernel would


def test_processes_killed_stopped_and_slowed(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 1, server)
        episode(arena, faults.PROCESSES, 42, 0.7, arena.calm.ranking())


def test_redis_killed_and_stopped(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 2, server)
        names = (
            "Redis killed",
            "Redis stopped past a lease",
            "computer of Redis and the workers suspended",
            "worker killed",
        )
        episode(arena, names, 16, 1.3, arena.calm.ranking())


def test_redis_loses_its_last_writes_or_everything(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 3, server)
        names = ("Redis's last writes lost", "Redis emptied, recovered", "worker killed")
        episode(arena, names, 18, 1.5, arena.calm.ranking())


def test_promotions_cut_off_and_forgotten(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 14, server)
        names = (
            *faults.PROMOTIONS,
            "worker killed",
            "worker killed at resume_named",
            "Redis emptied, recovered",
        )
        episode(arena, names, 18, 1.2, arena.calm.ranking())


def test_the_embedded_redis_killed_and_stopped(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    arena = Arena(nursery, path, seed + 4, None)
    names = ("embedded Redis killed", "embedded Redis stopped past a lease", *KILLS)
    episode(arena, names, 20, 1.2, arena.calm.ranking())


def test_answers_lost_after_redis_ran_the_script(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server, contextlib.closing(Proxy(server)) as proxy:
        arena = Arena(nursery, path, seed + 5, server, proxy=proxy)
        episode(arena, faults.ANSWERS, 30, 0.5, arena.calm.ranking())


def test_workers_killed_or_stopped_at_each_step_of_writing(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 6, server, Work(epochs=480, slots=64, keep=1000))
        made = episode(arena, faults.STEPWISE, 2 * len(faults.STEPWISE), 0.8, arena.calm.ranking())
        assert made.keys() >= set(faults.STEPWISE), (
            f"never made: {set(faults.STEPWISE) - made.keys()}"
        )


def test_full_disks(nursery: Nursery, path: Path, seed: int, episode: RunsEpisode) -> None:
    with (
        mounted(path / "small", FOLDER_BYTES) as folder,
        mounted(path / "redis", REDIS_BYTES) as redis_disk,
        served(path / "redis" / "data") as server,
    ):
        disks = {"folder": folder, "redis": redis_disk}
        arena = Arena(
            nursery, path / "here", seed + 7, server, root=folder.path / "checkpoints", disks=disks
        )
        names = ("disk full under the folder", "disk full under Redis", "worker killed")
        episode(arena, names, 18, 1.5, arena.calm.ranking())
        assert arena.said("the disk is full") and arena.said("cannot write to its disk"), (
            "the disks were never felt to be full"
        )


def test_workers_cut_off_the_network(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with (
        network(1) as one,
        network(2) as two,
        served(path / "redis", one.host_address, two.host_address) as server,
    ):
        arena = _in_networks(Arena(nursery, path, seed + 8, server, networks=[one, two]))
        episode(
            arena,
            ("worker cut off the network",) * 2 + ("worker killed",),
            9,
            2.0,
            arena.calm.ranking(),
        )
        felt = (
            "the lease is gone (expired)",
            "no heartbeat for a lease; back to the queue",
            "its worker is gone, but had written its record",
        )
        assert any(arena.said(text) for text in felt), (
            "no worker was ever cut off for longer than its lease"
        )


def _in_networks(arena: Arena, options: str = "") -> Arena:
    """The first workers of the arena each get a network of their own."""
    assert arena.server
    for slot, own in zip(arena.crew.workers, arena.networks, strict=False):
        slot.plan = {**slot.plan, "network": own.name}
        slot.environment["REDIS_URL"] = arena.server.url_at(own.host_address) + options
    return arena


def test_workers_cut_off_for_a_moment_lose_nothing(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with (
        network(3) as one,
        network(4) as two,
        served(path / "redis", one.host_address, two.host_address) as server,
    ):
        work = Work(epochs=120, slots=16)
        arena = Arena(
            nursery,
            path,
            seed + 12,
            server,
            work,
            n_workers=2,
            lease_s=2 * LEASE_S,
            networks=[one, two],
        )
        _in_networks(arena, f"?socket_timeout={FELT_S}")
        made = episode(arena, ("worker cut off for a moment",), 6, 2.0, arena.calm.ranking())
        rungs = {trial.id: trial.rung for trial in arena.trials}
        later = {
            trial: attempt
            for trial, (attempt, _) in arena.last.accepted.items()
            if attempt > rungs[trial] + 1
        }
        assert not later, f"trained again, though their workers came back in time: {later}"
        assert not arena.said("the lease is gone") and not arena.said("back to the queue")
        for slot in arena.crew.workers:
            told = [
                text
                for line in slot.log.read_text().splitlines()
                for text in (AWAY, BACK)
                if text in line
            ]
            assert told[::2] == [AWAY] * len(told[::2]) and told[1::2] == [BACK] * len(
                told[1::2]
            ), f"not once each: {told}"
        assert arena.said(AWAY) >= made.total() / 2, (
            "the cuts were not felt"
        )  # two that follow closely may be one outage


def test_tasks_that_raise_hang_leak_or_exit(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    def out_of_memory(arena: Arena) -> None:
        for slot in arena.crew.workers:
            arena.crew.end_large(slot, MEMORY_BYTES)

    with served(path / "redis") as server, contextlib.closing(Proxy(server)) as proxy:
        work = Work("troubled.py:train", epochs=360, slots=48, failing=troubled.failing)
        arena = Arena(nursery, path, seed + 9, server, work, proxy=proxy, watch=out_of_memory)
        made = episode(arena, faults.TO_TASKS, len(faults.TO_TASKS), 1.5, arena.calm.ranking())
        for index, trouble in troubled.TROUBLE.items():
            reason = next(iter(arena.last.records[f"coarse-{index:04d}"].values()))["reason"]
            told, name = TROUBLES[trouble]
            assert told in reason, (trouble, reason)
            made[name] += 1


def test_arrays_of_trials_under_mixed_faults(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    """The engine trains several trials in one array, with refills and resumes.

    Each trial gives the same result as without faults.
    """
    with served(path / "redis") as server:
        calm = Arena(nursery, path / "calm", seed + 11, server, ARRAYS)
        episode(_narrow(calm), (), 0, 1.0, None)
    with served(path / "redis-2") as server, contextlib.closing(Proxy(server)) as proxy:
        storm = Arena(nursery, path / "storm", seed + 11, server, ARRAYS, proxy=proxy)
        episode(
            _narrow(storm),
            (*KILLS, "Redis killed", "answer lost: claim", "answer lost: finish"),
            24,
            1.2,
            None,
        )
    for trial in calm.trials:
        one, other = (
            arena.last.records[trial.id][arena.last.accepted[trial.id][0]]
            for arena in (calm, storm)
        )
        assert one["state"] == other["state"], trial.id
        assert other["val_acc"] == pytest.approx(one["val_acc"], abs=TOLERANCE), trial.id
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=TOLERANCE), trial.id


def _narrow(arena: Arena) -> Arena:
    for slot in arena.crew.workers:
        slot.command = (*slot.command, "--array-width", "4")
    return arena


def test_clocks_moved(nursery: Nursery, path: Path, seed: int, episode: RunsEpisode) -> None:
    """The clock jumps in running processes.

    Meanwhile the janitor tells a live writer from one that is long gone.
    """
    planted = Planted()
    with served(path / "redis") as server:
        arena = Arena(nursery, path, seed + 10, server, watch=planted.look)
        episode(arena, (*CLOCKS, "worker stopped past its lease"), 12, 1.5, arena.calm.ranking())
        assert planted.removed >= 3, "the janitor did nothing while its clock was wrong"


def test_many_families_at_once(
    nursery: Nursery, path: Path, seed: int, episode: RunsEpisode
) -> None:
    with (
        mounted(path / "small", FOLDER_BYTES) as folder,
        served(path / "redis") as server,
        contextlib.closing(Proxy(server)) as proxy,
    ):
        root, disks = folder.path / "checkpoints", {"folder": folder}
        arena = Arena(
            nursery, path / "here", seed + 13, server, proxy=proxy, root=root, disks=disks
        )
        episode(arena, MIXED, 2 * len(MIXED), 1.2, arena.calm.ranking())


def test_faults_of_every_kind_were_made() -> None:
    episodes = {
        name
        for name, test in globals().items()
        if name.startswith("test_") and "episode" in inspect.signature(test).parameters
    }
    left_out = episodes - {episode.name.partition("[")[0] for episode in TALLY.episodes}
    needed(
        not left_out,
        f"counted where all episodes run; {', '.join(sorted(left_out))} did not come to an end",
    )
    total = TALLY.made.total()
    assert total >= max(FAULTS, A_ROUND), f"only {total} faults were made"
    never = {*faults.ALL, *(name for _, name in TROUBLES.values())} - {
        name for name, n in TALLY.made.items() if n
    }
    assert not never, f"never made: {sorted(never)}"
