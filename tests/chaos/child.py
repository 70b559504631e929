"""Set up a forked process before it becomes a `master` or a `worker`.

This covers output, network, limits and patches.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import sklearn.datasets
import torch

import master.cli
import master.run.finish
import master.run.launch
import master.run.supervisor
import worker.cli
import worker.run.loop
import worker.run.start
from tests.chaos import patches, wrong_builds

CLONE_NEWNET = 0x40000000
gc.freeze()  # what is loaded here stays shared between all that are forked
sklearn.datasets.load_digits()
torch.set_num_threads(1)


def become(
    command: list[str], log: str, plan: dict[str, Any], environment: dict[str, str]
) -> NoReturn:
    """Runs the command line and ends the process as the program would have."""
    code = 1
    try:
        os.setsid()
        _speak_into(log)
        if "network" in plan:
            _enter_network(plan["network"])
        os.environ.update(environment)
        os.chdir(Path(log).parent)
        random.seed()
        patches.apply(plan)
        if "wrong" in plan:
            wrong_builds.apply(plan["wrong"])
        sys.argv = command
        program = master.cli.main if command[0] == "master" else worker.cli.main
        program()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _speak_into(log: str) -> None:
    nothing, file = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _enter_network(name: str) -> None:
    descriptor = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns {name}")
    os.close(descriptor)
