"""The process that speaks to Ray for a launch, and that alone imports it.

Ray's library takes handlers of signals, prints on stderr, and may end its process when it loses the
cluster. A launch goes on all the same, and starts this process again. Each line on stdin is an
order in JSON, and each line on stdout the answer to one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from textwrap import shorten
from typing import Any

from common.output import keep_stdout
from master.launchers.ray.actor import RayWorker
from master.launchers.ray.options import ADDRESS, find_lacking
from master.launchers.ray.states import Seen

FIRST_S = 5.0  # for the first answers of actors, to which connections are made meanwhile
ANSWER_S = 1.0  # for other answers. An actor that has not begun gives none
SILENT_S = 60.0  # an actor that has answered is not asked whether it runs for so long
STOP_S = 10.0  # for an actor to pass the order on to its worker
LONGEST_REASON = 200
NO_CLUSTER = (
    f"no cluster of Ray is reached; run this on a node of the cluster, or set {ADDRESS}, such as "
    "10.0.0.1:6379 or ray://10.0.0.1:10001"
)


class Cluster:
    """A connection to Ray, and the actors of one search."""

    def __init__(self, namespace: str) -> None:
        """Connect.

        Args:
            namespace: The namespace in which Ray has the actors of the search.

        Raises:
            Exception: Ray cannot be imported or reached; of many kinds.
        """
        import ray

        self._ray = ray
        self._namespace = namespace
        self._handles: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # by name: the answer that is still to come
        self._heard: dict[str, tuple[float, Seen]] = {}  # the last answer, and when it came
        self._answer_s = FIRST_S
        ray.init(
            address=os.environ.get(ADDRESS) or "auto",
            namespace=namespace,
            log_to_driver=False,
            logging_level="ERROR",
        )

    def start(self, jobs: Collection[str], order: Mapping[str, Any], options: Any) -> None:
        """Have Ray start an actor for each job, now or as soon as a node has room for it."""
        actor = self._ray.remote(RayWorker)
        for job in jobs:
            self._handles[job] = actor.options(
                name=job,
                namespace=self._namespace,
                lifetime="detached",
                max_restarts=-1,
                **options,
            ).remote(job, order)

    def look(self, jobs: Collection[str]) -> dict[str, Seen]:
        """Return how the actors of some jobs are."""
        for job in jobs:
            handle = None if job in self._asked else self._find(job)
            if handle is not None:
                self._asked[job] = handle.look.remote()
        waited_for = [answer for job, answer in self._asked.items() if job in jobs]
        ready = set[Any]()
        if waited_for:
            timeout_s, self._answer_s = self._answer_s, ANSWER_S
            ready = set(
                self._ray.wait(waited_for, num_returns=len(waited_for), timeout=timeout_s)[0]
            )
        return {job: self._see(job, ready) for job in jobs}

    def stop(self, jobs: Collection[str]) -> None:
        """Tell the workers of some jobs to leave, and end actors that have not begun."""
        for job, seen in self.look(jobs).items():
            handle = self._find(job)
            if handle is None or seen.state == "gone":
                continue
            told = []
            if seen.state == "running":
                told = self._ray.wait([handle.stop.remote()], timeout=STOP_S)[0]
            if not told:
                self._ray.kill(handle, no_restart=True)

    def find_lacking(self, options: Mapping[str, Any]) -> str:
        """Return what a job asks for that no node has; empty if some node has it."""
        return find_lacking(options, self._ray.nodes())

    def _find(self, job: str) -> Any:
        """Return the handle of an actor; None if Ray has no such actor."""
        if job not in self._handles:
            try:
                self._handles[job] = self._ray.get_actor(job, namespace=self._namespace)
            except ValueError:
                return None
        return self._handles[job]

    def _see(self, job: str, ready: Collection[Any]) -> Seen:
        answer = self._asked.get(job)
        if answer is None:
            return Seen("gone")
        if answer not in ready:
            heard_at, seen = self._heard.get(job, (0.0, Seen("waiting")))
            return seen if time.monotonic() - heard_at < SILENT_S else Seen("waiting")
        del self._asked[job]
        try:
            found = self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            return self._see_death(job, str(error))
        seen = Seen("running", found["node"], found["again"])
        self._heard[job] = time.monotonic(), seen
        return seen

    def _see_death(self, job: str, cause: str) -> Seen:
        """Return whether an actor is gone for good, or is about to be started again."""
        handle = self._handles.pop(job, None)
        self._heard.pop(job, None)
        if self._find(job) is not None:
            return Seen("waiting")
        if handle is not None:
            self._handles[job] = handle  # it says the cause once more to whoever asks again
        return Seen("gone", cause=cause)


def carry_out(cluster: Cluster, order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order, and return what came of it.

    Args:
        cluster: The connection.
        order: ``do``, the ``jobs``, and what else it needs.
    """
    if order["do"] == "start":
        cluster.start(order["jobs"], order["order"], order["options"])
    elif order["do"] == "stop":
        cluster.stop(order["jobs"])
    elif order["do"] == "look":
        seen = cluster.look(order["jobs"])
        waits = any(one.state == "waiting" for one in seen.values())
        return {
            "seen": {job: asdict(one) for job, one in seen.items()},
            "lacking": cluster.find_lacking(order["options"]) if waits else "",
        }
    return {}


def main(namespace: str) -> None:
    """Carry out orders until stdin ends, or one of them fails.

    Args:
        namespace: That of the search.
    """
    out = keep_stdout()
    os.chdir("/")  # Ray lets actors import from the folder that it is called in
    cluster: Cluster | None = None
    for line in sys.stdin:
        try:
            cluster = cluster or Cluster(namespace)
            said: dict[str, Any] = {"answer": carry_out(cluster, json.loads(line))}
        except Exception as error:  # of Ray, which has many kinds
            reason = shorten(str(error).partition(" Note: ")[0], LONGEST_REASON)
            said = {"error": f"Ray refuses: {reason}" if cluster else f"{NO_CLUSTER} ({reason})"}
        print(json.dumps(said), file=out, flush=True)
        if "error" in said:
            break  # whoever asks again gets a new connection: the cluster may be another one


if __name__ == "__main__":
    main(sys.argv[1])
