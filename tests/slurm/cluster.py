"""A Slurm cluster of three nodes on this machine, for the time of a test.

The daemons run as root, with a configuration and a munge key of their own in a folder of the test.
They listen on free ports, and are ended by their process ids.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.needs import needed

NODES = ("n1", "n2", "n3")  # the last has a partition of its own, which nothing disturbs
CORES = 4  # of each node, whatever this machine has
MEMORY_MB = 8000  # of each node; nothing checks that this machine has them
DEADLINE_S = 120.0  # only there to stop a hang
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may begin again once the credentials of its last run have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_min_interval=100000
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmdTimeout=20
DefMemPerCPU=1000
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 MaxTime=60 State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 MaxTime=60 State=UP
PartitionName=calm Nodes=n3 PriorityTier=1 MaxTime=60 State=UP
"""


class Cluster:
    """The daemons, and what an administrator does with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to reach this cluster."""
        return {"SLURM_CONF": str(self.file)}

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        self.file.write_text(self._configuration())
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        own = {"key-file": key, "socket": f"{self.folder}/munge.socket"}
        own |= {name: f"{self.folder}/munged.{name[:-5]}" for name in ("pid-file", "seed-file")}
        # --force: a folder below /tmp is not its own.
        self._run("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in own.items()))
        _wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._run("slurmctld", "-D")
        _wait(lambda: "UP" in self.call("scontrol", "ping", check=False), "slurmctld")
        for node in NODES:
            self._run("slurmd", "-D", "-N", node, name=node)
        _wait(lambda: self._states() == {"idle"}, "all nodes")

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm, and return its output."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self, name: str) -> dict[str, tuple[str, str]]:
        """Return state and node of every job of a name that Slurm knows, by its id."""
        answer = self.call("squeue", "-h", "-r", "-t", "all", "-n", name, "-o", "%i|%T|%N")
        rows = (line.split("|") for line in answer.splitlines())
        return {id: (state, node) for id, state, node in rows}

    def stop(self) -> None:
        """End all jobs, and then the daemons, those that need others first."""
        self.call("scancel", "--user", "root", "--signal=KILL", "--full", check=False)
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _run(self, *command: str, name: str = "") -> None:
        name = name or command[0]
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _configuration(self) -> str:
        host, ports = socket.gethostname(), free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES} "
            f"RealMemory={MEMORY_MB} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        return CONFIGURATION.format(host=host, port=ports[0], folder=self.folder, nodes=nodes)

    def _states(self) -> set[str]:
        return set(self.call("sinfo", "-h", "-N", "-o", "%T", check=False).split())


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not there after {DEADLINE_S:g} s"
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster inside the block. Skip the test where Slurm is missing; in CI, fail it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    needed(not missing, f"no {', '.join(missing)}; install slurm-wlm (Debian) for these tests")
    needed(os.geteuid() == 0, "the daemons of Slurm are started as root")
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
